"""How sure the figures of an evaluation are: the bootstrap over its images (Efron, 1979).

Images are drawn with replacement, as many as there are, and the figures worked out again, many times. The spread says
what another choice of images could have given; it says nothing of another training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from utils.evaluation.metrics import IOU_THRESHOLDS, compute_ap

# with fewer the draws say little: classes drop out of them, and intervals come out too narrow
LEAST_IMAGES, LEAST_DRAWS = 30, 100


class Interval(NamedTuple):
    """A figure, and between which two values 95 % of the draws lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Detections(NamedTuple):
    """What is needed of an evaluation, per class: falling confidence, hits at each IoU threshold, and image numbers.

    image: per class (n,) numbers of the images, correct: per class (n, 10) bool; objects: (classes, images) counts.
    """

    image: list[np.ndarray]
    correct: list[np.ndarray]
    objects: np.ndarray


def by_class(
    correct: Sequence[np.ndarray], conf: Sequence[np.ndarray], pred_cls: Sequence[np.ndarray],
    true_cls: Sequence[np.ndarray],
) -> Detections:  # fmt: skip
    """Sort the detections and labels of images by class.

    Per image: correct (m, 10) bool, conf and pred_cls (m,), true_cls (k,). Classes without labels are left out.
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
    """mAP50 and mAP50-95 in YOLOv5's formulas where image i is there counts[i] times; classes without labels left out.

    counts: (images,) int.
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
    """The AP of one class at each IoU threshold, (10,); image (n,), correct (n, 10), total objects.

    A precision-recall curve has its corners at hits: of a run of detections that are hits at no IoU only the last one
    is kept, which leaves a hundredth of the points and changes nothing.
    """
    weight = counts[image]
    passed = weight.cumsum()  # how many detections, each as often as its image was drawn
    at = np.flatnonzero(correct.any(1) & (weight > 0))
    if not len(at):
        return np.zeros(len(IOU_THRESHOLDS))
    times = weight[at]
    row = np.repeat(at, times)
    copy = np.arange(len(row)) - np.repeat(times.cumsum() - times, times)  # 0, 1, ... of the same detection
    rank = passed[row] - weight[row] + copy + 1
    before_next = np.append(rank[1:] - 1, passed[-1])
    hits = np.repeat(correct[row].cumsum(0), 2, axis=0)
    ranks = np.column_stack((rank, before_next)).ravel()
    if rank[0] > 1:  # misses before the first hit
        hits, ranks = np.concatenate((np.zeros_like(hits[:1]), hits)), np.append(rank[0] - 1, ranks)
    recall, precision = hits / total, hits / ranks[:, None]
    return np.array([compute_ap(recall[:, t], precision[:, t])[0] for t in range(len(IOU_THRESHOLDS))])


def resample(
    models: Sequence[Detections], draws: int, seed: int = 0, each: Callable[[range], Iterable[int]] = iter
) -> np.ndarray:
    """mAP50 and mAP50-95 of each model on the images as they are and on `draws` draws, the same for all models.

    each: wraps the range of draws, to show progress. Returns (draws + 1, models, 2), the first row without drawing.
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
    """The 95 % interval of figures (draws + 1,), the first of which is that of the images as they are."""
    low, high = np.quantile(figures[1:], (0.025, 0.975)) if len(figures) > 1 else (np.nan, np.nan)
    return Interval(float(figures[0]), float(low), float(high))
