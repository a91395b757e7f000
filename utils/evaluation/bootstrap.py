"""Confidence intervals of mAP by bootstrapping the evaluated images (Efron, 1979).

Each draw resamples the images with replacement, to the original number, and computes the metrics again. The spread over
many draws shows how far the metrics depend on the choice of images; it does not cover the variance between trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from utils.evaluation.metrics import IOU_THRESHOLDS, compute_ap

# with fewer images or draws the intervals are unreliable: draws miss whole classes, and intervals become too narrow
LEAST_IMAGES, LEAST_DRAWS = 30, 100


class Interval(NamedTuple):
    """A metric's value, and the bounds between which 95 % of the draws lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Detections(NamedTuple):
    """The detections of an evaluation by class, sorted by descending confidence, and the number of labels.

    image: per class (n,) index of each detection's image; correct: per class (n, 10) bool, true positives at each IoU
    threshold; objects: (classes, images) number of labels.
    """

    image: list[np.ndarray]
    correct: list[np.ndarray]
    objects: np.ndarray


def by_class(
    correct: Sequence[np.ndarray], conf: Sequence[np.ndarray], pred_cls: Sequence[np.ndarray],
    true_cls: Sequence[np.ndarray],
) -> Detections:  # fmt: skip
    """Group the detections and labels of all images by class.

    Each argument has one entry per image: correct (m, 10) bool, conf and pred_cls (m,), true_cls (k,). Classes without
    labels are left out.
    """
    numbers = np.repeat(np.arange(len(correct)), [len(c) for c in correct])
    label_image = np.repeat(np.arange(len(correct)), [len(c) for c in true_cls])
    tp = np.concatenate([np.zeros((0, len(IOU_THRESHOLDS)), bool), *correct])
    confidence, predicted, true = (np.concatenate([np.zeros(0), *v]) for v in (conf, pred_cls, true_cls))
    order = np.argsort(-confidence, kind="stable")
    tp, predicted, numbers = tp[order], predicted[order], numbers[order]
    classes = np.unique(true)
    objects = np.array([np.bincount(label_image[true == c], minlength=len(correct)) for c in classes])
    mine = [predicted == c for c in classes]
    return Detections([numbers[m] for m in mine], [tp[m] for m in mine], objects.reshape(len(classes), len(correct)))


def mean_ap(detections: Detections, counts: np.ndarray) -> tuple[float, float]:
    """Return mAP50 and mAP50-95 by YOLOv5's formulas on a set that contains image i counts[i] times.

    counts: (images,) int. Classes without labels in that set are left out of the mean.
    """
    totals = detections.objects @ counts
    maps = [
        _class_ap(image, correct, counts, total)
        for image, correct, total in zip(detections.image, detections.correct, totals, strict=True)
        if total
    ]
    if not maps:
        return 0.0, 0.0
    means = np.mean(maps, 0)
    return float(means[0]), float(means.mean())


def _class_ap(image: np.ndarray, correct: np.ndarray, counts: np.ndarray, total: int) -> np.ndarray:
    """Return the AP of one class at each IoU threshold, (10,).

    image: (n,); correct: (n, 10); total: number of labels. A precision-recall curve has its corners at true positives.
    Of a run of detections that are false positives at every IoU, only the last one is therefore kept: about a hundredth
    of the points remains, and the result is the same.
    """
    weight = counts[image]
    passed = weight.cumsum()  # number of detections so far, each counted as often as its image was drawn
    at = np.flatnonzero(correct.any(1) & (weight > 0))
    if not len(at):
        return np.zeros(len(IOU_THRESHOLDS))
    times = weight[at]
    row = np.repeat(at, times)
    copy = np.arange(len(row)) - np.repeat(times.cumsum() - times, times)  # 0, 1, ... for copies of one detection
    rank = passed[row] - weight[row] + copy + 1
    before_next = np.append(rank[1:] - 1, passed[-1])
    hits = np.repeat(correct[row].cumsum(0), 2, axis=0)
    ranks = np.column_stack((rank, before_next)).ravel()
    if rank[0] > 1:  # false positives before the first true positive
        hits, ranks = np.concatenate((np.zeros_like(hits[:1]), hits)), np.append(rank[0] - 1, ranks)
    recall, precision = hits / total, hits / ranks[:, None]
    return np.array([compute_ap(recall[:, t], precision[:, t])[0] for t in range(len(IOU_THRESHOLDS))])


def resample(
    models: Sequence[Detections], draws: int, seed: int = 0, each: Callable[[range], Iterable[int]] = iter
) -> np.ndarray:
    """Return mAP50 and mAP50-95 of each model on the original images and on `draws` draws, the same for all models.

    each: wraps the range of draws, to show progress. Returns (draws + 1, models, 2); the first row holds the values on
    the original images.
    """
    images = models[0].objects.shape[1]
    rng = np.random.default_rng(seed)
    figures = np.zeros((draws + 1, len(models), 2))
    for d in each(range(draws + 1)):
        drawn = rng.integers(0, images, images) if d else np.arange(images)
        counts = np.bincount(drawn, minlength=images)
        figures[d] = [mean_ap(m, counts) for m in models]
    return figures


def interval_of(figures: np.ndarray) -> Interval:
    """Return the 95 % interval of a metric's values (draws + 1,), of which the first is on the original images."""
    low, high = np.quantile(figures[1:], (0.025, 0.975)) if len(figures) > 1 else (np.nan, np.nan)
    return Interval(float(figures[0]), float(low), float(high))
