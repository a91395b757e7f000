"""YOLOv5's loss: CIoU of matched boxes, objectness of all cells, class scores of matched boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.boxes import bbox_ciou
from utils.errors import UserError
from utils.losses.anchor_free_loss import AnchorFreeLoss
from utils.losses.assigners import ASSIGNERS
from utils.losses.box_terms import BOX_TERMS, overlap
from utils.losses.class_terms import CLASS_TERMS

LevelTargets = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# objectness weight of each map, finest first (YOLOv5)
BALANCE = {3: (4.0, 1.0, 0.4)}
BALANCE_OTHER = (4.0, 1.0, 0.25, 0.06, 0.02)
# a label is assigned to the cell of its centre and to the nearest neighbouring cells in x and in y
NEIGHBOURS = torch.tensor([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float32) * 0.5


def focal_weights(pred: Tensor, true: Tensor, gamma: float, alpha: float = 0.25) -> Tensor:
    """Return weights (same shape) that turn binary cross-entropy into focal loss (Lin et al., 2017)."""
    p = pred.sigmoid()
    p_true = true * p + (1 - true) * (1 - p)
    return (true * alpha + (1 - true) * (1 - alpha)) * (1 - p_true) ** gamma


def scaled_gains(hyp: Mapping[str, float], head: nn.Module, imgsz: int) -> dict[str, float]:
    """Return the loss gains scaled to this head and image size; hyp files give them for 3 maps, 80 classes, 640 px."""
    if not head.anchor_rows():
        return dict(hyp)
    return {
        **hyp,
        "box": hyp["box"] * 3 / head.nl,
        "cls": hyp["cls"] * head.nc / 80 * 3 / head.nl,
        "obj": hyp["obj"] * (imgsz / 640) ** 2 * 3 / head.nl,
    }


def moved(levels: Sequence[LevelTargets], move: Callable[[Tensor], Tensor]) -> list[LevelTargets]:
    """Apply `move`, which copies a tensor to another device, to the targets of all maps at once.

    On a GPU a few large copies from pinned memory take less time than many small ones, and the host does not wait.
    """
    sizes = [len(level[0]) for level in levels]
    whole = move(torch.cat([torch.stack((*level[:4], level[6])) for level in levels], 1)).split(sizes, 1)
    sides = move(torch.cat([torch.cat((level[4], level[5]), 1) for level in levels])).split(sizes)
    return [(*numbers[:4], floats[:, :4], floats[:, 4:], numbers[4])
            for numbers, floats in zip(whole, sides, strict=True)]  # fmt: skip


class ComputeLoss:
    """Loss of a detector; `model` needs a head as its last layer (`na nc nl anchors stride`) and `hyp`.

    Called with the raw output maps (b, na, h, w, 5 + nc) and targets (n, 6): image, class, cx, cy, w, h (normalised),
    preferably on the CPU, which avoids waiting for the GPU. Returns the weighted loss times the batch size, shape (1,),
    and its parts (box, obj, cls), shape (3,), detached.

    total: sums a tensor over all processes, if each has a share of the batch. Means are then taken over the whole
    batch, so that loss and parts, summed over the processes, equal those of a single process with the whole batch.
    """

    parts = ("box", "obj", "cls")  # their names

    def __init__(self, model: nn.Module, total: Callable[[Tensor], Tensor] | None = None) -> None:
        self.total = total
        head = model.model[-1]
        self.hyp: dict[str, float] = model.hyp
        self.nc, self.na, self.nl = head.nc, head.na, head.nl
        self.anchors: Tensor = head.anchors.cpu()  # targets are assigned on the CPU, to avoid GPU synchronisation
        device = head.anchors.device
        self.cls_weight = torch.tensor([self.hyp["cls_pw"]], device=device)
        self.obj_weight = torch.tensor([self.hyp["obj_pw"]], device=device)
        smoothing = self.hyp.get("label_smoothing", 0.0)
        self.positive, self.negative = 1.0 - 0.5 * smoothing, 0.5 * smoothing
        self.balance = BALANCE.get(self.nl, BALANCE_OTHER)
        # only box terms other than CIoU, which are in pixels, need them
        self.strides: list[float] = getattr(head, "stride", 8 * 2 ** torch.arange(self.nl)).tolist()
        self.box_loss, self.class_loss = self.hyp.get("box_loss") or "ciou", self.hyp.get("class_loss") or "bce"
        if self.nl > len(self.balance):
            raise ValueError(f"the loss supports up to {len(self.balance)} output maps, but the head has {self.nl}")

    def __call__(self, preds: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.build_targets(preds, targets)
        return self._loss(preds, levels, *self._counts(preds, levels))

    def of_part(self, preds: list[Tensor], targets: Tensor, first: int, images: int) -> tuple[Tensor, Tensor]:
        """Return the share of a part of a batch in the loss of the whole batch, and in its parts.

        preds: the raw maps of the part's images; targets: those of the whole batch of `images` images. first: index of
        the part's first image in the batch.
        """
        levels = self.build_targets(preds, targets)
        matches = [len(level[0]) for level in levels]
        own = []
        for image, *rest in levels:
            here = (image >= first) & (image < first + preds[0].shape[0])
            own.append((image[here] - first, *(t[here] for t in rest)))
        return self._loss(preds, own, images, matches)

    def _loss(
        self, preds: list[Tensor], levels: Sequence[LevelTargets], images: int, matches: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of assigned targets; images, matches: the counts by which its means are divided."""
        box = obj = cls = torch.zeros(1, device=preds[0].device)
        for raw, weight, level, count, stride in zip(preds, self.balance, levels, matches, self.strides, strict=False):
            raw = raw.float()
            image, anchor, y, x, true_box, anchor_wh, true_cls = level
            objectness = torch.zeros(raw.shape[:4], device=raw.device)
            if len(image):
                matched = raw[image, anchor, y, x]
                xy = matched[:, :2].sigmoid() * 2 - 0.5
                wh = (matched[:, 2:4].sigmoid() * 2) ** 2 * anchor_wh
                agreement, iou = self._agreement(torch.cat((xy, wh), 1), true_box, raw.shape[2:4], stride)
                box = box + (1.0 - agreement).sum() / count
                objectness[image, anchor, y, x] = iou.detach().clamp(0)
                if self.nc > 1:
                    goal = torch.full_like(matched[:, 5:], self.negative)
                    goal[torch.arange(len(goal), device=goal.device), true_cls] = self.positive
                    cls = cls + self._class_term(matched[:, 5:], goal) / (count * self.nc)
            cells = images * raw[0, ..., 0].numel()
            obj = obj + self._bce(raw[..., 4], objectness, self.obj_weight) / cells * weight
        parts = torch.cat((box * self.hyp["box"], obj * self.hyp["obj"], cls * self.hyp["cls"]))
        return parts.sum(0, keepdim=True) * images, parts.detach()

    def _counts(self, preds: list[Tensor], levels: list[LevelTargets]) -> tuple[int, list[int]]:
        """Return the number of images, and of matches per map, summed over all processes."""
        counts = [preds[0].shape[0], *(len(level[0]) for level in levels)]
        if self.total is not None:
            counts = self.total(torch.tensor(counts, device=preds[0].device)).tolist()
        return counts[0], counts[1:]

    def _agreement(self, pred: Tensor, true: Tensor, cells: Sequence[int], stride: float) -> tuple[Tensor, Tensor]:
        """Return the box term, and the target of the objectness, of boxes (m, 4) as offset and size in cells.

        The target is the box term itself if that is CIoU, as in YOLOv5, otherwise the IoU. Other terms are in pixels.
        """
        if self.box_loss == "ciou":
            iou = bbox_ciou(pred, true)
            return iou, iou
        pred, true = pred * stride, true * stride
        size = (cells[1] * stride, cells[0] * stride)
        return BOX_TERMS[self.box_loss](pred, true, size), overlap(pred, true).iou

    def _class_term(self, pred: Tensor, true: Tensor) -> Tensor:
        """Return the sum of the class term of matched boxes; `bce` is YOLOv5's, with `cls_pw` and `fl_gamma`."""
        if self.class_loss == "bce":
            return self._bce(pred, true, self.cls_weight)
        return CLASS_TERMS[self.class_loss](pred, true, self.hyp.get("fl_gamma", 0.0))

    def _bce(self, pred: Tensor, true: Tensor, positive_weight: Tensor) -> Tensor:
        """Return the sum of the binary cross-entropy, or of the focal loss if `fl_gamma` is not 0."""
        gamma = self.hyp.get("fl_gamma", 0.0)
        if not gamma:
            return F.binary_cross_entropy_with_logits(pred, true, pos_weight=positive_weight, reduction="sum")
        loss = F.binary_cross_entropy_with_logits(pred, true, pos_weight=positive_weight, reduction="none")
        return (loss * focal_weights(pred, true, gamma)).sum()

    def build_targets(self, preds: list[Tensor], targets: Tensor) -> list[LevelTargets]:
        """Assign labels to anchors and cells.

        Returns for each map: image, anchor, row, column (m,), the true box (m, 4) as offset from the cell and size in
        cells, the anchor's size (m, 2), the class (m,). A label is assigned to each anchor whose sides differ from its
        own by less than a factor of `anchor_t`, in the cell of its centre and in up to two neighbours.
        """
        targets, device = targets.cpu(), preds[0].device
        levels = [self._level_targets(preds[i].shape, self.anchors[i], targets) for i in range(self.nl)]
        if device.type == "cuda":
            return moved(levels, lambda t: (t.pin_memory() if t.numel() else t).to(device, non_blocking=True))
        return [tuple(t.to(device, non_blocking=True) for t in level) for level in levels]

    def _level_targets(self, shape: torch.Size, anchors: Tensor, targets: Tensor) -> LevelTargets:
        _, na, height, width, _ = shape
        size = torch.tensor([width, height, width, height], device=targets.device, dtype=torch.float32)
        boxes = targets[:, 2:6] * size
        ratio = boxes[None, :, 2:4] / anchors[:, None]
        fits = torch.maximum(ratio, 1 / ratio).amax(2) < self.hyp["anchor_t"]
        anchor, label = fits.nonzero(as_tuple=True)
        boxes = boxes[label]
        xy, inverse = boxes[:, :2], size[:2] - boxes[:, :2]
        left, up = ((xy % 1 < 0.5) & (xy > 1)).T
        right, down = ((inverse % 1 < 0.5) & (inverse > 1)).T
        # row k marks the labels that are also assigned to the k-th neighbour
        offset, pick = torch.stack((torch.ones_like(left), left, up, right, down)).nonzero(as_tuple=True)
        boxes, anchor, label = boxes[pick], anchor[pick], label[pick]
        cell = (boxes[:, :2] - NEIGHBOURS[offset]).long()
        cell = torch.minimum(cell.clamp(0), size[:2].long() - 1)
        true_box = torch.cat((boxes[:, :2] - cell, boxes[:, 2:]), 1)
        x, y = cell.T
        image, true_cls = targets[label, 0].long(), targets[label, 1].long()
        return image, anchor, y, x, true_box, anchors[anchor], true_cls


def loss_of(model: nn.Module, total: Callable[[Tensor], Tensor] | None = None) -> ComputeLoss | AnchorFreeLoss:
    """Return the loss that belongs to the head of a model; total as in `ComputeLoss`.

    Raises UserError if the hyper-parameters name an assigner that the head cannot use.
    """
    head, assigner = model.model[-1], model.hyp.get("assigner", "")
    fitting = ("anchor_ratio",) if head.anchor_rows() else tuple(ASSIGNERS)
    if assigner and assigner not in fitting:
        raise UserError(f"--hyp: assigner {assigner} cannot be used with the head {type(head).__name__}, which takes "
                        f"{' or '.join(fitting)}")  # fmt: skip
    return ComputeLoss(model, total) if head.anchor_rows() else AnchorFreeLoss(model, total)
