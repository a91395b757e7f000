"""Other ways to score detections than YOLOv5's: PASCAL VOC's AP, and COCO's AP by object size.

Detections `found` are (m, 6): corners in pixels of the original image, confidence, class. The objects `truth` of an
image are (k, 7): class, corners, area, difficult (1 or 0). A difficult object is one that nobody need find: a hit on it
is neither rewarded nor punished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.evaluation.metrics import EPS, IOU_THRESHOLDS

SIZES = ("all", "small", "medium", "large")
# COCO's, in square pixels; bounds belong to both sides
AREAS = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])
MOST_PER_CLASS = 100  # COCO looks at this many detections of a class in an image
FALSE, HIT, IGNORED = 0, 1, 2  # what becomes of a detection


@dataclass
class ProtocolScore:
    """The figures of a protocol: per class, for `classes`, and of the whole set by name.

    ap: (classes, columns); objects, difficult: (classes,), the first without the second.
    """

    classes: np.ndarray
    ap: np.ndarray
    objects: np.ndarray
    difficult: np.ndarray
    columns: tuple[str, ...] = ("AP50",)
    figures: dict[str, float] = field(default_factory=dict)


def overlap(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """IoU of boxes a (m, 4) with b (k, 4), corners: (m, k) float64; where b is `crowd` (k,), the share of a in b.

    The union has no small number added to it: an IoU that is 0.5 comes out as 0.5.
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
    """How many objects of each class are not difficult, and how many are: two (nc,) arrays of int."""
    rows = np.concatenate([np.zeros((0, 7)), *truths])
    hard = rows[:, 6] > 0
    plain, difficult = (np.bincount(rows[which, 0].astype(int), minlength=nc) for which in (~hard, hard))
    return plain, difficult


def match_voc(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Judge one image's detections by the rule of the VOC devkit: (m,) int8 of FALSE, HIT, IGNORED.

    By falling confidence, each takes the object of its class it overlaps most. With IoU 0.5 or more: ignored if that
    is difficult, a hit if nobody took it before, else false; it does not look for a second object.
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
    """AP of a curve, recall and precision (n,) along falling confidence.

    points: VOC 2007's mean of the best precision at a recall of 0, 0.1, ... 1 or more; else VOC 2010's area under the
    envelope, without interpolation (Everingham et al., 2010 and the devkits).
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points:
        at = np.searchsorted(recall, np.arange(11) / 10)
        return float(np.concatenate((envelope, [0.0]))[at].mean())
    return float((np.diff(np.concatenate(([0.0], recall))) * envelope).sum())


def score_voc(
    found: Sequence[np.ndarray], truths: Sequence[np.ndarray], nc: int, points: bool = False
) -> ProtocolScore:
    """VOC's AP50 of a set, from the detections and objects of each image; `points` as for `voc_ap`.

    Equal confidences keep the order of the images. Classes without objects, or with difficult ones only, are left out.
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
    """Judge one image's detections for each of COCO's areas and IoU thresholds: (m, 4, 10) int8.

    COCO's ignore rule: objects outside the area, and difficult ones, count for nothing, nor does a detection that finds
    one of them (it prefers one that counts) or that finds nothing and lies outside the area itself.
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
        # an object that counts comes before an ignored one, then the one overlapped most, the last of equals
        rank = np.where((iou[d] >= thresholds) & (~taken | crowd), iou[d] + counts, -1.0)
        best = len(truth) - 1 - rank[..., ::-1].argmax(2)
        area, level = np.nonzero(rank.max(2) > 0)
        chosen = best[area, level]
        taken[area, level, chosen] = True
        outcome[d, area, level] = np.where(ignored[area, chosen], IGNORED, HIT)
    return outcome


def _outside(area: np.ndarray) -> np.ndarray:
    """Whether areas (n,) lie outside each of AREAS: (n, 4)."""
    return (area[:, None] < AREAS[:, 0]) | (area[:, None] > AREAS[:, 1])


def coco_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """COCO's AP of a curve (n,): the mean of the envelope at 101 points of recall, 0 beyond the last."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.concatenate((envelope, [0.0]))[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())


def _ap_of_ranking(outcome: np.ndarray, objects: int) -> float:
    """COCO's AP of detections (n,) along falling confidence; recall grows, and the envelope turns, at hits only."""
    at = np.flatnonzero(outcome == HIT)
    hits = np.arange(1, len(at) + 1)
    return coco_ap(hits / objects, hits / (hits + (outcome == FALSE).cumsum()[at]))


def size_ap(found: Sequence[np.ndarray], truths: Sequence[np.ndarray], nc: int) -> tuple[np.ndarray, np.ndarray]:
    """COCO's AP50-95 of all, small, medium and large objects (4,), nan where there is none, and their numbers (4,)."""
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
