"""Non-maximum suppression of YOLOv5 head output: exact, for a whole batch at once, in numpy.

All images and classes are processed in parallel: in each round, every class of every image keeps its best remaining box
and removes the boxes that overlap it. Boxes with low scores are only processed if they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.boxes import xywh2xyxy

MAX_CANDIDATES = 30000  # at most so many candidates of an image, those with the best scores, enter NMS


class Candidates(NamedTuple):
    """The (box, class) pairs of one image that are above the confidence threshold.

    xywh: (n, 4) boxes. scores: (m,) one per candidate. place: (m,) row * columns + column of each candidate, where the
    row is its box. columns: number of scores per box: nc with several classes per box, else 1. cls: (n,) the class of
    each box if it has only one, or None if the column is the class.
    """

    xywh: np.ndarray
    scores: np.ndarray
    place: np.ndarray
    columns: int
    cls: np.ndarray | None

    def best(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the `count` best candidates, best first: boxes (k, 4) corners, scores (k,), classes (k,)."""
        order = best_first(self.scores, min(count, MAX_CANDIDATES))
        row, column = np.divmod(self.place[order], self.columns)
        return xywh2xyxy(self.xywh[row]), self.scores[order], column if self.cls is None else self.cls[row]


def non_max_suppression(
    prediction: Tensor | Sequence[Tensor],
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
) -> list[Tensor]:
    """Run NMS on decoded head output.

    prediction: (b, n, 5 + nc): cx, cy, w, h in pixels, objectness, class scores (or the head's output tuple, which
    starts with this tensor). multi_label: a box may have several classes. classes: keep only these classes. agnostic:
    boxes of different classes suppress each other too.
    Returns per image (m, 6): x1, y1, x2, y2, confidence, class; best first, at most max_det.
    Raises ValueError for thresholds outside [0, 1].
    """
    if not 0 <= conf_thres <= 1 or not 0 <= iou_thres <= 1:
        raise ValueError(f"conf_thres {conf_thres} and iou_thres {iou_thres} must lie in [0, 1]")
    if not isinstance(prediction, Tensor):
        prediction = prediction[0]
    images = [_candidates(x, conf_thres, classes, multi_label) for x in prediction.detach()]
    found = [np.zeros((0, 6), np.float32)] * len(images)
    count, unfinished = max(5 * max_det // 2, 512), [k for k, image in enumerate(images) if len(image.scores)]
    while unfinished:
        looked_at = [images[k].best(count) for k in unfinished]
        boxes, scores, cls = (np.concatenate(parts) for parts in zip(*looked_at, strict=True))
        sizes = [len(part[1]) for part in looked_at]
        # whether a box is kept depends only on boxes with higher scores, so the lower ones can be left out
        kept = suppress(boxes, np.repeat(np.arange(len(sizes)), sizes), cls * (not agnostic), iou_thres, max_det)
        rows = np.column_stack((boxes, scores, cls)).astype(np.float32, copy=False)
        rest = []
        for k, size, end in zip(unfinished, sizes, np.cumsum(sizes), strict=True):
            found[k] = rows[end - size : end][kept[end - size : end]][:max_det]
            if len(found[k]) < max_det and size < min(len(images[k].scores), MAX_CANDIDATES):
                rest.append(k)
        unfinished, count = rest, count * 4
    return [torch.from_numpy(rows).to(prediction) for rows in found]


def _candidates(x: Tensor, conf_thres: float, classes: Sequence[int] | None, multi_label: bool) -> Candidates:
    """Return the candidates of one image's prediction (n, 5 + nc)."""
    if x.device.type != "cpu":  # copy only boxes above the threshold, which are few for a trained network
        x = x[x[:, 4] > conf_thres].cpu()
    rows = x.float().numpy()
    sure = np.flatnonzero(rows[:, 4] > conf_thres)
    if len(sure) < len(rows):
        rows = rows[sure]
    scores, cls = rows[:, 5:] * rows[:, 4:5], None
    if not multi_label:
        cls = scores.argmax(1)
        scores = scores[np.arange(len(rows)), cls][:, None]
    if classes is not None:
        wanted = np.isin(np.arange(scores.shape[1]) if cls is None else cls[:, None], list(classes))
        scores = np.where(wanted, scores, -1)
    place, columns = np.flatnonzero(scores > conf_thres), scores.shape[1]
    scores = scores.ravel()[place]
    if len(scores) > 8 * MAX_CANDIDATES:  # saves memory: the candidates of the whole batch are held at once
        best = np.flatnonzero(scores >= np.partition(scores, -MAX_CANDIDATES)[-MAX_CANDIDATES])
        place, scores = place[best], scores[best]
    return Candidates(rows[:, :4].copy(), scores, place, columns, cls)


def best_first(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` highest of scores (n,), highest first; equal scores keep their order."""
    few = np.arange(len(scores))
    if len(scores) > 16 * count:  # estimate the lowest score needed from a sample; if it is too high, use all scores
        step = len(scores) // (8 * count)
        rank = max(2 * count // step, -(-count // 4))
        higher = np.flatnonzero(scores >= np.partition(scores[::step], -rank)[-rank])
        few = higher if len(higher) >= count else few
    if len(few) > count:
        lowest = np.partition(scores[few], -count)[-count]
        few = few[scores[few] >= lowest]  # more than count if several scores equal the lowest
    return few[np.argsort(-scores[few], kind="stable")][:count]


def suppress(
    boxes: np.ndarray, images: np.ndarray, cls: np.ndarray, iou_thres: float, most: int
) -> np.ndarray:
    """Run greedy NMS within each class of each image; returns whether each box is kept, (n,) bool.

    boxes: (n, 4) corners, those of each image best first; images, cls: (n,) integers from 0; most: largest number of
    boxes kept per class and image. Of two boxes of one class with an IoU above iou_thres, only the better one is kept.
    """
    group = images * (int(cls.max(initial=0)) + 1) + cls
    order = group.argsort(kind="stable")
    group, kept = group[order], np.zeros(len(boxes), bool)
    x1, y1, x2, y2 = boxes[order].T
    with np.errstate(invalid="ignore", over="ignore"):  # boxes of infinite size
        data = np.stack((x1, y1, x2, y2, (x2 - x1) * (y2 - y1)))
    limit = np.float32(iou_thres)
    if float(limit) > iou_thres:  # round down: the float32 IoU 3/5 is above the float64 threshold 0.6
        limit = np.nextafter(limit, np.float32(0))
    starts, left = _starts(group), np.ones(len(group), bool)
    for _ in range(most):
        at = np.flatnonzero(left)
        if not len(at):
            break
        if len(at) < 0.8 * len(left):  # drop the boxes that are already kept or removed
            order, group, data = order[at], group[at], data.take(at, 1)
            starts, left, at = _starts(group), np.ones(len(at), bool), np.arange(len(at))
        first = at[_starts(group[at])]
        kept[order[first]] = True
        best = starts.copy()  # for a class with no box left any box will do: use its first
        best[np.searchsorted(starts, first, "right") - 1] = first
        best = data.take(best, 1).repeat(np.diff(starts, append=len(left)), 1)
        left &= ~_overlap(data, best, limit)
        left[first] = False
    return kept


def _starts(group: np.ndarray) -> np.ndarray:
    """Return the index of the first occurrence of each value in sorted numbers (n,), n > 0."""
    return np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))


def _overlap(a: np.ndarray, b: np.ndarray, iou_thres: np.float32) -> np.ndarray:
    """Return whether the boxes of a and b (5, n), corners and area, have an IoU above iou_thres, pair by pair: (n,)."""
    with np.errstate(invalid="ignore", over="ignore"):  # boxes of zero or infinite area overlap nothing
        width = np.minimum(a[2], b[2])
        width -= np.maximum(a[0], b[0])
        height = np.minimum(a[3], b[3])
        height -= np.maximum(a[1], b[1])
        inter = width.clip(0, np.inf, out=width)  # with one bound only, numpy is three times slower
        inter *= height.clip(0, np.inf, out=height)
        union = a[4] + b[4]
        union -= inter
        inter /= union
        return inter > iou_thres
