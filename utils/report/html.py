"""The report of a comparison of detectors: report.html, a single self-contained file, report.md and table.csv."""

from __future__ import annotations

import base64
import html
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from utils.data.images import decode_image
from utils.errors import UserError
from utils.report.charts import DARK, LIGHT, Chart, Style, charts, png, svg
from utils.report.comparison import COLUMNS, Comparison, Difference
from utils.report.content import (
    Cell,
    Row,
    elide,
    pair_text,
    pairs,
    pairs_sentence,
    printable,
    shown_columns,
    subject,
    table_rows,
    table_sentences,
    tile_entries,
)
from utils.report.markdown import markdown, picture_files, table_csv
from utils.report.pictures import LEGEND

TEMPLATE = Path(__file__).with_name("report.html")
PAGE = "report.html"


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write the report into a folder, which is created if needed, and return the path of report.html.

    All files are complete before the first one is moved into the folder; report.html is moved last. Raises UserError if
    they cannot be written; an earlier report in the folder is then kept.
    """
    drawn = charts(comparison)
    files = {f"charts/{chart.name}.png": png(chart) for chart in drawn}
    for row, names in zip(comparison.pictures, picture_files(comparison), strict=True):
        files |= dict(zip(names, row.tiles, strict=True))
    files["table.csv"] = table_csv(comparison).encode()
    files["report.md"] = markdown(comparison, drawn).encode()
    files[PAGE] = page(comparison, drawn).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_all(files, folder)
    except OSError as e:
        reason = e.strerror or type(e).__name__
        raise UserError(f"{folder}: the report cannot be written there ({reason}); choose another --project") from e
    return folder / PAGE


def _write_all(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files, given by their paths in `folder`; first to a temporary folder, since the disk may become full."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".report.") as temporary:
        for name, content in files.items():
            part = Path(temporary) / name
            part.parent.mkdir(exist_ok=True)
            with open(part, "wb") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(Path(temporary) / name, folder / name)
    for old in (*folder.glob("charts/*.png"), *folder.glob("pictures/*.jpg")):  # left by an earlier report
        if old.relative_to(folder).as_posix() not in files:
            old.unlink()


def page(comparison: Comparison, drawn: Sequence[Chart]) -> str:
    """Return the complete HTML page, with all charts and images embedded."""
    sections = {
        "table": ("Results", _table(comparison)),
        "pairs": ("Pairwise differences", _pairs(comparison)),
        "charts": ("Charts", _charts(drawn)),
        "pictures": ("Images", _pictures(comparison)),
        "conditions": ("Conditions", _conditions(comparison)),
    }
    there = {key: part for key, part in sections.items() if part[1]}
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in there.items())
    parts = [_notes(comparison), *(_section(key, title, content) for key, (title, content) in there.items())]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(comparison.title), subject=_text(subject(comparison)), light=_variables(LIGHT),
        dark=_variables(DARK), nav=f'<nav aria-label="Sections">{links}</nav>',
        body="\n".join(part for part in parts if part),
    )  # fmt: skip


def _text(value: str) -> str:
    return html.escape(printable(value))


def _variables(style: Style) -> str:
    named = {"ink": style.ink, "soft": style.soft, "grid": style.grid, "paper": style.paper}
    return " ".join(f"--{k}: {v};" for k, v in (named | {f"s{k}": c for k, c in enumerate(style.series)}).items())


def _section(key: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{key}">\n<h2 id="{key}">{title}</h2>\n{content}\n</section>'


def _wide(content: str, label: str) -> str:
    """Wrap content in a box that scrolls horizontally and can be focused, so that arrow keys scroll it."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}">{content}</div>'


def _model(label: str, k: int, breaks: bool = True) -> str:
    """Return a model's name with a dot of the model's colour before it."""
    dot = f'<i class="dot" style="color: var(--s{k % len(LIGHT.series)})"></i>'
    return f'<span class="name">{dot}<span class="text">{_name(label) if breaks else _text(label)}</span></span>'


def _name(label: str) -> str:
    """Return a name in which lines may break after `_`, `/`, `+`, `.` and `-`."""
    return "<wbr>".join(_text(part) for part in re.split(r"(?<=[_/+.-])(?=\w)", printable(label)))


def _notes(comparison: Comparison) -> str:
    if not comparison.notes:
        return ""
    items = "".join(f"<li>{_text(note)}</li>" for note in comparison.notes)
    return f"<aside><h2>Notes</h2><ul>{items}</ul></aside>"


def _table(comparison: Comparison) -> str:
    columns = shown_columns(comparison)
    heads = "".join(f'<th scope="col">{_text(c.heading)}</th>' for c in columns)
    rows = table_rows(comparison)
    measured, published = ([r for r in rows if (r.entry is None) == outside] for outside in (False, True))
    bodies = "".join(f"<tbody>{''.join(map(_row, part))}</tbody>" for part in (measured, published) if part)
    caption = "The models with their size, accuracy, latency and training"
    table = (f'<table><caption>{caption}</caption><thead><tr><th scope="col">model</th>{heads}</tr></thead>'
             f"{bodies}</table>")  # fmt: skip
    return _wide(table, "results") + _under_table(comparison)


def _row(row: Row) -> str:
    cells = "".join(map(_cell, row.cells))
    if row.entry is not None:
        return f'<tr><th scope="row">{_model(row.label, row.entry)}</th>{cells}</tr>'
    mark = f'<sup><a href="#note-{row.note}">{row.note}</a></sup>'
    return (f'<tr class="published"><th scope="row"><div class="name"><span>{_name(row.label)}{mark}'
            f"<em>as published</em></span></div></th>{cells}</tr>")  # fmt: skip


def _cell(cell: Cell) -> str:
    text = f"<b>{_text(cell.text)}</b>" if cell.best else _text(cell.text)
    return f"<td>{text}{f'<small>{_text(cell.interval)}</small>' if cell.interval else ''}</td>"


def _under_table(comparison: Comparison) -> str:
    notes = "".join(f'<li id="note-{k}">As published, not measured here. {_text(r.note)}</li>'
                    for k, r in enumerate(comparison.references, 1))  # fmt: skip
    used = {c.key for c in shown_columns(comparison)}
    meanings = "".join(f"<dt>{_text(c.heading)}</dt><dd>{_text(c.meaning)}</dd>" for c in COLUMNS
                       if c.key in used and c.meaning)  # fmt: skip
    return (
        f'<div class="under small soft"><p>{_text(" ".join(table_sentences(comparison)))}</p>'
        + (f"<ol>{notes}</ol>" if notes else "")
        + (f"<details><summary>What the columns mean</summary><dl>{meanings}</dl></details>" if meanings else "")
        + "</div>"
    )


def _pairs(comparison: Comparison) -> str:
    both = pairs(comparison)
    if not both:
        return ""
    labels = [e.label for e in comparison.entries]
    numbers = sorted({k for pair in both for k in pair})
    heads = "".join(f'<th scope="col">{_model(elide(labels[k], 60), k)}</th>' for k in numbers)
    rows = []
    for i in numbers:
        cells = "".join(_pair(both.get((i, j))) for j in numbers)
        rows.append(f'<tr><th scope="row">{_model(labels[i], i)}</th>{cells}</tr>')
    metrics = list(next(iter(both.values())))
    below = f", and {metrics[1]} below it" if len(metrics) > 1 else ""
    keys = " ".join(f'<span class="key {v}">{v}</span>' for v in ("better", "worse", "undecided"))
    text = f"<p>{_text(pairs_sentence(comparison))}</p><p>Each cell shows {_text(metrics[0] + below)}. {keys}</p>"
    table = (f'<table class="pairs"><caption>Differences, row minus column</caption><thead><tr><th scope="col">'
             f"row − column</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>")  # fmt: skip
    return text + _wide(table, "pairwise differences")


def _pair(differences: Mapping[str, Difference] | None) -> str:
    if not differences:
        return '<td class="self">·</td>'
    parts = []
    for n, (metric, difference) in enumerate(differences.items()):
        value, interval = pair_text(difference)
        name = f"<span>{_text(metric)}</span> " if n else ""
        word = " <span>undecided</span>" if difference.verdict == "undecided" and not n else ""
        below = f"<small>{_text(interval)}</small>" if interval else ""
        parts.append(f'<div class="{difference.verdict}">{name}{_text(value)}{word}{below}</div>')
    return f'<td><div class="both">{"".join(parts)}</div></td>'


def _charts(drawn: Sequence[Chart]) -> str:
    figures = []
    for chart in drawn:
        note = f"<small>{_text(chart.note)}</small>" if chart.note else ""
        figures.append(f"<figure><figcaption>{_text(chart.title)}{note}</figcaption>{svg(chart)}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _pictures(comparison: Comparison) -> str:
    if not comparison.pictures:
        return ""
    intro = f"<p>{_text(LEGEND)} Click an image to enlarge it; the arrow keys then change the model and the image.</p>"
    rows = []
    for row in comparison.pictures:
        figures = []
        for k, tile in zip(tile_entries(comparison, row), row.tiles, strict=True):
            height, width = decode_image(tile).shape[:2]
            label = comparison.entries[k].label
            figures.append(
                f'<figure><figcaption>{_model(label, k, breaks=False)}</figcaption><button type="button">'
                f'<img src="data:image/jpeg;base64,{base64.b64encode(tile).decode()}" width="{width}" '
                f'height="{height}" alt="{_text(label)}: {_text(row.caption)}"></button></figure>'
            )
        rows.append(f'<h3>{_text(row.caption)}</h3><div class="row">{"".join(figures)}</div>')
    return f'{intro}<div class="tiles" tabindex="0" role="region" aria-label="images">{"".join(rows)}</div>'


def _conditions(comparison: Comparison) -> str:
    facts = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in comparison.facts)
    command = f"<h3>Command that reproduces this report</h3><pre><code>{html.escape(comparison.command)}</code></pre>"
    return (f"<dl>{facts}</dl>" if facts else "") + (command if comparison.command else "")
