"""Check what an exported model's NMS keeps against the rules of greedy NMS, instead of against another implementation.

Two correct implementations may keep different boxes where scores are equal or an IoU lies at the threshold, and each
such box decides which of its neighbours are kept. The rules hold for every correct result.
"""

from __future__ import annotations

import numpy as np

from utils.boxes import xywh2xyxy

SCORE_OFF, BOX_OFF, IOU_OFF = 1e-4, 1e-5, 1e-3  # allowed rounding: part of a score, part of the image side, of an IoU
AT_ONCE = 128  # kept boxes that are compared with all others at a time, which bounds the memory


def nms_fault(kept: np.ndarray, decoded: np.ndarray, conf: float, iou: float, most: int) -> str:
    """Return what is wrong with the boxes that NMS kept in one image, or an empty string.

    kept: (m, 6) centre x, y, width, height, confidence, class. decoded: (n, 5 + nc), the boxes given to NMS; each has
    its best class only. conf, iou: the thresholds; most: the largest allowed m.
    """
    scores = decoded[:, 5:] * decoded[:, 4:5]
    best, cls = scores.max(1), kept[:, 5].astype(int)
    least = best * (1 - SCORE_OFF) - 1e-7  # scores from here on may be the best after rounding
    if len(kept) > most:
        return f"{len(kept)} boxes are kept, more than {most}"
    if (np.diff(kept[:, 4]) > SCORE_OFF * kept[1:, 4]).any():
        return "the boxes are not sorted by confidence"
    row = _rows_of(kept, decoded, scores, least)
    if strange := int(((row < 0) | (kept[:, 4] < conf * (1 - SCORE_OFF))).sum()):
        return f"{strange} of {len(kept)} kept boxes are not among the network's above the confidence {conf:g}"
    left = np.flatnonzero(least > conf)  # boxes that must be kept or overlap a kept one
    left = left[~np.isin(left, row)]
    for start in range(0, len(row), AT_ONCE):
        by = slice(start, start + AT_ONCE)
        pairs = _iou_above(decoded[row], decoded[row[by]], iou, -1) & (cls[:, None] == cls[by])
        pairs[np.arange(len(row))[by], np.arange(pairs.shape[1])] = False
        if pairs.any():
            return f"boxes of one class are kept whose IoU is above {iou:g}"
        better = (best[row[by]] >= least[left, None]) & (scores[left][:, cls[by]] >= least[left, None])
        left = left[~(better & _iou_above(decoded[left], decoded[row[by]], iou, 1)).any(1)]
    if len(row) == most:
        left = left[least[left] > best[row].min()]
    return f"boxes are missing that no better box of their class overlaps: {len(left)}" if len(left) else ""


def _rows_of(kept: np.ndarray, decoded: np.ndarray, scores: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Return the row in decoded of each kept box, (m,); -1 if no row has its coordinates, confidence and class."""
    rows, far = np.full(len(kept), -1), BOX_OFF * np.abs(decoded[:, :4]).max(initial=1)
    for k, (*box, score, cls) in enumerate(kept):
        off = np.abs(decoded[:, :4] - box).max(1) / far
        off = np.maximum(off, np.abs(scores[:, int(cls)] - score) / (SCORE_OFF * score + 1e-7))
        off[scores[:, int(cls)] < least] = np.inf  # another class is the best
        if off.min(initial=np.inf) <= 1:
            rows[k] = off.argmin()
    return rows


def _iou_above(a: np.ndarray, b: np.ndarray, iou: float, sign: int) -> np.ndarray:
    """Return whether each box of a (n, 4 or more) has an IoU above `iou` with each of b (m, 4 or more): (n, m).

    xywh. In doubt, which rounding causes, the answer is yes for sign 1 and no for sign -1.
    """
    (low_a, high_a), (low_b, high_b) = (np.split(xywh2xyxy(x[:, :4].astype(np.float64)), 2, 1) for x in (a, b))
    shared = (np.minimum(high_a[:, None], high_b) - np.maximum(low_a[:, None], low_b)).clip(0).prod(2)
    union = (high_a - low_a).prod(1)[:, None] + (high_b - low_b).prod(1) - shared
    off_a, off_b = (1e-6 * np.abs(x[:, :4]).max(1) / x[:, 2:4].min(1).clip(1e-9) for x in (a, b))
    return shared / union.clip(1e-9) > iou - sign * (IOU_OFF + off_a[:, None] + off_b)
