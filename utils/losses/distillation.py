"""What a network learns from a teacher: its scores and boxes in every cell, and its feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.boxes import bbox_ciou, cell_centres, xyxy2xywh
from utils.losses.class_terms import quality_focal

LEAST_SCORE = 0.1  # boxes of cells in which the teacher is less sure of an object are not learnt
HIDDEN = 0.5  # share of the cells that the masked term hides


class Taught(NamedTuple):
    """A teacher's view of b images, whose maps have n cells in total.

    scores: (b, n, nc), of the best prediction in each cell; boxes: its box xyxy (b, n, 4) in pixels. known: the classes
    that the teacher has (nc,), bool. distributions: raw distances (b, n, 4 * bins) of an anchor-free teacher, or None.
    features: the maps (b, c_i, h_i, w_i) that its head reads, or None.
    """

    scores: Tensor
    boxes: Tensor
    known: Tensor
    distributions: Tensor | None = None
    features: list[Tensor] | None = None


class ResponseLoss:
    """Class and box terms of what a network's head predicts and a teacher's predictions in the same cells.

    The class term is the quality focal loss with the teacher's scores as targets. The box term is 1 - CIoU, weighted
    with the teacher's scores; if both have distributions of the same size, their cross-entropy is added (Zheng et al.,
    Localization Distillation, 2022). Both terms are sums divided by the sum of the teacher's scores. With anchors, a
    cell's prediction is that of the anchor most similar to the teacher's box; its objectness and class scores learn the
    two factors of the teacher's score.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.anchors = [torch.tensor(rows) for rows in head.anchor_rows()]

    def __call__(self, raw: Sequence[Tensor], taught: Taught) -> tuple[Tensor, Tensor]:
        """Return the class and the box term of raw maps (b, na, h, w, values), scalars."""
        sure = taught.scores.amax(2)
        image, cell = (sure > LEAST_SCORE).nonzero(as_tuple=True)
        weight = sure[image, cell]
        flat = torch.cat([r.float().flatten(2, 3) for r in raw], 2)
        terms = self._with_anchors if self.anchors else self._anchor_free
        cls, box = terms(flat, _cells(raw, self.head.stride.tolist()), taught, image, cell, weight)
        norm = weight.sum().clamp(1)
        return cls / norm, box / norm

    def _anchor_free(self, flat: Tensor, cells: Tensor, taught: Taught, image: Tensor, cell: Tensor,
                     weight: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        values, logits = flat[:, 0].split([flat.shape[3] - self.head.nc, self.head.nc], 2)
        cls = quality_focal(logits[..., taught.known], taught.scores[..., taught.known])
        own, (centre, stride) = values[image, cell], cells[cell].split((2, 1), 1)
        ltrb = self.head.distances(own) * stride
        boxes = torch.cat((centre - ltrb[:, :2], centre + ltrb[:, 2:]), 1)
        box = _box_term(xyxy2xywh(boxes), taught.boxes[image, cell], weight)
        if taught.distributions is not None and taught.distributions.shape[2] == own.shape[1] > 4:
            theirs = taught.distributions[image, cell].unflatten(1, (4, -1)).softmax(2)
            entropy = -(theirs * own.unflatten(1, (4, -1)).log_softmax(2)).sum(2).mean(1)
            box = box + (entropy * weight).sum()
        return cls, box

    def _with_anchors(self, flat: Tensor, cells: Tensor, taught: Taught, image: Tensor, cell: Tensor,
                      weight: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        theirs, (centre, stride) = taught.boxes[image, cell], cells[cell].split((2, 1), 1)
        level = (stride == self.head.stride.to(stride)).long().argmax(1)
        anchors = torch.stack(self.anchors).to(flat.device)[level]
        ratio = xyxy2xywh(theirs)[:, None, 2:] / anchors
        anchor = torch.maximum(ratio, 1 / ratio).amax(2).argmin(1)
        own = flat[image, anchor, cell]
        size = (own[:, 2:4].sigmoid() * 2) ** 2 * anchors[torch.arange(len(anchor), device=flat.device), anchor]
        box = _box_term(torch.cat((centre + (own[:, :2].sigmoid() * 2 - 1) * stride, size), 1), theirs, weight)
        objectness = torch.zeros(flat.shape[:3], device=flat.device)
        objectness[image, anchor, cell] = weight
        seen = flat[..., 4]
        if not taught.known.all():  # elsewhere, there may be objects of other classes
            seen, objectness = (t.transpose(1, 2)[image, cell] for t in (seen, objectness))
        classes = (taught.scores[image, cell] / weight[:, None])[:, taught.known]
        entropy = F.binary_cross_entropy_with_logits(own[:, 5:][:, taught.known], classes, reduction="none")
        return quality_focal(seen, objectness) + (entropy * weight[:, None]).sum(), box


def _cells(raw: Sequence[Tensor], strides: Sequence[float]) -> Tensor:
    """Return the centres of all cells in pixels and their strides, (n, 3)."""
    rows = []
    for r, stride in zip(raw, strides, strict=True):
        centres = cell_centres(r.shape[2], r.shape[3], r.device)
        rows.append(torch.cat((centres, torch.ones_like(centres[:, :1])), 1) * stride)
    return torch.cat(rows)


def _box_term(xywh: Tensor, theirs: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of 1 - CIoU of boxes xywh and the teacher's boxes xyxy, weighted."""
    return ((1 - bbox_ciou(xywh, xyxy2xywh(theirs))) * weight).sum()


class ChannelWise(nn.Module):
    """Channel-wise distillation (Shu et al., 2021).

    Each channel is turned into a distribution over the cells; the term is the divergence of the network's from the
    teacher's, mean over channels and images. A 1x1 convolution gives the network's map the teacher's channels.
    """

    def __init__(self, own: int, theirs: int) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(own, theirs, 1)

    def forward(self, own: Tensor, theirs: Tensor) -> Tensor:
        """Maps (b, own, h, w) of the network and (b, theirs, h, w) of the teacher -> scalar."""
        pred, true = self.adapter(own).float().flatten(2), theirs.float().flatten(2)
        divergence = F.kl_div(pred.log_softmax(2), true.log_softmax(2), reduction="none", log_target=True)
        return divergence.sum(2).mean()


class Masked(nn.Module):
    """Masked generative distillation (Yang et al., 2022).

    A share of the cells of the network's map, after a 1x1 convolution to the teacher's channels, is set to zero; two
    3x3 convolutions generate the teacher's map from the rest. The term is the mean squared error; other than in the
    paper, each channel of the teacher's map is first normalised to mean 0 and variance 1, so that teachers with large
    and small values need the same gain.
    """

    def __init__(self, own: int, theirs: int) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(own, theirs, 1)
        self.generate = nn.Sequential(nn.Conv2d(theirs, theirs, 3, padding=1), nn.ReLU(),
                                      nn.Conv2d(theirs, theirs, 3, padding=1))  # fmt: skip

    def forward(self, own: Tensor, theirs: Tensor, generator: torch.Generator) -> Tensor:
        """Maps (b, own, h, w) of the network and (b, theirs, h, w) of the teacher -> scalar."""
        b, _, h, w = own.shape
        seen = (torch.rand(b, 1, h, w, generator=generator) >= HIDDEN).to(own.device)
        made = self.generate(self.adapter(own) * seen).float()
        return (made - F.batch_norm(theirs.float(), None, None, training=True)).square().mean()


FEATURE_TERMS: dict[str, Callable[[int, int], nn.Module]] = {"channel_wise": ChannelWise, "masked": Masked}
"""Names that a hyp file's `feature_loss` may have."""
