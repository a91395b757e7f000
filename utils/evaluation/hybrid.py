"""Labels and detections together, to complete the labels of a data set (`val.py --save-hybrid`)."""

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
    """NMS in which the labels take part as certain boxes; every label is kept, also where labels overlap.

    decoded: (b, n, 5 + nc) as `non_max_suppression` takes it; targets: (k, 6) image, class, cx, cy, w, h normalised;
    shape: (height, width) in pixels of the network's input. Returns per image (m, 6): corners, confidence, class; the
    labels first, with confidence 1, then at most max_det detections that overlap none of them.
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
    # what still overlaps a label is the label itself, or stood beside one that another label pushed out
    beside = box_iou(found[:, :4], boxes) > iou_thres
    beside &= agnostic | (found[:, 5:6] == labels[None, :, 0])
    certain = torch.cat((boxes, torch.ones_like(labels[:, :1]), labels[:, :1]), 1)
    return torch.cat((certain, found[~beside.any(1)][:max_det]))
