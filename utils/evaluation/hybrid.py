"""Merging labels and detections, to complete the labels of a dataset (`val.py --save-hybrid`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.boxes import box_iou, xywh2xyxy
from utils.evaluation.nms import non_max_suppression


def nms_with_labels(
    decoded: Tensor, targets: Tensor, shape: Sequence[int], conf_thres: float, iou_thres: float, max_det: int,
    agnostic: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Run NMS on the detections together with the labels, which have confidence 1 and are never suppressed.

    decoded: (b, n, 5 + nc), as for `non_max_suppression`; targets: (k, 6) image, class, cx, cy, w, h normalised;
    shape: (height, width) of the network's input in pixels. Returns per image (m, 6): corners, confidence, class. The
    labels come first, with confidence 1, even where they overlap each other; they are followed by at most max_det
    detections that overlap no label.
    """
    height, width = shape
    unit = decoded.new_tensor([width, height, width, height])
    of_image = [targets[targets[:, 0] == k, 1:].to(decoded) for k in range(len(decoded))]
    certain = decoded.new_zeros(len(decoded), max(map(len, of_image), default=0), decoded.shape[2])
    for rows, labels in zip(certain, of_image, strict=True):
        rows[: len(labels), :4] = labels[:, 1:] * unit
        rows[: len(labels), 4] = 1
        rows[torch.arange(len(labels)), 5 + labels[:, 0].long()] = 1
    found = non_max_suppression(torch.cat((certain, decoded), 1), conf_thres, iou_thres, agnostic=agnostic,
                                multi_label=False, max_det=max_det + certain.shape[1])  # fmt: skip
    return [_labels_first(f, labels, unit, iou_thres, max_det, agnostic)
            for f, labels in zip(found, of_image, strict=True)]  # fmt: skip


def _labels_first(
    found: Tensor, labels: Tensor, unit: Tensor, iou_thres: float, max_det: int, agnostic: bool
) -> Tensor:
    boxes = xywh2xyxy(labels[:, 1:] * unit)
    # a box that still overlaps a label is the label itself, or a detection on a label that another label suppressed
    beside = box_iou(found[:, :4], boxes) > iou_thres
    beside &= agnostic | (found[:, 5:6] == labels[None, :, 0])
    certain = torch.cat((boxes, torch.ones_like(labels[:, :1]), labels[:, :1]), 1)
    return torch.cat((certain, found[~beside.any(1)][:max_det]))
