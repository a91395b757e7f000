"""Labels in NMS: every label stays, and pushes out the detections it overlaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.evaluation.hybrid import nms_with_labels


def decoded(*rows: tuple) -> Tensor:
    """One image's head output, two classes: rows of cx, cy, w, h, confidence, class."""
    out = torch.zeros(1, len(rows), 7)
    for k, (*box, confidence, cls) in enumerate(rows):
        out[0, k, :5], out[0, k, 5 + cls] = torch.tensor([*box, confidence]), 1
    return out


def targets(*rows: tuple) -> Tensor:
    """Labels of a 200 x 100 px input (w x h), image 0: class and cx, cy, w, h in pixels."""
    values = [[0, cls, cx / 200, cy / 100, w / 200, h / 100] for cls, cx, cy, w, h in rows]
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 6)


@pytest.mark.parametrize(
    ("predicted", "labels", "agnostic", "expected"),
    [
        ([(50, 50, 20, 20, 0.9, 0)], [], False, [(40, 40, 60, 60, 0.9, 0)]),
        ([(50, 50, 20, 20, 0.9, 0)], [(0, 50, 50, 20, 18)], False, [(40, 41, 60, 59, 1, 0)]),
        ([(50, 50, 20, 20, 0.9, 1)], [(0, 50, 50, 20, 20)], False, [(40, 40, 60, 60, 1, 0), (40, 40, 60, 60, 0.9, 1)]),
        ([(50, 50, 20, 20, 0.9, 1)], [(0, 50, 50, 20, 20)], True, [(40, 40, 60, 60, 1, 0)]),
        # two labels that overlap each other both stay
        ([], [(0, 50, 50, 20, 20), (0, 50, 50, 20, 18)], False, [(40, 40, 60, 60, 1, 0), (40, 41, 60, 59, 1, 0)]),
    ],
)
def test_labels_stay(predicted: list, labels: list, agnostic: bool, expected: list) -> None:
    (found,) = nms_with_labels(decoded(*predicted), targets(*labels), (100, 200), 0.25, 0.6, 300, agnostic)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_max_det_limits_the_detections_not_the_labels() -> None:
    far = [(15 + 30 * k, 20, 10, 10, 0.9 - 0.1 * k, 0) for k in range(4)]
    labels = [(1, 15 + 30 * k, 80, 10, 10) for k in range(3)]
    (found,) = nms_with_labels(decoded(*far), targets(*labels), (100, 200), 0.25, 0.6, 2)
    assert found[:, 5].tolist() == [1, 1, 1, 0, 0] and found[3:, 4].tolist() == pytest.approx([0.9, 0.8])


def test_images_with_different_numbers_of_labels() -> None:
    head = torch.cat((decoded((50, 50, 20, 20, 0.9, 0)),) * 3)
    rows = torch.cat((targets((1, 20, 20, 10, 10), (0, 90, 20, 10, 10)), targets((0, 20, 20, 10, 10))))
    rows[2, 0] = 2
    found = nms_with_labels(head, rows, (100, 200), 0.25, 0.6, 300)
    assert [f[:, 5].tolist() for f in found] == [[1, 0, 0], [0], [0, 0]]
