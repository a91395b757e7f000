"""The figures of a comparison of detectors, and its table: one list of columns for the web page, Markdown and csv."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from utils.evaluation.bootstrap import Interval
from utils.evaluation.scoring import ImageRecord, Results

Value = float | int | str | None
ROUNDS_FOR_P95 = 20  # with fewer it is the slowest round, which says nothing


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of a training: epochs done; seconds of training and validating, None where no run's folder tells.

    curves: column of results.csv -> values (epochs,). options, hyp: flags of train.py and hyper-parameters.
    """

    epochs: int
    seconds: float | None = None
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    hyp: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Entry:
    """One model of a comparison.

    source: the checkpoint, exported file or yaml it was read from. cfg: file name of its model yaml. bytes: size of the
    weights file in half precision, or of what was exported. gflops: of one image at imgsz. Of an exported model cfg,
    parameters, gflops and strides are not known. latency: batch size -> seconds of each timed pass (rounds,).
    results, records: of the evaluation, one record per image in the order of the paths; None for an untrained model.
    remark: what about the model is not as its file has it.
    """

    label: str
    source: str
    cfg: str
    parameters: int | None
    bytes: int
    gflops: float | None
    imgsz: int
    strides: tuple[int, ...]
    latency: Mapping[int, np.ndarray] = field(default_factory=dict)
    results: Results | None = None
    records: Sequence[ImageRecord] | None = None
    training: TrainingRecord | None = None
    map50: Interval | None = None
    map: Interval | None = None
    remark: str = ""


@dataclass(frozen=True)
class Reference:
    """Published figures, shown beside ours: values by key of a column."""

    label: str
    values: Mapping[str, Value]
    note: str


@dataclass(frozen=True)
class Difference:
    """How much better `first` is than `second` (indices of entries) by a metric, on the same images."""

    first: int
    second: int
    metric: str
    interval: Interval

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval leaves 0 out, else `undecided`."""
        if self.interval.low > 0:
            return "better"
        return "worse" if self.interval.high < 0 else "undecided"


@dataclass(frozen=True)
class Column:
    """A column of the table: key in table.csv, heading and unit, how the value is got and shown."""

    key: str
    heading: str
    value: Callable[[Entry], Value]
    show: Callable[[Any], str] = str
    meaning: str = ""

    def text(self, value: Value) -> str:
        """A value as it is shown; a dash where there is none."""
        return "-" if value is None else self.show(value)


def number(digits: int) -> Callable[[float], str]:
    """Show a number with so many digits after the point."""
    return lambda v: f"{v:,.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as `45 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _summary(k: int) -> Callable[[Entry], Value]:
    return lambda e: float(e.results.summary[k]) if e.results else None


def _size(k: int) -> Callable[[Entry], Value]:
    return lambda e: float(e.results.size_ap[k]) if e.results and not np.isnan(e.results.size_ap[k]) else None


def _latency(batch: int, quantile: float, least: int = 1) -> Callable[[Entry], Value]:
    """Milliseconds per image, from `least` rounds on."""

    def value(entry: Entry) -> Value:
        times = entry.latency.get(batch, ())
        return float(np.quantile(times, quantile)) * 1e3 / batch if len(times) >= least else None

    return value


COLUMNS = (
    Column("model", "model", lambda e: e.label),
    Column("parameters", "parameters", lambda e: e.parameters, number(0)),
    Column("size_mib", "file, MiB", lambda e: e.bytes / 2**20, number(2), "weights in half precision; of exported "
           "models all that belongs to them"),
    Column("gflops", "GFLOPs", lambda e: e.gflops, lambda v: number(2 if v >= 1 else 3)(v),
           "2 per multiply-add, one image of the size tested"),
    Column("imgsz", "size, px", lambda e: e.imgsz, number(0), "side of the images tested"),
    Column("strides", "strides", lambda e: "/".join(map(str, e.strides)) or None),
    Column("precision", "P", _summary(0), number(3), "precision at the confidence of the best mean F1"),
    Column("recall", "R", _summary(1), number(3), "recall there"),
    Column("map50", "mAP50", _summary(2), number(3), "the interval of a value near 0 may lie above it: an image with a "
           "rare hit that is drawn several times raises it"),
    Column("map", "mAP50-95", _summary(3), number(3)),
    Column("ap_small", "AP small", _size(1), number(3), "AP50-95 by COCO's rule, objects below 32 x 32 px"),
    Column("ap_medium", "AP medium", _size(2), number(3), "up to 96 x 96 px"),
    Column("ap_large", "AP large", _size(3), number(3), "above"),
    Column("ms_1", "batch 1, ms", _latency(1, 0.5), number(1), "median time of the network for one image"),
    Column("ms_1_p95", "p95", _latency(1, 0.95, ROUNDS_FOR_P95), number(1), "95 % of the passes took no longer"),
    Column("ms_32", "batch 32, ms", _latency(32, 0.5), number(1), "the same per image, 32 at a time"),
    Column("ms_32_p95", "p95", _latency(32, 0.95, ROUNDS_FOR_P95), number(1)),
    Column("epochs", "epochs", lambda e: e.training.epochs if e.training else None, number(0)),
    Column("train_seconds", "training", lambda e: e.training.seconds if e.training else None,
           duration, "time of training and validating, as the run's folder has it"),
)  # fmt: skip


def table(entries: Sequence[Entry]) -> list[dict[str, Value]]:
    """The table's values, unrounded: a row per model, by key of COLUMNS; None where there is none."""
    return [{c.key: c.value(e) for c in COLUMNS} for e in entries]


def pareto(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """The indices, by rising cost, of those that no other beats: none costs at most as much and gains more, or costs
    less and gains as much."""  # fmt: skip
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i]))
    front: list[int] = []
    for i in order:
        last = front[-1] if front else None
        if last is None or gain[i] > gain[last] or (gain[i], cost[i]) == (gain[last], cost[last]):
            front.append(i)
    return front


def unlike(entries: Sequence[Entry], keys: Sequence[str]) -> list[str]:
    """Where the trainings differ, `what: model value, ...` for each: what makes a comparison unfair.

    keys: options to look at; hyper-parameters and the epochs done are looked at too.
    """
    trained = [e for e in entries if e.training]
    hyps = sorted({k for e in trained for k in e.training.hyp})
    values = {"epochs done": [e.training.epochs for e in trained]}
    values |= {key.replace("_", "-"): [e.training.options.get(key, "unknown") for e in trained] for key in keys}
    values |= {f"hyper-parameter {key}": [e.training.hyp.get(key, "unknown") for e in trained] for key in hyps}
    lines = []
    for what, each in values.items():
        if len({str(v) for v in each}) > 1:
            named = (f"{e.label} {v if v != '' else '(none)'}" for e, v in zip(trained, each, strict=True))
            lines.append(f"{what}: {', '.join(named)}")
    return lines


@dataclass(frozen=True)
class PictureRow:
    """One image as each model sees it: JPEG files in the order of the entries, all of one size."""

    caption: str
    tiles: Sequence[bytes]


@dataclass
class Comparison:
    """All that a report shows.

    facts: (what, value) pairs of the conditions, such as data, images, protocol, device. notes: sentences on what to
    mind, the unequal trainings first. command: what to type to have it again.
    """

    title: str
    entries: list[Entry]
    names: Mapping[int, str]
    differences: list[Difference] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[PictureRow] = field(default_factory=list)
    command: str = ""
