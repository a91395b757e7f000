"""Evaluation protocols other than YOLOv5's: PASCAL VOC's AP, and COCO's AP by object size.

The detections `found` of an image are (m, 6): corners in pixels of the original image, confidence, class. Its ground
truth `truth` is (k, 7): class, corners, area, difficult (1 or 0). A difficult object need not be detected: a detection
that matches it counts neither as a true nor as a false positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.evaluation.metrics import EPS, IOU_THRESHOLDS

SIZES = ("all", "small", "medium", "large")
# COCO's area ranges in square pixels; an object on a bound belongs to both ranges
AREAS = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])
MOST_PER_CLASS = 100  # COCO's limit of evaluated detections per class and image
FALSE, HIT, IGNORED = 0, 1, 2  # outcomes: false positive, true positive, not counted


@dataclass
class ProtocolScore:
    """The metrics of a protocol, per class and for the whole set.

    classes: (classes,) class indices. ap: (classes, columns). objects: (classes,) number of objects that are not
    difficult. difficult: (classes,) number of difficult objects. columns: names of the columns of ap. figures: metrics
    of the whole set by name.
    """

    classes: np.ndarray
    ap: np.ndarray
    objects: np.ndarray
    difficult: np.ndarray
    columns: tuple[str, ...] = ("AP50",)
    figures: dict[str, float] = field(default_factory=dict)


def overlap(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Return the IoU of boxes a (m, 4) with boxes b (k, 4), given by their corners: (m, k) float64.

    crowd: (k,) marks boxes of b for which the intersection is divided by the area of a instead of the union. No epsilon
    is added to the union, so that an IoU of exactly 0.5 is returned as 0.5.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    inter = sides.clip(0).prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1)[:, None], (b[:, 2:] - b[:, :2]).prod(1)[None]
    union = area_a + area_b - inter
    if crowd is not None:
        union = np.where(crowd[None] > 0, area_a, union)
    return inter / np.maximum(union, EPS)


def class_counts(truths: Sequence[np.ndarray], nc: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of objects per class that are not difficult and that are difficult: two (nc,) int arrays."""
    rows = np.concatenate([np.zeros((0, 7)), *truths])
    hard = rows[:, 6] > 0
    plain, difficult = (np.bincount(rows[which, 0].astype(int), minlength=nc) for which in (~hard, hard))
    return plain, difficult


def match_voc(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Match one image's detections by the rule of the VOC devkit; returns (m,) int8 of FALSE, HIT, IGNORED.

    In order of descending confidence, each detection is compared with the object of its class that it overlaps most. If
    the IoU is 0.5 or more, the detection is IGNORED if the object is difficult, a HIT if no earlier detection matched
    the object, and otherwise FALSE; no other object is tried. Below 0.5 it is FALSE.
    """
    outcome = np.full(len(found), FALSE, np.int8)
    if not len(found) or not len(truth):
        return outcome
    iou = np.where(found[:, 5:6] == truth[None, :, 0], overlap(found[:, :4], truth[:, 1:5]), -1.0)
    choice, best = iou.argmax(1), iou.max(1)
    order = np.argsort(-found[:, 4], kind="stable")
    order = order[best[order] >= 0.5]
    taken, first = np.unique(choice[order], return_index=True)
    outcome[order[first]] = HIT
    outcome[order[np.isin(choice[order], taken[truth[taken, 6] > 0])]] = IGNORED
    return outcome


def voc_ap(recall: np.ndarray, precision: np.ndarray, points: bool) -> float:
    """Compute VOC's AP from recall and precision, (n,) in order of descending confidence.

    points: use VOC 2007's 11-point AP, the mean over the recalls 0, 0.1, ... 1 of the best precision at that recall or
    above; otherwise VOC 2010's exact area under the precision envelope (Everingham et al., 2010, and the devkits).
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points:
        at = np.searchsorted(recall, np.arange(11) / 10)
        return float(np.concatenate((envelope, [0.0]))[at].mean())
    return float((np.diff(np.concatenate(([0.0], recall))) * envelope).sum())


def score_voc(
    found: Sequence[np.ndarray], truths: Sequence[np.ndarray], nc: int, points: bool = False
) -> ProtocolScore:
    """Compute VOC's AP50 of a set from the detections and objects of each image; `points` as for `voc_ap`.

    Detections of equal confidence keep the order of the images. Classes that have no objects, or difficult ones only,
    are left out.
    """
    rows = np.concatenate([np.zeros((0, 6)), *found])
    outcome = np.concatenate([np.zeros(0, np.int8), *map(match_voc, found, truths)])
    plain, difficult = class_counts(truths, nc)
    classes = np.flatnonzero(plain)
    ap = np.zeros((len(classes), 1))
    for i, c in enumerate(classes):
        mine = np.flatnonzero((rows[:, 5] == c) & (outcome != IGNORED))
        hits = outcome[mine[np.argsort(-rows[mine, 4], kind="stable")]] == HIT
        summed = hits.cumsum()
        ap[i] = voc_ap(summed / plain[c], summed / np.arange(1, len(hits) + 1), points)
    mean = float(ap.mean()) if len(classes) else 0.0
    return ProtocolScore(classes, ap, plain[classes], difficult[classes], figures={"mAP50": mean})


def match_sizes(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Match one image's detections for each of COCO's area ranges and IoU thresholds; returns (m, 4, 10) int8.

    COCO's rule: difficult objects and objects outside the area range are ignored. A detection is IGNORED if it matches
    an ignored object (an object that is not ignored takes precedence), or if it matches no object and its own area is
    outside the range.
    """
    sides = found[:, 2:4].astype(np.float64) - found[:, :2]
    outside = _outside(sides.prod(1))
    outcome = np.where(outside[:, :, None], IGNORED, FALSE).repeat(len(IOU_THRESHOLDS), 2).astype(np.int8)
    order = np.argsort(-found[:, 4], kind="stable")
    if len(found) > MOST_PER_CLASS:
        beyond = np.concatenate([order[found[order, 5] == c][MOST_PER_CLASS:] for c in np.unique(found[:, 5])])
        outcome[beyond] = IGNORED
        order = order[~np.isin(order, beyond)]
    if not len(found) or not len(truth):
        return outcome
    crowd = truth[:, 6] > 0
    iou = np.where(found[:, 5:6] == truth[None, :, 0], overlap(found[:, :4], truth[:, 1:5], crowd), -1.0)
    ignored = _outside(truth[:, 5]).T | crowd
    counts = 2.0 * ~ignored[:, None]
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    taken = np.zeros((len(AREAS), len(thresholds), len(truth)), bool)
    for d in order[iou[order].max(1) >= IOU_THRESHOLDS[0]]:
        # prefer objects that are not ignored, then the highest IoU, then the last object
        rank = np.where((iou[d] >= thresholds) & (~taken | crowd), iou[d] + counts, -1.0)
        best = len(truth) - 1 - rank[..., ::-1].argmax(2)
        area, level = np.nonzero(rank.max(2) > 0)
        chosen = best[area, level]
        taken[area, level, chosen] = True
        outcome[d, area, level] = np.where(ignored[area, chosen], IGNORED, HIT)
    return outcome


def _outside(area: np.ndarray) -> np.ndarray:
    """Return whether areas (n,) are outside each range of AREAS: (n, 4)."""
    return (area[:, None] < AREAS[:, 0]) | (area[:, None] > AREAS[:, 1])


def coco_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Compute COCO's AP of a curve (n,): the mean of the precision envelope at 101 recalls, 0 above the highest."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.concatenate((envelope, [0.0]))[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())


def _ap_of_ranking(outcome: np.ndarray, objects: int) -> float:
    """Compute COCO's AP from outcomes (n,) in order of descending confidence.

    Only true positives are points of the curve, since recall and the precision envelope change nowhere else.
    """
    at = np.flatnonzero(outcome == HIT)
    hits = np.arange(1, len(at) + 1)
    return coco_ap(hits / objects, hits / (hits + (outcome == FALSE).cumsum()[at]))


def size_ap(found: Sequence[np.ndarray], truths: Sequence[np.ndarray], nc: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute COCO's AP50-95 for the object sizes of SIZES, (4,), and the numbers of objects, (4,).

    The AP is nan for a size without objects.
    """
    rows = np.concatenate([np.zeros((0, 6)), *found])
    nothing = np.zeros((0, len(AREAS), len(IOU_THRESHOLDS)), np.int8)
    outcome = np.concatenate([nothing, *map(match_sizes, found, truths)])
    objects = np.concatenate([np.zeros((0, 7)), *truths])
    counted = ~_outside(objects[:, 5]) & (objects[:, 6:7] == 0)
    per_class: list[list[float]] = [[] for _ in AREAS]
    for c in range(nc):
        total = counted[objects[:, 0] == c].sum(0)
        if not total.any():
            continue
        mine = np.flatnonzero(rows[:, 5] == c)
        ranked = outcome[mine[np.argsort(-rows[mine, 4], kind="stable")]].transpose(1, 2, 0).copy()
        for a in np.flatnonzero(total):
            per_class[a].append(np.mean([_ap_of_ranking(column, total[a]) for column in ranked[a]]))
    return np.array([np.mean(v) if v else np.nan for v in per_class]), counted.sum(0)
