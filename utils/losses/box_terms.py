"""Box terms of the loss, by name: how well predicted boxes agree with true ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from utils.boxes import bbox_ciou

EPS = 1e-7
NWD_SIZE = 12.8  # px: mean size of the objects in the dataset of NWD's paper

# maps predicted and true boxes xywh (n, 4) in pixels, and the image's (width, height), to values (n,), 1 if they agree
BoxTerm = Callable[[Tensor, Tensor, tuple[float, float]], Tensor]


class Overlap(NamedTuple):
    """Overlap of pairs of boxes (n,): the IoU; width and height of the enclosing boxes; distances of the centres."""

    iou: Tensor
    width: Tensor
    height: Tensor
    dx: Tensor
    dy: Tensor


def overlap(a: Tensor, b: Tensor) -> Overlap:
    """Compare pairs of boxes xywh, (n, 4) each."""
    low = torch.minimum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = torch.maximum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    enclosing = high - low
    # the sides of two intervals add up to those of their hull and their intersection
    inter = (a[:, 2:] + b[:, 2:] - enclosing).minimum(torch.minimum(a[:, 2:], b[:, 2:])).clamp(0).prod(1)
    iou = inter / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - inter + EPS)
    return Overlap(iou, *enclosing.unbind(1), *(b[:, :2] - a[:, :2]).unbind(1))


def ciou(a: Tensor, b: Tensor, size: tuple[float, float]) -> Tensor:
    """Return the Complete IoU (Zheng et al., 2020)."""
    return bbox_ciou(a, b)


def eiou(a: Tensor, b: Tensor, size: tuple[float, float]) -> Tensor:
    """Return the Efficient IoU (Zhang et al., 2021): minus the squared differences of centre, width and height.

    Each is relative to the enclosing box.
    """
    o = overlap(a, b)
    w2, h2 = o.width**2 + EPS, o.height**2 + EPS
    centre = (o.dx**2 + o.dy**2) / (w2 + h2)
    return o.iou - centre - (a[:, 2] - b[:, 2]) ** 2 / w2 - (a[:, 3] - b[:, 3]) ** 2 / h2


def siou(a: Tensor, b: Tensor, size: tuple[float, float]) -> Tensor:
    """Return the SCYLLA-IoU (Gevorgyan, 2022): minus half the sum of a distance cost and a shape cost.

    The distance cost is higher for centres that are offset along both axes: its angle cost is the sine of twice the
    angle between the line through the centres and the nearer axis.
    """
    o = overlap(a, b)
    squared = o.dx**2 + o.dy**2
    angle = 2 * (o.dx * o.dy).abs() / (squared + EPS)
    gamma = 2 - angle
    distance = sum(1 - torch.exp(-gamma * (d / (side + EPS)) ** 2) for d, side in ((o.dx, o.width), (o.dy, o.height)))
    difference = (a[:, 2:] - b[:, 2:]).abs() / torch.maximum(a[:, 2:], b[:, 2:]).clamp(EPS)
    shape = ((1 - torch.exp(-difference)) ** 4).sum(1)
    return o.iou - (distance + shape) / 2


def wiou(a: Tensor, b: Tensor, size: tuple[float, float]) -> Tensor:
    """Return 1 minus the Wise-IoU loss, version 1 (Tong et al., 2023): 1 - IoU, higher for distant centres.

    The factor is exp(d^2 / c^2), d the distance of the centres, c the diagonal of the enclosing box, without gradient.
    """
    o = overlap(a, b)
    with torch.no_grad():
        diagonal = o.width**2 + o.height**2 + EPS
    return 1 - torch.exp((o.dx**2 + o.dy**2) / diagonal) * (1 - o.iou)


def mpdiou(a: Tensor, b: Tensor, size: tuple[float, float]) -> Tensor:
    """Return the MPDIoU (Ma and Xu, 2023): minus the squared distances of the two corners.

    They are relative to the squared diagonal of the image.
    """
    image = size[0] ** 2 + size[1] ** 2
    corners = [(a[:, :2] + k * a[:, 2:] / 2 - b[:, :2] - k * b[:, 2:] / 2).square().sum(1) for k in (-1, 1)]
    return overlap(a, b).iou - (corners[0] + corners[1]) / image


def nwd(a: Tensor, b: Tensor, size: tuple[float, float]) -> Tensor:
    """Return the normalised Wasserstein distance of the boxes as Gaussians (Wang et al., 2021), for small objects."""
    squared = (a[:, :2] - b[:, :2]).square().sum(1) + (a[:, 2:] - b[:, 2:]).square().sum(1) / 4
    return torch.exp(-(squared + EPS).sqrt() / NWD_SIZE)


BOX_TERMS: dict[str, BoxTerm] = {f.__name__: f for f in (ciou, siou, eiou, wiou, mpdiou, nwd)}
"""Names that a hyp file's `box_loss` may have."""
