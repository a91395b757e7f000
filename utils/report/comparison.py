"""The data of a comparison of detectors, and the columns of its table, which HTML, Markdown and CSV share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from utils.evaluation.bootstrap import Interval
from utils.evaluation.scoring import ImageRecord, Results

Value = float | int | str | None
ROUNDS_FOR_P95 = 20  # with fewer rounds the 95th percentile would be little more than the slowest round


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of a model's training.

    epochs: epochs completed. seconds: time of training and validation, None if there is no run's folder that records
    it. curves: column of results.csv -> values (epochs,). options, hyp: flags of train.py and hyperparameters.
    """

    epochs: int
    seconds: float | None = None
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    hyp: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Entry:
    """One model of a comparison.

    source: the checkpoint, exported file or yaml that the model was read from. cfg: file name of its model yaml. bytes:
    size of the weights file in half precision, or of the exported files. gflops: for one image of size imgsz. cfg,
    parameters, gflops and strides are not known for an exported model. latency: batch size -> seconds of each timed
    pass, (rounds,). results, records: of the evaluation, one record per image sorted by path; None for an untrained
    model. map50, map: intervals of mAP50 and mAP50-95. remark: how the model differs from its file, if it does.
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
    """Published results, shown beside the measured ones; values: column key -> value."""

    label: str
    values: Mapping[str, Value]
    note: str


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between the models `first` and `second` (indices of entries) on the same images."""

    first: int
    second: int
    metric: str
    interval: Interval

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the interval does not include 0, otherwise `undecided`."""
        if self.interval.low > 0:
            return "better"
        return "worse" if self.interval.high < 0 else "undecided"


@dataclass(frozen=True)
class Column:
    """A column of the table.

    key: its name in table.csv. heading: title with unit. value: returns an entry's value. show: formats it. meaning: an
    explanation.
    """

    key: str
    heading: str
    value: Callable[[Entry], Value]
    show: Callable[[Any], str] = str
    meaning: str = ""

    def text(self, value: Value) -> str:
        """Format a value for the table; a dash stands for None."""
        return "-" if value is None else self.show(value)


def number(digits: int) -> Callable[[float], str]:
    """Return a function that formats a number with `digits` decimal places."""
    return lambda v: f"{v:,.{digits}f}"


def duration(seconds: float) -> str:
    """Format seconds as `45 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _summary(k: int) -> Callable[[Entry], Value]:
    return lambda e: float(e.results.summary[k]) if e.results else None


def _size(k: int) -> Callable[[Entry], Value]:
    return lambda e: float(e.results.size_ap[k]) if e.results and not np.isnan(e.results.size_ap[k]) else None


def _latency(batch: int, quantile: float, least: int = 1) -> Callable[[Entry], Value]:
    """Return a function for the quantile of the milliseconds per image, None with fewer than `least` rounds."""

    def value(entry: Entry) -> Value:
        times = entry.latency.get(batch, ())
        return float(np.quantile(times, quantile)) * 1e3 / batch if len(times) >= least else None

    return value


COLUMNS = (
    Column("model", "model", lambda e: e.label),
    Column("parameters", "parameters", lambda e: e.parameters, number(0)),
    Column("size_mib", "file, MiB", lambda e: e.bytes / 2**20, number(2), "weights in half precision; for "
           "exported models, all their files"),
    Column("gflops", "GFLOPs", lambda e: e.gflops, lambda v: number(2 if v >= 1 else 3)(v),
           "for one image of the tested size; a multiply-add counts as 2 operations"),
    Column("imgsz", "size, px", lambda e: e.imgsz, number(0), "image size of the evaluation"),
    Column("strides", "strides", lambda e: "/".join(map(str, e.strides)) or None),
    Column("precision", "P", _summary(0), number(3), "precision at the confidence of the best mean F1"),
    Column("recall", "R", _summary(1), number(3), "recall at the same confidence"),
    Column("map50", "mAP50", _summary(2), number(3), "the interval of a value near 0 may lie above it: draws that "
           "repeat an image with a rare true positive raise it"),
    Column("map", "mAP50-95", _summary(3), number(3)),
    Column("ap_small", "AP small", _size(1), number(3), "AP50-95 by COCO's rule, objects up to 32 x 32 px"),
    Column("ap_medium", "AP medium", _size(2), number(3), "the same, objects from 32 x 32 to 96 x 96 px"),
    Column("ap_large", "AP large", _size(3), number(3), "the same, objects from 96 x 96 px"),
    Column("ms_1", "batch 1, ms", _latency(1, 0.5), number(1), "median time of the network for one image"),
    Column("ms_1_p95", "p95", _latency(1, 0.95, ROUNDS_FOR_P95), number(1), "95 % of the passes took at most this"),
    Column("ms_32", "batch 32, ms", _latency(32, 0.5), number(1), "median time per image in batches of 32"),
    Column("ms_32_p95", "p95", _latency(32, 0.95, ROUNDS_FOR_P95), number(1)),
    Column("epochs", "epochs", lambda e: e.training.epochs if e.training else None, number(0)),
    Column("train_seconds", "training", lambda e: e.training.seconds if e.training else None,
           duration, "time of training and validation, as recorded in the run's folder"),
)  # fmt: skip


def table(entries: Sequence[Entry]) -> list[dict[str, Value]]:
    """Return the table's values, unrounded: a dict per model, by key of COLUMNS; None for unknown values."""
    return [{c.key: c.value(e) for c in COLUMNS} for e in entries]


def pareto(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Return the indices of the Pareto front, sorted by ascending cost.

    A point is on the front unless another one has a higher gain at no higher cost, or the same gain at a lower cost.
    """  # fmt: skip
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i]))
    front: list[int] = []
    for i in order:
        last = front[-1] if front else None
        if last is None or gain[i] > gain[last] or (gain[i], cost[i]) == (gain[last], cost[last]):
            front.append(i)
    return front


def unlike(entries: Sequence[Entry], keys: Sequence[str]) -> list[str]:
    """Return the differences between the trainings, which make a comparison unfair, as `what: model value, ...` lines.

    keys: the options to compare; the hyperparameters and the epochs completed are always compared.
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
    """One image with the detections of each model: JPEG files in the order of the entries, all of the same size."""

    caption: str
    tiles: Sequence[bytes]


@dataclass
class Comparison:
    """The whole content of a report.

    facts: (name, value) pairs of the conditions, such as data, images, protocol, device. notes: caveats, differences
    between the trainings first. command: the command line that reproduces the comparison.
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
