"""The content of a comparison's report, independent of HTML and Markdown: its rows, cells and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from utils.evaluation.bootstrap import Interval
from utils.report.comparison import COLUMNS, Column, Comparison, Difference, Entry, PictureRow, Value

# columns in which higher or lower values are better; in the other columns no value is marked as best
MORE_IS_BETTER = frozenset("precision recall map50 map ap_small ap_medium ap_large".split())
LESS_IS_BETTER = frozenset("parameters size_mib gflops ms_1 ms_1_p95 ms_32 ms_32_p95".split())
INTERVALS = ("map50", "map")  # keys of the columns for which an Entry has an interval in the attribute of that name
METRICS = ("mAP50-95", "mAP50")  # metrics of the differences, the main one first
MINUS = "−"
FORMULAS = "P, R, mAP50 and mAP50-95 follow YOLOv5's formulas, AP of small, medium and large objects COCO's rule."
BRACKETS = "Brackets give the 95 % bootstrap interval over the images."
TURNS = "Latency was measured in one run, with the models taking turns."


class Cell(NamedTuple):
    """A cell of the table: its text, the interval below it, and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


class Row(NamedTuple):
    """A row of the table. entry: index of the model, None for published results; note: number of the footnote."""

    label: str
    cells: list[Cell]
    entry: int | None
    note: int = 0


def printable(text: str) -> str:
    """Return the text in one line, with control characters replaced by `?`."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def elide(text: str, length: int) -> str:
    """Shorten a text to at most `length` characters by replacing its middle with `...`."""
    if len(text) <= length:
        return text
    kept = max(length - 3, 2)
    return f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"[: max(length, 1)]


def present(value: Value) -> bool:
    """Return whether a value is neither None nor nan."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def known(interval: Interval | None) -> bool:
    """Return whether there is an interval with known bounds."""
    return interval is not None and not math.isnan(interval.low)


def signed(value: float) -> str:
    """Format a difference with its sign and three decimal places."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def subject(comparison: Comparison) -> str:
    """Return a one-line description of what was compared."""
    entries = comparison.entries
    parts = [f"{len(entries)} models" if len(entries) != 1 else "1 model"]
    sizes = sorted({e.imgsz for e in entries})
    if sizes:
        parts.append(f"{' and '.join(map(str, sizes))} px")
    images = [e.results.images for e in entries if e.results]
    if images:
        parts.append(f"{max(images):,} images")
    else:
        parts.append("accuracy not measured")
    return ", ".join(parts)


def shown_columns(comparison: Comparison) -> list[Column]:
    """Return the columns in which at least one row has a value, without the model's name."""
    rows = [{c.key: c.value(e) for c in COLUMNS} for e in comparison.entries]
    rows += [dict(r.values) for r in comparison.references]
    return [c for c in COLUMNS[1:] if any(present(row.get(c.key)) for row in rows)]


def table_rows(comparison: Comparison) -> list[Row]:
    """Return the rows of the table with the cells of `shown_columns`: the models, then the published results."""
    columns = shown_columns(comparison)
    values = [[c.value(e) for e in comparison.entries] for c in columns]
    best = [_best(c, v) for c, v in zip(columns, values, strict=True)]
    rows = []
    for k, entry in enumerate(comparison.entries):
        cells = [
            Cell(_text(c, v[k]), _interval_text(entry, c.key), _text(c, v[k]) == b)
            for c, v, b in zip(columns, values, best, strict=True)
        ]
        rows.append(Row(printable(entry.label), cells, k))
    for k, reference in enumerate(comparison.references, 1):
        cells = [Cell(_text(c, reference.values.get(c.key))) for c in columns]
        rows.append(Row(printable(reference.label), cells, None, k))
    return rows


def _text(column: Column, value: Value) -> str:
    # a published value may be text, such as "about 2"
    return printable(value) if isinstance(value, str) else column.text(value if present(value) else None)


def _best(column: Column, values: Sequence[Value]) -> str | None:
    """Return the best value as displayed, so that values that look equal are marked alike; None if all look equal."""
    there = [v for v in values if present(v)]
    if column.key not in MORE_IS_BETTER | LESS_IS_BETTER or len({_text(column, v) for v in there}) < 2:
        return None
    return _text(column, max(there) if column.key in MORE_IS_BETTER else min(there))


def _interval_text(entry: Entry, key: str) -> str:
    interval = getattr(entry, key) if key in INTERVALS else None
    return f"[{interval.low:.3f}, {interval.high:.3f}]" if known(interval) else ""


def pairs(comparison: Comparison) -> dict[tuple[int, int], dict[str, Difference]]:
    """Return (first, second) -> metric -> difference, for each pair of models in both directions.

    The metrics are in the order of METRICS.
    """
    both: dict[tuple[int, int], dict[str, Difference]] = {}
    for metric in METRICS:
        for d in comparison.differences:
            if d.metric == metric:
                value, low, high = d.interval
                back = Difference(d.second, d.first, metric, Interval(-value, -high, -low))
                both.setdefault((d.first, d.second), {})[metric] = d
                both.setdefault((d.second, d.first), {})[metric] = back
    return both


def pair_text(difference: Difference) -> tuple[str, str]:
    """Return the difference with its sign, and its interval, or an empty string if that is not known."""
    interval = difference.interval
    return signed(interval.value), f"[{signed(interval.low)}, {signed(interval.high)}]" if known(interval) else ""


def pairs_sentence(comparison: Comparison) -> str:
    """Return the explanation of the differences, with the number of decided pairs."""
    chief = next(m for m in METRICS if any(d.metric == m for d in comparison.differences))
    of_chief = [d for d in comparison.differences if d.metric == chief]
    decided = sum(d.verdict != "undecided" for d in of_chief)
    return (
        "Row model minus column model, with the 95 % bootstrap interval. A pair is undecided if the interval includes "
        "0. The interval covers the choice of the images, not the randomness of training: another seed may change a "
        f"model's result by more. By {chief}, {decided} of {len(of_chief)} "
        f"pair{'s' if len(of_chief) != 1 else ''} {'are' if decided != 1 else 'is'} decided. Of pairs of equally good "
        "models, about one in twenty appears decided by chance, and more if there are few images."
    )


def conditions_of(comparison: Comparison, *words: str) -> list[tuple[str, str]]:
    """Return the facts whose name begins with one of the lower-case `words`; the case of the name is ignored."""
    return [(k, v) for k, v in comparison.facts if k.lower().startswith(words)]


def table_sentences(comparison: Comparison) -> list[str]:
    """Return the sentences below the table: the meaning of bold and brackets, the formulas and the conditions."""
    sentences = []
    if any(cell.best for row in table_rows(comparison) for cell in row.cells):
        sentences.append("Bold: the best value of the column.")
    if any(e.results for e in comparison.entries) and not conditions_of(comparison, "accuracy", "protocol"):
        sentences.append(FORMULAS)
    if any(known(e.map) or known(e.map50) for e in comparison.entries):
        sentences.append(BRACKETS)
    if any(e.latency for e in comparison.entries) and not conditions_of(comparison, "latency"):
        sentences.append(TURNS)
    named = conditions_of(comparison, "accuracy", "protocol", "device", "precision", "latency")
    return sentences + [printable(f"{k[:1].upper()}{k[1:]}: {v}").rstrip(".") + "." for k, v in named]


def tile_entries(comparison: Comparison, row: PictureRow) -> list[int]:
    """Return the model index of each tile of a picture row; models without an evaluation may have no tile."""
    everyone = list(range(len(comparison.entries)))
    scored = [k for k in everyone if comparison.entries[k].results]
    return scored if len(row.tiles) == len(scored) else everyone[: len(row.tiles)]


def short_labels(labels: Sequence[str], length: int) -> list[str]:
    """Shorten the labels to about `length` characters each, and number those that would be equal."""
    short: list[str] = []
    for label in map(printable, labels):
        text, number = elide(label, length), 2
        while text in short:
            text, number = f"{elide(label, length - 4)} ({number})", number + 1
        short.append(text)
    return short
