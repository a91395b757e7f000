"""Assigners: they decide which predictions learn which labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from utils.boxes import xyxy2xywh
from utils.losses.box_terms import overlap

TINY = torch.finfo(torch.float32).tiny
SECOND_CHOICE = 1e5  # added to the cost of cells that are not both in the box and near its centre
PAIRS = 2**20  # pairs of a label and a cell that are compared at once, which limits the memory


class Assigned(NamedTuple):
    """Matched predictions (m,): image, cell, index of the label, and the target of the class score in [0, 1]."""

    image: Tensor
    cell: Tensor
    label: Tensor
    score: Tensor


class Predicted(NamedTuple):
    """Predictions of n cells, detached: class scores (b, n, nc) in [0, 1], boxes xyxy (b, n, 4) in pixels.

    centres (n, 2) and strides (n,) of the cells are in pixels too.
    """

    scores: Tensor
    boxes: Tensor
    centres: Tensor
    strides: Tensor


class TaskAligned:
    """Task-aligned assignment (Feng et al., TOOD, 2021).

    Each label takes, among the cells whose centre is in its box, the `topk` with the highest alignment
    score^alpha * IoU^beta. A box smaller than a cell counts as large as the cell, so that it has candidates. A cell
    that several labels take learns the one with the highest IoU. The target score of a label's best cell is its IoU;
    those of its other cells are in proportion to their alignment.
    """

    def __init__(self, topk: int = 10, alpha: float = 0.5, beta: float = 6.0) -> None:
        self.topk, self.alpha, self.beta = topk, alpha, beta

    @torch.no_grad()
    def __call__(self, predicted: Predicted, labels: Tensor) -> Assigned:
        """Assign labels (k, 6): image, class, xyxy in pixels."""
        cell, label, align, iou = _in_pieces(self._candidates, predicted, labels)
        image = labels[label, 0].long()
        keep = _first_per_cell(image * len(predicted.centres) + cell, -iou)
        image, cell, label, align, iou = (t[keep] for t in (image, cell, label, align, iou))
        best_align, best_iou = (
            torch.zeros(len(labels), device=labels.device).scatter_reduce_(0, label, t, "amax") for t in (align, iou)
        )
        score = align / best_align[label].clamp(TINY) * best_iou[label]
        return Assigned(image, cell, label, score)

    def _candidates(self, predicted: Predicted, labels: Tensor) -> tuple[Tensor, ...]:
        """Return cell, label, alignment and IoU of the pairs that labels take."""
        image, own = labels[:, 0].long(), labels[:, 1].long()
        xywh = xyxy2xywh(labels[:, 2:6])
        half = predicted.strides / 2
        in_x, in_y = (offset <= torch.maximum(side[:, None] / 2, half) for offset, side in _offsets(predicted, xywh))
        inside = in_x & in_y
        label, cell = inside.nonzero(as_tuple=True)
        iou = overlap(xyxy2xywh(predicted.boxes[image[label], cell]), xywh[label]).iou
        align = predicted.scores[image[label], cell, own[label]] ** self.alpha * iou**self.beta
        aligns, ious = (torch.full(inside.shape, fill, device=labels.device) for fill in (-1.0, 0.0))
        aligns[label, cell], ious[label, cell] = align, iou
        values, cells = aligns.topk(min(self.topk, aligns.shape[1]), 1)
        # at the start, the alignment of small labels is far below any threshold, but they have to be learnt too
        row, column = (values >= 0).nonzero(as_tuple=True)
        cell = cells[row, column]
        return cell, row, values[row, column], ious[row, cell]


class SimOTA:
    """Simplified optimal transport (Ge et al., YOLOX, 2021).

    The cost of a pair is the cross-entropy of its class scores plus 3 times -log(IoU). Each label takes its k cheapest
    cells, k being the sum of its 10 highest IoUs, at least 1. Cells in its box that are also within 2.5 strides of its
    centre come before all others in the box or near the centre. A cell that several labels take learns the cheapest.
    The target score is the IoU.
    """

    def __init__(self, radius: float = 2.5, most: int = 10, box_weight: float = 3.0) -> None:
        self.radius, self.most, self.box_weight = radius, most, box_weight

    @torch.no_grad()
    def __call__(self, predicted: Predicted, labels: Tensor) -> Assigned:
        """Assign labels (k, 6): image, class, xyxy in pixels."""
        cell, label, cost, iou = _in_pieces(self._candidates, predicted, labels)
        image = labels[label, 0].long()
        keep = _first_per_cell(image * len(predicted.centres) + cell, cost)
        return Assigned(image[keep], cell[keep], label[keep], iou[keep])

    def _candidates(self, predicted: Predicted, labels: Tensor) -> tuple[Tensor, ...]:
        """Return cell, label, cost and IoU of the pairs that labels take."""
        image, own = labels[:, 0].long(), labels[:, 1].long()
        xywh = xyxy2xywh(labels[:, 2:6])
        (dx, w), (dy, h) = _offsets(predicted, xywh)
        inside = (dx < w[:, None] / 2) & (dy < h[:, None] / 2)
        reach = self.radius * predicted.strides
        near = (dx < reach) & (dy < reach)
        label, cell = (inside | near).nonzero(as_tuple=True)
        iou = overlap(xyxy2xywh(predicted.boxes[image[label], cell]), xywh[label]).iou
        scores = predicted.scores[image[label], cell].clamp(1e-6, 1 - 1e-6)
        true = scores.gather(1, own[label, None])[:, 0]
        entropy = -torch.log1p(-scores).sum(1) + torch.log1p(-true) - true.log()
        both = (inside & near)[label, cell]
        costs, ious = (torch.full(inside.shape, fill, device=labels.device) for fill in (torch.inf, 0.0))
        ious[label, cell] = iou
        costs[label, cell] = entropy - self.box_weight * (iou + 1e-8).log() + SECOND_CHOICE * ~both
        most = min(self.most, costs.shape[1])
        counts = ious.topk(most, 1).values.sum(1).long().clamp(1)
        values, cells = costs.topk(most, 1, largest=False)
        taken = (torch.arange(most, device=labels.device) < counts[:, None]) & values.isfinite()
        row, column = taken.nonzero(as_tuple=True)
        cell = cells[row, column]
        return cell, row, values[row, column], ious[row, cell]


ASSIGNERS = {"task_aligned": TaskAligned, "simota": SimOTA}
"""Assigners of anchor-free heads, by the names that a hyp file's `assigner` may have."""


def _offsets(predicted: Predicted, xywh: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return for x and for y the distances of labels and cell centres, (k, n), and the sides of the labels, (k,)."""
    # one axis at a time: operations on pairs of numbers, the last dimension being 2, take several times as long
    return [((predicted.centres[:, i] - xywh[:, i, None]).abs(), xywh[:, 2 + i]) for i in (0, 1)]


def _in_pieces(
    candidates: Callable[[Predicted, Tensor], tuple[Tensor, ...]], predicted: Predicted, labels: Tensor
) -> list[Tensor]:
    """Call a function on a limited number of labels at a time and join its results, which begin with cell, label."""
    size = max(PAIRS // len(predicted.centres), 1)
    found = []
    for first in range(0, max(len(labels), 1), size):
        cell, label, *rest = candidates(predicted, labels[first : first + size])
        found.append((cell, label + first, *rest))
    return [torch.cat(t) for t in zip(*found, strict=True)]


def _first_per_cell(key: Tensor, cost: Tensor) -> Tensor:
    """Return the indices of the pairs that are kept: of those with an equal key, the one with the lowest cost."""
    order = cost.argsort(stable=True)
    order = order[key[order].argsort(stable=True)]
    ordered = key[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]
