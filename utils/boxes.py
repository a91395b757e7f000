"""Boxes: conversion between formats, scaling between images, and IoU.

xyxy: corners; xywh: centre, width, height; a trailing n: normalised by the image's width and height. Functions take
tensors or numpy arrays of shape (..., 4), or with more columns where stated, and return the same type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)


def _empty_like(x: Array) -> Array:
    return torch.empty_like(x) if isinstance(x, Tensor) else np.empty_like(x)


def xyxy2xywh(x: Array) -> Array:
    """Convert xyxy to xywh; further columns are copied."""
    y = _empty_like(x)
    y[..., 0] = (x[..., 0] + x[..., 2]) / 2
    y[..., 1] = (x[..., 1] + x[..., 3]) / 2
    y[..., 2] = x[..., 2] - x[..., 0]
    y[..., 3] = x[..., 3] - x[..., 1]
    y[..., 4:] = x[..., 4:]
    return y


def xywh2xyxy(x: Array) -> Array:
    """Convert xywh to xyxy; further columns are copied."""
    y = _empty_like(x)
    half_w, half_h = x[..., 2] / 2, x[..., 3] / 2
    y[..., 0] = x[..., 0] - half_w
    y[..., 1] = x[..., 1] - half_h
    y[..., 2] = x[..., 0] + half_w
    y[..., 3] = x[..., 1] + half_h
    y[..., 4:] = x[..., 4:]
    return y


def xywhn2xyxy(x: Array, w: float = 640, h: float = 640, padw: float = 0, padh: float = 0) -> Array:
    """Convert normalised xywh to xyxy in pixels, for a w x h image whose top left corner is at (padw, padh)."""
    y = xywh2xyxy(x)
    y[..., 0] = y[..., 0] * w + padw
    y[..., 1] = y[..., 1] * h + padh
    y[..., 2] = y[..., 2] * w + padw
    y[..., 3] = y[..., 3] * h + padh
    return y


def xyxy2xywhn(x: Array, w: float = 640, h: float = 640) -> Array:
    """Convert xyxy in pixels of a w x h image to normalised xywh."""
    y = xyxy2xywh(x)
    y[..., 0] /= w
    y[..., 1] /= h
    y[..., 2] /= w
    y[..., 3] /= h
    return y


def clip_boxes(boxes: Array, shape: Sequence[int]) -> Array:
    """Clip xyxy boxes in place to an image of shape (height, width, ...) and return them."""
    h, w = shape[:2]
    if isinstance(boxes, Tensor):
        boxes[..., 0].clamp_(0, w)
        boxes[..., 1].clamp_(0, h)
        boxes[..., 2].clamp_(0, w)
        boxes[..., 3].clamp_(0, h)
    else:
        boxes[..., [0, 2]] = boxes[..., [0, 2]].clip(0, w)
        boxes[..., [1, 3]] = boxes[..., [1, 3]].clip(0, h)
    return boxes


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Return the centres x, y of a map's cells in units of its stride, row by row: (h * w, 2)."""
    ys = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    xs = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)


def scale_boxes(
    img1_shape: Sequence[int],
    boxes: Array,
    img0_shape: Sequence[int],
    ratio_pad: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Array:
    """Rescale xyxy boxes in place from a letterboxed image to the original image, clip them and return them.

    img1_shape, img0_shape: (h, w, ...) of the letterboxed and the original image; further values are ignored.
    ratio_pad: ((ratio_h, ratio_w), (padw, padh)) as in the loader's shapes; computed from the shapes if None.
    """
    if ratio_pad is None:
        gain = min(img1_shape[0] / img0_shape[0], img1_shape[1] / img0_shape[1])
        ratio = (gain, gain)
        pad = ((img1_shape[1] - img0_shape[1] * gain) / 2, (img1_shape[0] - img0_shape[0] * gain) / 2)
    else:
        ratio, pad = ratio_pad
    boxes[..., [0, 2]] = (boxes[..., [0, 2]] - pad[0]) / ratio[1]
    boxes[..., [1, 3]] = (boxes[..., [1, 3]] - pad[1]) / ratio[0]
    return clip_boxes(boxes, img0_shape)


def box_iou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the IoU, (n, m) in [0, 1], of every box of a (n, 4) with every box of b (m, 4), both xyxy."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:4], b[None, :, 2:4])
    inter = (bottom_right - top_left).clamp_(0).prod(2)
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return inter / (area_a[:, None] + area_b[None] - inter + eps)


def bbox_ciou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the Complete IoU (n,) of pairs of xywh boxes, (n, 4) each (Zheng et al., 2020).

    This is the IoU minus the squared centre distance divided by the squared diagonal of the enclosing box, minus a
    penalty for different aspect ratios.
    """
    ax, ay, aw, ah = a.unbind(-1)
    bx, by, bw, bh = b.unbind(-1)
    ax1, ax2, ay1, ay2 = ax - aw / 2, ax + aw / 2, ay - ah / 2, ay + ah / 2
    bx1, bx2, by1, by2 = bx - bw / 2, bx + bw / 2, by - bh / 2, by + bh / 2
    inter = (ax2.minimum(bx2) - ax1.maximum(bx1)).clamp(0) * (ay2.minimum(by2) - ay1.maximum(by1)).clamp(0)
    iou = inter / (aw * ah + bw * bh - inter + eps)
    diagonal = (ax2.maximum(bx2) - ax1.minimum(bx1)) ** 2 + (ay2.maximum(by2) - ay1.minimum(by1)) ** 2 + eps
    distance = (ax - bx) ** 2 + (ay - by) ** 2
    v = (4 / math.pi**2) * (torch.atan(bw / (bh + eps)) - torch.atan(aw / (ah + eps))) ** 2
    with torch.no_grad():
        alpha = v / (v - iou + (1 + eps)).clamp(eps)  # rounding makes the IoU of equal boxes a little more than 1
    return iou - (distance / diagonal + v * alpha)
