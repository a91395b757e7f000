"""Box terms by hand-worked examples."""

from __future__ import annotations

import math

import pytest
import torch

from utils.boxes import bbox_ciou, box_iou, xywh2xyxy
from utils.losses.box_terms import BOX_TERMS, NWD_SIZE, overlap
from utils.losses.class_terms import CLASS_TERMS
from utils.settings.config import CHOICES

# two boxes of 4 x 2 and 2 x 4 pixels with centres (2, 1) and (3, 2): they share 2 x 2 pixels, the IoU is 4 / 12, the
# enclosing box is 4 x 4, both centres are 1 pixel apart in x and in y
A, B, IOU = [2.0, 1.0, 4.0, 2.0], [3.0, 2.0, 2.0, 4.0], 4 / 12
IMAGE = (30.0, 40.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # squared distance 2 of squared diagonal 32; aspect term v = 4 / pi^2 (atan 1/2 - atan 2)^2
        ("ciou", None),
        ("eiou", IOU - 2 / 32 - 4 / 16 - 4 / 16),
        # angle 45 degrees: its cost is 1, gamma 1; sides differ by half of the larger one
        ("siou", IOU - (2 * (1 - math.exp(-1 / 16)) + 2 * (1 - math.exp(-0.5)) ** 4) / 2),
        ("wiou", 1 - math.exp(2 / 32) * (1 - IOU)),
        # upper left corners (0, 0), (2, 0); lower right corners (4, 2), (4, 4); image diagonal 50
        ("mpdiou", IOU - (4 + 4) / 2500),
        ("nwd", math.exp(-math.sqrt(2 + (4 + 4) / 4) / NWD_SIZE)),
    ],
)
def test_hand_worked(name: str, value: float | None) -> None:
    if value is None:
        v = 4 / math.pi**2 * (math.atan(0.5) - math.atan(2)) ** 2
        value = IOU - 2 / 32 - v * v / (v - IOU + 1)
    found = BOX_TERMS[name](torch.tensor([A, B]), torch.tensor([B, A]), IMAGE)
    assert found.tolist() == pytest.approx([value, value], abs=1e-5)


@pytest.mark.parametrize("name", BOX_TERMS)
def test_equal_boxes_agree_wholly_and_gradients_are_finite(name: str) -> None:
    boxes = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)) * 30 + 1
    a = boxes.clone().requires_grad_()
    found = BOX_TERMS[name](a, boxes, IMAGE)
    assert found.detach().allclose(torch.ones(100), atol=1e-4)
    found.sum().backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("name", BOX_TERMS)
def test_gradient_descent_moves_a_box_to_its_label(name: str) -> None:
    true = torch.tensor([[20.0, 20.0, 10.0, 6.0]])
    box = torch.tensor([[23.0, 17.0, 6.0, 9.0]], requires_grad=True)
    optimizer = torch.optim.Adam([box], 0.1)
    for _ in range(400):
        optimizer.zero_grad()
        (1 - BOX_TERMS[name](box, true, IMAGE)).sum().backward()
        optimizer.step()
    assert (box - true).abs().max() < 0.5


def test_overlap_is_that_of_box_iou() -> None:
    a, b = (torch.rand(200, 4, generator=torch.Generator().manual_seed(k)) * 20 + 1 for k in range(2))
    assert overlap(a, b).iou.allclose(box_iou(xywh2xyxy(a), xywh2xyxy(b)).diagonal(), atol=1e-6)


def test_ciou_of_equal_boxes_is_never_nan() -> None:
    a = torch.rand(5000, 4, generator=torch.Generator().manual_seed(0)) * 20 + 5
    assert bbox_ciou(a, a).isfinite().all()


@pytest.mark.parametrize(
    ("name", "gamma", "value"),
    [
        # logits 0 (p = 1/2, entropy ln 2) with target 1, and ln 3 (p = 3/4, entropy ln 4) with target 0
        ("bce", 0, math.log(2) + math.log(4)),
        ("focal", 2, 0.25 * 0.5**2 * math.log(2) + 0.75 * 0.75**2 * math.log(4)),
        ("focal", 0, 0.25 * 0.5**1.5 * math.log(2) + 0.75 * 0.75**1.5 * math.log(4)),
        ("varifocal", 0, math.log(2) + 0.75 * 0.75**2 * math.log(4)),
        ("quality_focal", 0, 0.5**2 * math.log(2) + 0.75**2 * math.log(4)),
    ],
)
def test_class_terms(name: str, gamma: float, value: float) -> None:
    logits, target = torch.tensor([0.0, math.log(3)]), torch.tensor([1.0, 0.0])
    assert CLASS_TERMS[name](logits, target, gamma).item() == pytest.approx(value, rel=1e-5)


def test_a_hyp_file_can_name_all_of_them() -> None:
    assert CHOICES["box_loss"] == ("", *BOX_TERMS) and CHOICES["class_loss"] == ("", *CLASS_TERMS)
