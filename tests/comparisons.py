"""Small comparisons for tests of the report: fabricated detections, scored as val.py scores them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from utils.evaluation.bootstrap import Interval
from utils.evaluation.metrics import IOU_THRESHOLDS, process_batch
from utils.evaluation.scoring import ImageRecord, Part, Results, Settings, results_of
from utils.report.comparison import Comparison, Difference, Entry, PictureRow, Reference, TrainingRecord

NAMES = {0: "cat", 1: "dog", 2: "pottedplant"}


def results(quality: float, seed: int = 0) -> Results:
    """Of 8 images with a label of each class, which a detector finds the surer the higher its quality in [0, 1]."""
    rng = np.random.default_rng(seed)
    records = []
    for k in range(8):
        true = np.array([[c, 40 * c, 10, 40 * c + 30, 50] for c in NAMES], np.float32)
        boxes = true[:, 1:] + rng.normal(0, 5 * (1 - quality), (3, 4))
        found = np.concatenate((boxes, rng.random((3, 1)), true[:, :1]), 1)
        found = found[np.argsort(-found[:, 4])].astype(np.float32)
        correct = process_batch(torch.from_numpy(found), torch.from_numpy(true), torch.tensor(IOU_THRESHOLDS))
        records.append(ImageRecord(f"{k}.jpg", found, true, correct.numpy()))
    return results_of(Part(records, [], np.zeros(3), []), NAMES, Settings(by_size=False))


def entry(label: str, k: int = 0, scored: bool = True, trained: bool = True, batches: Sequence[int] = (1, 32)) -> Entry:
    """The k-th model: the larger k, the larger, slower and better."""
    curves = {"epoch": np.arange(4.0), "metrics/mAP_0.5:0.95": np.array([0.1, 0.2, 0.25, 0.3]) * (1 + k),
              **{f"train/{name}_loss": np.array([0.4, 0.3, 0.25, 0.2]) / (1 + k) for name in ("box", "obj", "cls")},
              **{f"time/{name}": np.array([600.0, 500.0, 500.0, 500.0]) for name in ("data", "step", "val")}}
    one = Entry(label, f"runs/{k}/best.pt", "x.yaml", 1000 * (k + 1), 2**20 * (k + 1), 1.5 * (k + 1), 640, (8, 16, 32),
                {b: np.array([0.01, 0.012, 0.02]) * (k + 1) * b**0.5 for b in batches},
                training=TrainingRecord(4, 7200.0, curves, {}) if trained else None)  # fmt: skip
    if scored:
        one.results = results(1 - 0.7 / (1 + k), k)
        _, _, map50, mean = one.results.summary
        one.map50, one.map = (Interval(v, v - 0.05, v + 0.04) for v in (map50, mean))
    return one


def comparison(
    labels: Sequence[str] = ("small", "large"), pictures: int = 1, **flags: bool | Sequence[int]
) -> Comparison:
    """Models with all pairs: each is better than the one before by mAP50-95, and undecided by mAP50."""
    entries = [entry(label, k, **flags) for k, label in enumerate(labels)]
    made = Comparison("a title", entries, NAMES)
    if not flags.get("scored", True):
        return made
    for i in range(len(labels)):
        for j in range(i + 1, len(labels)):
            made.differences += [Difference(i, j, "mAP50-95", Interval(-0.1, -0.15, -0.05)),
                                 Difference(i, j, "mAP50", Interval(0.0125, -0.02, 0.03))]  # fmt: skip
    tile = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    made.pictures = [PictureRow(f"{n}.jpg", [tile] * len(labels)) for n in range(pictures)]
    return made


def published(**values: float | str) -> Reference:
    return Reference("article", values, "Table 3, another split")
