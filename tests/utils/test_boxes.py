"""Box conversions, scaling and overlap, by table, for tensors and arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.boxes import bbox_ciou, box_iou, clip_boxes, scale_boxes, xywh2xyxy, xywhn2xyxy, xyxy2xywh, xyxy2xywhn

KINDS = pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])


@KINDS
def test_conversions_and_back(kind) -> None:
    xyxy = kind([[10.0, 20, 30, 60]])
    assert xyxy2xywh(xyxy).tolist() == [[20, 40, 20, 40]]
    assert xywh2xyxy(xyxy2xywh(xyxy)).tolist() == xyxy.tolist()
    assert xyxy2xywhn(xyxy, w=100, h=200).tolist() == [pytest.approx([0.2, 0.2, 0.2, 0.2])]
    assert xywhn2xyxy(xyxy2xywhn(xyxy, 100, 200), 100, 200).tolist() == [pytest.approx([10, 20, 30, 60])]
    assert xywhn2xyxy(kind([[0.5, 0.5, 1.0, 1.0]]), 10, 20, padw=3, padh=4).tolist() == [[3, 4, 13, 24]]
    assert xyxy2xywh(kind([[0.0, 0, 2, 2, 0.7]])).tolist() == [pytest.approx([1, 1, 2, 2, 0.7])]


@KINDS
def test_clip(kind) -> None:
    assert clip_boxes(kind([[-5.0, -6, 50, 60]]), (30, 40)).tolist() == [[0, 0, 40, 30]]


@KINDS
@pytest.mark.parametrize(
    ("shape1", "shape0", "ratio_pad", "box", "expected"),
    [
        ((320, 320), (100, 200), None, [0, 80, 320, 240], [0, 0, 200, 100]),  # bars above and below
        ((640, 640), (640, 640), None, [1, 2, 3, 4], [1, 2, 3, 4]),
        ((320, 320), (100, 200), ((1.6, 1.6), (0, 80)), [16, 96, 32, 112], [10, 10, 20, 20]),
        ((320, 320), (100, 200), None, [-9, 0, 999, 999], [0, 0, 200, 100]),  # clipped
    ],
)
def test_scale_boxes(kind, shape1, shape0, ratio_pad, box, expected) -> None:
    boxes = kind([[float(v) for v in box]])
    assert scale_boxes(shape1, boxes, shape0, ratio_pad).tolist() == [pytest.approx(expected)]


def test_iou_table() -> None:
    a = torch.tensor([[0.0, 0, 10, 10]])
    b = torch.tensor([[0.0, 0, 10, 10], [0, 5, 10, 15], [10, 0, 20, 10], [2, 2, 4, 4], [5, 5, 5, 5]])
    assert box_iou(a, b)[0].tolist() == pytest.approx([1, 1 / 3, 0, 0.04, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([5, 5, 10, 10], [5, 5, 10, 10], 1.0),
        # side by side: IoU 0, centres 10 apart in an enclosing 20 x 10 box
        ([5, 5, 10, 10], [15, 5, 10, 10], -(100 / 500)),
    ],
)
def test_ciou_by_hand(a: list, b: list, expected: float) -> None:
    value = bbox_ciou(torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32))
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_ciou_has_a_finite_gradient_for_empty_boxes() -> None:
    a = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    bbox_ciou(a, torch.tensor([[0.5, 0.5, 1.0, 1.0]])).sum().backward()
    assert torch.isfinite(a.grad).all()
