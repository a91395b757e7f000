"""Non-maximum suppression of YOLOv5 head output: exact, for a whole batch at once, with nothing but numpy.

The survivors of all images and classes are found side by side: in each round every class of every image keeps its best
box that is left and loses what overlaps it. Boxes far down the ranking are not looked at before they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.boxes import xywh2xyxy

MAX_CANDIDATES = 30000  # the best-scored candidates of an image that are looked at


class Candidates(NamedTuple):
    """What may be detected in one image.

    xywh: (n, 4) boxes; scores: (m,) of the candidates; place: (m,) row * columns + column of each; columns: classes of
    a box that count; cls: the class of each box where that is one only, (n,), or None where the column is the class.
    """

    xywh: np.ndarray
    scores: np.ndarray
    place: np.ndarray
    columns: int
    cls: np.ndarray | None

    def best(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The `count` with the highest scores, the highest first: boxes (k, 4) corners, scores (k,), classes (k,)."""
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
    """Pick the detections of each image from decoded head output.

    prediction: (b, n, 5 + nc): cx, cy, w, h in pixels, objectness, class scores (or a head's tuple that starts so).
    multi_label: a box may carry several classes. classes: keep only these. agnostic: classes suppress each other.
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
        # what becomes of a box depends on better ones only, so the best give the same survivors as all of them
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
    """The candidates of one image (n, 5 + nc)."""
    if x.device.type != "cpu":  # few of a trained network's boxes are worth the way
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
    if len(scores) > 8 * MAX_CANDIDATES:  # the images of a batch are all kept until the end
        best = np.flatnonzero(scores >= np.partition(scores, -MAX_CANDIDATES)[-MAX_CANDIDATES])
        place, scores = place[best], scores[best]
    return Candidates(rows[:, :4].copy(), scores, place, columns, cls)


def best_first(scores: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` highest of scores (n,), the highest first, of equals the first."""
    few = np.arange(len(scores))
    if len(scores) > 16 * count:  # a sample tells about where the lowest of them lies; usually it is right
        step = len(scores) // (8 * count)
        rank = max(2 * count // step, -(-count // 4))
        higher = np.flatnonzero(scores >= np.partition(scores[::step], -rank)[-rank])
        few = higher if len(higher) >= count else few
    if len(few) > count:
        lowest = np.partition(scores[few], -count)[-count]
        few = few[scores[few] >= lowest]  # more than count where some are equal to the lowest
    return few[np.argsort(-scores[few], kind="stable")][:count]


def suppress(
    boxes: np.ndarray, images: np.ndarray, cls: np.ndarray, iou_thres: float, most: int
) -> np.ndarray:
    """Greedy NMS within each class of each image, to the `most` best survivors of each: whether a box is kept, (n,).

    boxes: (n, 4) corners, those of an image best first; images, cls: (n,) whole numbers from 0. Boxes of one class
    that overlap by an IoU above iou_thres push each other out.
    """
    group = images * (int(cls.max(initial=0)) + 1) + cls
    order = group.argsort(kind="stable")
    group, kept = group[order], np.zeros(len(boxes), bool)
    x1, y1, x2, y2 = boxes[order].T
    with np.errstate(invalid="ignore", over="ignore"):  # boxes without end
        data = np.stack((x1, y1, x2, y2, (x2 - x1) * (y2 - y1)))
    limit = np.float32(iou_thres)
    if float(limit) > iou_thres:  # an IoU of 3/5 is above 0.6 as a float32, and below as a float64
        limit = np.nextafter(limit, np.float32(0))
    starts, left = _starts(group), np.ones(len(group), bool)
    for _ in range(most):
        at = np.flatnonzero(left)
        if not len(at):
            break
        if len(at) < 0.8 * len(left):  # go on without those that are out
            order, group, data = order[at], group[at], data.take(at, 1)
            starts, left, at = _starts(group), np.ones(len(at), bool), np.arange(len(at))
        first = at[_starts(group[at])]
        kept[order[first]] = True
        best = starts.copy()  # of a class that has none left, whatever comes first
        best[np.searchsorted(starts, first, "right") - 1] = first
        best = data.take(best, 1).repeat(np.diff(starts, append=len(left)), 1)
        left &= ~_overlap(data, best, limit)
        left[first] = False
    return kept


def _starts(group: np.ndarray) -> np.ndarray:
    """Where in ascending numbers (n,), n > 0, each begins."""
    return np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))


def _overlap(a: np.ndarray, b: np.ndarray, iou_thres: np.float32) -> np.ndarray:
    """Whether boxes of a and b (5, n), corners and area, overlap by an IoU above iou_thres."""
    with np.errstate(invalid="ignore", over="ignore"):  # boxes without area, or without end, overlap nothing
        width = np.minimum(a[2], b[2])
        width -= np.maximum(a[0], b[0])
        height = np.minimum(a[3], b[3])
        height -= np.maximum(a[1], b[1])
        inter = width.clip(0, np.inf, out=width)  # with one bound alone numpy takes three times as long
        inter *= height.clip(0, np.inf, out=height)
        union = a[4] + b[4]
        union -= inter
        inter /= union
        return inter > iou_thres
