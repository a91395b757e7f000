"""The rules that NMS in an exported graph is checked against: every correct result passes, every wrong one is named."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from models.export.nms_check import nms_fault
from utils.evaluation.nms import non_max_suppression

CONF, IOU = 0.1, 0.45


def decoded(n: int, nc: int, levels: int = 0, seed: int = 0) -> np.ndarray:
    """Boxes (n, 5 + nc) that overlap a lot; with only so many different scores if `levels` is given."""
    rng = np.random.default_rng(seed)
    rows = rng.random((n, 5 + nc), np.float32)
    rows[:, :2] *= 200
    rows[:, 2:4] = 5 + 60 * rows[:, 2:4]
    if levels:
        rows[:, 4:] = (1 + rng.integers(0, levels, (n, 1 + nc))) / levels
    return rows


def greedy(rows: np.ndarray, iou: float = IOU, most: int = 300) -> np.ndarray:
    """What non_max_suppression keeps: (m, 6) centre x, y, width, height, confidence, class."""
    kept = non_max_suppression(torch.from_numpy(rows)[None], CONF, iou, max_det=most)[0].numpy()
    low, high = kept[:, :2], kept[:, 2:4]
    return np.column_stack(((low + high) / 2, high - low, kept[:, 4:]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "nc", "iou", "most"), [(0, 1, 0.45, 300), (1, 1, 0.45, 300), (700, 1, 0.45, 300),
                                                      (700, 80, 0.45, 300), (700, 2, 0.45, 5), (700, 2, 0.0, 300),
                                                      (700, 2, 1.0, 300), (700, 2, 0.9, 65536)])  # fmt: skip
def test_a_right_result_passes(n: int, nc: int, iou: float, most: int, seed: int) -> None:
    rows = decoded(n, nc, seed=seed)
    assert nms_fault(greedy(rows, iou, most), rows, CONF, iou, most) == ""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [20, 300])
def test_equal_scores_may_be_taken_in_any_order(seed: int, most: int) -> None:
    """As may scores that differ by rounding; the boxes kept are others then."""
    rows = decoded(500, 2, levels=3)
    rng = np.random.default_rng(seed)
    near = rows * (1 + 1e-6 * rng.standard_normal(rows.shape)).astype(np.float32)
    kept, other = greedy(rows, most=most), greedy(near[rng.permutation(len(rows))], most=most)
    assert len(kept) != len(other) or np.abs(kept - other).max() > 1
    assert nms_fault(kept, rows, CONF, IOU, most) == nms_fault(other, rows, CONF, IOU, most) == ""


def test_at_the_threshold_a_box_may_be_kept_or_not() -> None:
    """Two boxes with an IoU of exactly 0.45, and two empty ones at the same place, which overlap nothing."""
    right = 100 + 20 * (1 - 0.9 / 1.45)
    rows = np.array([[100, 100, 20, 29, 1, 0.9], [right, 100, 20, 29, 1, 0.8], *[[9, 9, 0, 0, 1, 0.7]] * 2], np.float32)
    kept = np.column_stack((rows[:, :4], rows[:, 5], np.zeros(4)))
    for chosen in ([0, 1, 2, 3], [0, 2, 3]):
        assert nms_fault(kept[chosen], rows, CONF, IOU, 9) == ""
    assert "IoU is above 0.4" in nms_fault(kept, rows, CONF, 0.4, 9)
    assert nms_fault(kept[[0, 2, 3]], rows, CONF, 0.5, 9).endswith("overlaps: 1")


def changed(kept: np.ndarray, row: int, column: int, by: float) -> np.ndarray:
    """The boxes with one number changed."""
    kept = kept.copy()
    kept[row, column] += by
    return kept


ROWS = decoded(250, 3)
KEPT = greedy(ROWS)
SUPPRESSED = greedy(ROWS, 0.9)


@pytest.mark.parametrize(("kept", "message"), [
    (KEPT[1:], "boxes are missing that no better box of their class overlaps"),
    (np.delete(KEPT, len(KEPT) // 2, 0), "boxes are missing"),
    (KEPT[:-1], "boxes are missing .*: 1$"),
    (KEPT[:0], "boxes are missing"),
    (KEPT[::-1], "the boxes are not sorted by confidence"),
    (SUPPRESSED, "boxes of one class are kept whose IoU is above 0.45"),
    (KEPT[[0, 0, *range(1, len(KEPT))]], "boxes of one class are kept"),
    (np.concatenate((KEPT, KEPT, KEPT)), "boxes are kept, more than 300"),
    (changed(KEPT, 3, 0, 0.5), "1 of .* kept boxes are not among the network's above the confidence 0.1"),
    (changed(KEPT, 3, 4, -0.0005), "1 of .* kept boxes are not among"),
    (changed(KEPT, 3, 5, -KEPT[3, 5] + (KEPT[3, 5] + 1) % 3), "1 of .* kept boxes are not among"),
    (changed(KEPT, 3, 1, float("nan")), "1 of .* kept boxes are not among"),
])  # fmt: skip
def test_a_wrong_result_is_named(kept: np.ndarray, message: str) -> None:
    assert not nms_fault(KEPT, ROWS, CONF, IOU, 300) and 50 < len(KEPT) < 300
    fault = nms_fault(kept, ROWS, CONF, IOU, 300)
    assert re.search(message, fault) and "\n" not in fault, fault


def test_a_box_below_the_threshold_is_named() -> None:
    assert "above the confidence 0.5" in nms_fault(KEPT, ROWS, 0.5, IOU, 300)
    assert "boxes are missing" in nms_fault(KEPT, ROWS, CONF / 2, IOU, 300)
