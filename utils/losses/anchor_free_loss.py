"""Loss of anchor-free heads: class scores of all cells, boxes and distances of the assigned ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.boxes import cell_centres, xywh2xyxy, xyxy2xywh
from utils.losses.assigners import ASSIGNERS, Assigned, Predicted
from utils.losses.box_terms import BOX_TERMS
from utils.losses.class_terms import CLASS_TERMS


class AnchorFreeLoss:
    """Loss of a detector with an anchor-free head; `model.hyp` has the gains box, dfl and cls.

    Called like `ComputeLoss`; its parts are (box, dfl, cls). All are means weighted with the target scores, over the
    whole batch; of a part of a batch, over that part.

    total: sums a tensor over all processes, if each has a share of the batch.
    """

    parts = ("box", "dfl", "cls")

    def __init__(self, model: nn.Module, total: Callable[[Tensor], Tensor] | None = None) -> None:
        self.head, self.hyp, self.total = model.model[-1], model.hyp, total
        self.assign = ASSIGNERS[model.hyp.get("assigner") or "task_aligned"]()
        self.box_term = BOX_TERMS[model.hyp.get("box_loss") or "ciou"]
        # as in `ComputeLoss`, `fl_gamma` turns the usual cross-entropy into the focal loss
        usual = "focal" if model.hyp.get("fl_gamma") else "bce"
        named = model.hyp.get("class_loss") or "bce"
        self.class_term = CLASS_TERMS[usual if named == "bce" else named]

    def __call__(self, preds: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        return self._loss(preds, targets, preds[0].shape[0])

    def of_part(self, preds: list[Tensor], targets: Tensor, first: int, images: int) -> tuple[Tensor, Tensor]:
        """Return the share of a part of a batch in the loss of the whole batch, as `ComputeLoss.of_part`."""
        count = preds[0].shape[0]
        own = targets[(targets[:, 0] >= first) & (targets[:, 0] < first + count)].clone()
        own[:, 0] -= first
        return self._loss(preds, own, images)

    def _loss(self, preds: list[Tensor], targets: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """Compute the loss of images that are all, or a part, of a batch of `images` images in this process."""
        raw, centres, strides = self._flat(preds)
        values, logits = raw.split([raw.shape[2] - self.head.nc, self.head.nc], 2)
        labels = self._labels(targets.to(raw.device), preds)
        with torch.no_grad():
            boxes = self._boxes(self.head.distances(values), centres, strides)
            found = self.assign(Predicted(logits.sigmoid(), boxes, centres, strides), labels)
        counts = torch.stack((found.score.sum(), raw.new_tensor(images)))
        norm, batch = (counts if self.total is None else self.total(counts)).clamp(1.0).unbind()
        goal = torch.zeros_like(logits)
        goal[found.image, found.cell, labels[found.label, 1].long()] = found.score
        cls = self.class_term(logits, goal, self.hyp.get("fl_gamma", 0.0))
        size = self._image_size(preds)
        box, dfl = self._box_terms(values, centres, strides, labels, found, size)
        gains = torch.tensor([self.hyp[key] for key in ("box", "dfl", "cls")], device=raw.device)
        parts = torch.stack((box, dfl, cls)) * gains / norm * (raw.shape[0] / images)
        return parts.sum(0, keepdim=True) * batch, parts.detach()

    def _box_terms(
        self, values: Tensor, centres: Tensor, strides: Tensor, labels: Tensor, found: Assigned,
        size: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of the box and of the distribution terms, weighted with the target scores."""
        raw, true = values[found.image, found.cell], labels[found.label, 2:6]
        stride, centre = strides[found.cell, None], centres[found.cell]
        if self.head.reg_max:
            log_p = raw.reshape(len(raw), 4, self.head.reg_max).log_softmax(-1)
            ltrb = log_p.exp() @ self.head.bins.float()
        else:
            ltrb = self.head.distances(raw)
        agreement = self.box_term(xyxy2xywh(self._boxes(ltrb, centre, stride[:, 0])), xyxy2xywh(true), size)
        box = ((1 - agreement) * found.score).sum()
        if not self.head.reg_max:
            return box, box.new_zeros(())
        distance = torch.cat((centre - true[:, :2], true[:, 2:] - centre), 1) / stride
        return box, (distribution_loss(log_p, distance) * found.score).sum()

    def _flat(self, preds: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the raw values of all cells (b, n, values) in float32, their centres (n, 2) and strides (n,) in px."""
        raw, centres, strides = [], [], []
        for p, s in zip(preds, self.head.stride.tolist(), strict=True):
            b, _, h, w, _ = p.shape
            raw.append(p.float().reshape(b, h * w, -1))
            centres.append(cell_centres(h, w, p.device) * s)
            strides.append(torch.full((h * w,), s, device=p.device))
        return torch.cat(raw, 1), torch.cat(centres), torch.cat(strides)

    def _labels(self, targets: Tensor, preds: list[Tensor]) -> Tensor:
        """Convert targets (n, 6), normalised xywh, to image, class, xyxy in pixels."""
        size = torch.tensor(self._image_size(preds) * 2, device=targets.device)
        return torch.cat((targets[:, :2], xywh2xyxy(targets[:, 2:6] * size)), 1)

    def _image_size(self, preds: list[Tensor]) -> tuple[float, float]:
        """Return the width and height of the images in pixels."""
        return preds[0].shape[3] * float(self.head.stride[0]), preds[0].shape[2] * float(self.head.stride[0])

    @staticmethod
    def _boxes(ltrb: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
        """Convert distances (..., n, 4) in strides to boxes xyxy in pixels."""
        ltrb = ltrb * strides[:, None]
        return torch.cat((centres - ltrb[..., :2], centres + ltrb[..., 2:]), -1)


def distribution_loss(log_p: Tensor, distance: Tensor) -> Tensor:
    """Return the distribution focal loss (m,), mean over the four sides (Li et al., 2020).

    It is the cross-entropy of the two values next to a distance, weighted by how near they are. log_p: logarithms of
    the distributions (m, 4, reg_max); distance: (m, 4) in strides, cut off at reg_max - 1.
    """
    distance = distance.clamp(0, log_p.shape[2] - 1 - 0.01)
    left = distance.long()
    near = log_p.gather(2, torch.stack((left, left + 1), 2))
    right = distance - left
    return -(near * torch.stack((1 - right, right), 2)).sum(2).mean(1)
