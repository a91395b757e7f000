"""What the report of a comparison says, before it is HTML or Markdown: its rows, cells and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from utils.evaluation.bootstrap import Interval
from utils.report.comparison import COLUMNS, Column, Comparison, Difference, Entry, PictureRow, Value

# which of two values of a column is better; of the columns left out neither is
MORE_IS_BETTER = frozenset("precision recall map50 map ap_small ap_medium ap_large".split())
LESS_IS_BETTER = frozenset("parameters size_mib gflops ms_1 ms_1_p95 ms_32 ms_32_p95".split())
INTERVALS = ("map50", "map")  # keys of columns for which an Entry has an interval, as an attribute of the same name
METRICS = ("mAP50-95", "mAP50")  # of differences, the chief one first
MINUS = "−"
FORMULAS = "P, R, mAP50 and mAP50-95 in YOLOv5's formulas, AP of small, medium and large objects by COCO's rule."
BRACKETS = "In brackets the 95 % bootstrap interval over the images."
TURNS = "Latency was measured with the models taking turns in one run."


class Cell(NamedTuple):
    """A cell of the table: what stands there, the interval below it, and whether it is the column's best."""

    text: str
    interval: str = ""
    best: bool = False


class Row(NamedTuple):
    """A row of the table: entry is the model's index, or None for published figures; note: the footnote's number."""

    label: str
    cells: list[Cell]
    entry: int | None
    note: int = 0


def printable(text: str) -> str:
    """One line of text without control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def elide(text: str, length: int) -> str:
    """The text in at most `length` characters: its middle, where it is longer, becomes three points."""
    if len(text) <= length:
        return text
    kept = max(length - 3, 2)
    return f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"[: max(length, 1)]


def present(value: Value) -> bool:
    """Whether there is a value: neither None nor nan."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def known(interval: Interval | None) -> bool:
    """Whether there is an interval, and not a figure alone."""
    return interval is not None and not math.isnan(interval.low)


def signed(value: float) -> str:
    """A difference with its sign, three digits."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def subject(comparison: Comparison) -> str:
    """What was compared, in one line."""
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
    """The columns in which some model or published row has a value, without the model's name."""
    rows = [{c.key: c.value(e) for c in COLUMNS} for e in comparison.entries]
    rows += [dict(r.values) for r in comparison.references]
    return [c for c in COLUMNS[1:] if any(present(row.get(c.key)) for row in rows)]


def table_rows(comparison: Comparison) -> list[Row]:
    """The rows of the table, by `shown_columns`: the models in their order, then the published figures."""
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
    # a published figure may be a word, such as "about 2"
    return printable(value) if isinstance(value, str) else column.text(value if present(value) else None)


def _best(column: Column, values: Sequence[Value]) -> str | None:
    """The best value as it is shown, so that what looks the same is marked the same; None where all are."""
    there = [v for v in values if present(v)]
    if column.key not in MORE_IS_BETTER | LESS_IS_BETTER or len({_text(column, v) for v in there}) < 2:
        return None
    return _text(column, max(there) if column.key in MORE_IS_BETTER else min(there))


def _interval_text(entry: Entry, key: str) -> str:
    interval = getattr(entry, key) if key in INTERVALS else None
    return f"[{interval.low:.3f}, {interval.high:.3f}]" if known(interval) else ""


def pairs(comparison: Comparison) -> dict[tuple[int, int], dict[str, Difference]]:
    """Of each two models, both ways round: metric -> difference; the metrics of METRICS, in that order."""
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
    """The difference with its sign, and its interval or nothing."""
    interval = difference.interval
    return signed(interval.value), f"[{signed(interval.low)}, {signed(interval.high)}]" if known(interval) else ""


def pairs_sentence(comparison: Comparison) -> str:
    """What the differences mean, and how many are decided."""
    chief = next(m for m in METRICS if any(d.metric == m for d in comparison.differences))
    of_chief = [d for d in comparison.differences if d.metric == chief]
    decided = sum(d.verdict != "undecided" for d in of_chief)
    return (
        "Row model minus column model, with the 95 % bootstrap interval. A pair is undecided where the interval "
        "includes 0. The interval covers the choice of the images, not the luck of the training: another seed may "
        f"move a model by more. By {chief} {decided} of {len(of_chief)} "
        f"pair{'s' if len(of_chief) != 1 else ''} {'are' if decided != 1 else 'is'} decided; of pairs that are in "
        "truth equal, about one in twenty comes out as decided by chance, of few images more."
    )


def conditions_of(comparison: Comparison, *words: str) -> list[tuple[str, str]]:
    """The facts whose name begins with one of these words, in any case."""
    return [(k, v) for k, v in comparison.facts if k.lower().startswith(words)]


def table_sentences(comparison: Comparison) -> list[str]:
    """What stands under the table: what is bold, by which formulas, and on what the latency was measured."""
    sentences = []
    if any(cell.best for row in table_rows(comparison) for cell in row.cells):
        sentences.append("Bold: the best of the column.")
    if any(e.results for e in comparison.entries) and not conditions_of(comparison, "accuracy", "protocol"):
        sentences.append(FORMULAS)
    if any(known(e.map) or known(e.map50) for e in comparison.entries):
        sentences.append(BRACKETS)
    if any(e.latency for e in comparison.entries) and not conditions_of(comparison, "latency"):
        sentences.append(TURNS)
    named = conditions_of(comparison, "accuracy", "protocol", "device", "precision", "latency")
    return sentences + [printable(f"{k[:1].upper()}{k[1:]}: {v}").rstrip(".") + "." for k, v in named]


def tile_entries(comparison: Comparison, row: PictureRow) -> list[int]:
    """Whose the tiles of a picture row are: indices of the models, of which those without accuracy may be left out."""
    everyone = list(range(len(comparison.entries)))
    scored = [k for k in everyone if comparison.entries[k].results]
    return scored if len(row.tiles) == len(scored) else everyone[: len(row.tiles)]


def short_labels(labels: Sequence[str], length: int) -> list[str]:
    """The labels in at most about `length` characters, no two of different models alike."""
    short: list[str] = []
    for label in map(printable, labels):
        text, number = elide(label, length), 2
        while text in short:
            text, number = f"{elide(label, length - 4)} ({number})", number + 1
        short.append(text)
    return short
