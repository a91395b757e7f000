"""A comparison as Markdown, which links to image files beside it, and as a CSV table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from utils.files import distinct, safe_name
from utils.report.charts import Chart
from utils.report.comparison import COLUMNS, Comparison, Difference, Value, table
from utils.report.content import (
    INTERVALS,
    Cell,
    Row,
    known,
    pair_text,
    pairs,
    pairs_sentence,
    present,
    printable,
    shown_columns,
    subject,
    table_rows,
    table_sentences,
    tile_entries,
)
from utils.report.pictures import LEGEND

NAME_LENGTH = 48  # characters of a model's name in an image's file name


def table_csv(comparison: Comparison) -> str:
    """Return table.csv: a row of unrounded values and intervals per model, and a row per published result."""
    ends = [f"{key}_{end}" for key in INTERVALS for end in ("low", "high")]
    rows: list[dict[str, Value]] = []
    for entry, values in zip(comparison.entries, table(comparison.entries), strict=True):
        sure = {key: getattr(entry, key) for key in INTERVALS if known(getattr(entry, key))}
        bounds = {f"{key}_{end}": getattr(interval, end) for key, interval in sure.items() for end in ("low", "high")}
        rows.append({"kind": "measured", **values, **bounds})
    keys = ["kind", *(c.key for c in COLUMNS), *ends]
    for reference in comparison.references:
        published = {k: v for k, v in reference.values.items() if k in keys}
        rows.append({**published, "kind": "published", "model": reference.label})
    file = io.StringIO()
    writer = csv.DictWriter(file, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: v if present(v) else "" for k, v in row.items()} for row in rows)
    return file.getvalue()


def picture_files(comparison: Comparison) -> list[list[str]]:
    """Return the files of each picture row's tiles, as paths in the report's folder: `pictures/01_model.jpg`."""
    # some file systems do not distinguish A.jpg from a.jpg
    names = distinct([safe_name(e.label)[:NAME_LENGTH].lower() for e in comparison.entries])
    return [[f"pictures/{n:02d}_{names[k]}.jpg" for k in tile_entries(comparison, row)]
            for n, row in enumerate(comparison.pictures, 1)]  # fmt: skip


def markdown(comparison: Comparison, drawn: Sequence[Chart]) -> str:
    """Return the report as Markdown; its images are files in the folders `charts` and `pictures` beside it."""
    parts = [f"# {_md(comparison.title)}", _md(subject(comparison)), *_notes(comparison), *_table(comparison),
             *_pairs(comparison), *_charts(drawn), *_pictures(comparison), *_conditions(comparison)]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    """Escape a text for Markdown; an underscore within a word needs no escape."""
    text = re.sub(r"([\\`*\[\]<>|~$&#])", r"\\\1", printable(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Return a table of cells in Markdown, with the first column left-aligned and numbers right-aligned."""
    line = [":--", *(["--:" if numbers else ":--"] * (len(heads) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, line, *rows))


def _notes(comparison: Comparison) -> list[str]:
    lines = ["**Notes**", *(f"- {_md(note)}" for note in comparison.notes)]
    return ["\n".join(f"> {line}".rstrip() for line in (lines[0], "", *lines[1:]))] if comparison.notes else []


def _table(comparison: Comparison) -> list[str]:
    heads = ["model", *(c.heading for c in shown_columns(comparison))]
    rows = [[_label(row), *map(_cell, row.cells)] for row in table_rows(comparison)]
    text = _md(" ".join(table_sentences(comparison)))
    notes = [f"{k}. As published, not measured here. {_md(r.note)}" for k, r in enumerate(comparison.references, 1)]
    return [part for part in ("## Results", _grid(heads, rows), text, "\n".join(notes)) if part]


def _label(row: Row) -> str:
    return _md(row.label) if row.entry is not None else f"*{_md(row.label)}, as published ({row.note})*"


def _cell(cell: Cell) -> str:
    text = f"**{_md(cell.text)}**" if cell.best else _md(cell.text)
    return f"{text} {cell.interval}" if cell.interval else text


def _pairs(comparison: Comparison) -> list[str]:
    both = pairs(comparison)
    if not both:
        return []
    labels = [_md(e.label) for e in comparison.entries]
    numbers = sorted({k for pair in both for k in pair})
    parts = ["## Pairwise differences", _md(pairs_sentence(comparison))]
    for metric in next(iter(both.values())):
        rows = [[labels[i], *(_pair(both.get((i, j), {}).get(metric)) for j in numbers)] for i in numbers]
        parts += [f"### {metric}", _grid(["row − column", *(labels[j] for j in numbers)], rows)]
    return parts


def _pair(difference: Difference | None) -> str:
    if difference is None:
        return "·"
    value, interval = pair_text(difference)
    decided = difference.verdict != "undecided"
    return f"{f'**{value}**' if decided else value} {interval}{'' if decided else ' undecided'}".strip()


def _charts(drawn: Sequence[Chart]) -> list[str]:
    parts = ["## Charts"] if drawn else []
    for chart in drawn:
        parts.append(f"### {_md(chart.title)}")
        parts += [_md(chart.note)] if chart.note else []
        parts.append(f"![{_md(chart.text)}](charts/{chart.name}.png)")
    return parts


def _pictures(comparison: Comparison) -> list[str]:
    if not comparison.pictures:
        return []
    parts = ["## Images", _md(LEGEND)]
    for row, files in zip(comparison.pictures, picture_files(comparison), strict=True):
        labels = [_md(comparison.entries[k].label) for k in tile_entries(comparison, row)]
        images = [f"![{label}]({file})" for label, file in zip(labels, files, strict=True)]
        parts += [f"### {_md(row.caption)}", _grid(labels, [images], numbers=False)]
    return parts


def _conditions(comparison: Comparison) -> list[str]:
    parts = ["## Conditions"] if comparison.facts or comparison.command else []
    if comparison.facts:
        parts.append("\n".join(f"- {_md(k)}: {_md(v)}" for k, v in comparison.facts))
    if comparison.command:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", comparison.command)), default=0))
        parts.append(f"Command that reproduces this report:\n\n{fence}sh\n{comparison.command}\n{fence}")
    return parts
