"""Anchor-free head: one prediction per cell, in separate branches for classes and boxes (FCOS, 2019; GFL, 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks.shuffle_free import permute_inputs, permute_outputs
from models.common import Conv
from models.heads.base import Head, branch, is_last_of_branch
from models.registry import register
from utils.boxes import cell_centres

PRIOR = 5


@register(channels="head", example=(20, 8))
class AnchorFreeDetect(Head):
    """Head that predicts in each cell the class scores and the distances to the four sides of the box.

    A branch has `depth` convolutions, depthwise 3x3 and then 1x1 (with `plain`: 3x3), with `width` output channels
    (the one of the classes `class_width`, if given), and a last 1x1 convolution. A distance is in units of the map's
    stride. It is the mean of a distribution over the values 0 to reg_max - 1 (Li et al., Generalized Focal Loss, 2020),
    or with reg_max 0 one number, as softplus.

    In training mode it returns a list of raw maps (b, 1, h, w, 4 * max(reg_max, 1) + nc). In eval mode it returns a
    pair: the decoded detections (b, n, 5 + nc), which are cx, cy, w, h in pixels, objectness 1 and class scores in
    [0, 1], as of `Detect`; and the raw maps.
    """

    na = 1

    def __init__(self, nc: int, reg_max: int = 16, width: int = 64, depth: int = 1, plain: bool = False,
                 class_width: int = 0, ch: Sequence[int] = ()) -> None:  # fmt: skip
        super().__init__()
        if reg_max == 1 or not 0 <= reg_max <= 64:
            raise ValueError(f"reg_max is {reg_max}, it must be 0 or from 2 to 64")
        class_width = class_width or width
        if not (1 <= width <= 4096 and 1 <= class_width <= 4096 and 0 <= depth <= 16):
            raise ValueError(f"width {width} and {class_width} must be from 1 to 4096, depth {depth} from 0 to 16")
        self.nc, self.no, self.nl, self.reg_max = nc, nc + 5, len(ch), reg_max
        self.stride = torch.zeros(self.nl)
        outputs = 4 * max(reg_max, 1)
        self.box = nn.ModuleList(branch(c, width, depth, plain, outputs) for c in ch)
        self.cls = nn.ModuleList(branch(c, class_width, depth, plain, nc) for c in ch)
        self.register_buffer("bins", torch.arange(reg_max, dtype=torch.float32), persistent=False)

    def raw_map(self, x: Tensor, level: int) -> Tensor:
        """Map (b, c, h, w) number `level` -> raw map (b, 1, h, w, 4 * max(reg_max, 1) + nc)."""
        return torch.cat((self.box[level](x), self.cls[level](x)), 1).permute(0, 2, 3, 1).unsqueeze(1)

    def decode(self, raw: Tensor, level: int) -> Tensor:
        """Decode one raw map (b, 1, h, w, 4 * max(reg_max, 1) + nc) into detections (b, h * w, no), in float32."""
        b, _, h, w, values = raw.shape
        flat = raw.float().reshape(b, h * w, values)
        ltrb = self.distances(flat[..., : values - self.nc])
        centres = cell_centres(h, w, raw.device)
        wh = ltrb[..., :2] + ltrb[..., 2:]
        xy = centres + (ltrb[..., 2:] - ltrb[..., :2]) / 2
        scores = flat[..., values - self.nc :].sigmoid()
        stride = float(self.stride[level])
        return torch.cat((xy * stride, wh * stride, torch.ones_like(scores[..., :1]), scores), -1)

    def distances(self, raw: Tensor) -> Tensor:
        """Convert raw values (..., 4 * max(reg_max, 1)) to distances to the left, upper, right, lower side (..., 4)."""
        if not self.reg_max:
            return nn.functional.softplus(raw)
        return raw.reshape(*raw.shape[:-1], 4, self.reg_max).softmax(-1) @ self.bins.float()

    @torch.no_grad()
    def initialize_biases(self) -> None:
        """Initialize the biases for about PRIOR objects on each map of a 640 px image."""
        self.initialize_boxes()
        for cls, s in zip(self.cls, self.stride.tolist(), strict=True):
            cls[-1].bias.fill_(math.log(PRIOR / self.nc / (640 / s) ** 2))

    @torch.no_grad()
    def initialize_boxes(self) -> None:
        """Initialize the biases of the distances: with distributions, all values are equally likely."""
        for box in self.box:
            box[-1].bias.fill_(1.0)

    def permute_inputs(self, level: int, order: Tensor | None) -> None:
        """Change the weights for an input map whose channels are in another order (None: they are not)."""
        for branch_ in (self.box[level], self.cls[level]):
            first = branch_[0]
            if isinstance(first, nn.Conv2d) and first.groups > 1:
                permute_outputs(first, order)
                first = branch_[1]
            permute_inputs(first.conv if isinstance(first, Conv) else first, order)

    def class_rows(self, key: str) -> tuple[int, int]:
        """Return groups of rows, and the rows before the classes in each, of the tensor `key` of the state dict."""
        return (1, 0) if is_last_of_branch(self.cls, "cls", key) else (0, 0)
