"""Heads with anchors: YOLOv5's, and one with separate branches for classes and boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks.shuffle_free import permute_inputs
from models.common import Conv
from models.heads.base import Head, branch, is_last_of_branch
from models.registry import register

BOX_ROWS = 5  # values of an anchor before its class scores: x, y, w, h, objectness


class AnchorHead(Head):
    """A head that predicts `no` = nc + 5 values for each of `na` anchors in a cell, as offsets from the anchor.

    anchors: of each map, as width, height, width, height, ... in pixels.
    """

    def __init__(self, nc: int, anchors: list[list[float]], ch: list[int]) -> None:
        super().__init__()
        self.nc = nc
        self.no = nc + 5
        self.nl = len(anchors)
        self.na = len(anchors[0]) // 2
        if len(ch) != self.nl:
            raise ValueError(f"{type(self).__name__} has {len(ch)} input maps but {self.nl} rows of anchors")
        self.stride = torch.zeros(self.nl)
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32).reshape(self.nl, -1, 2))

    def decode(self, raw: Tensor, level: int) -> Tensor:
        """Decode one raw map (b, na, h, w, no) into detections (b, na * h * w, no), in float32."""
        b, na, h, w, no = raw.shape
        stride = float(self.stride[level])
        ys = torch.arange(h, device=raw.device, dtype=torch.float32)
        xs = torch.arange(w, device=raw.device, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1) - 0.5
        anchors = self.anchors[level].float().reshape(1, na, 1, 1, 2) * stride
        y = raw.float().sigmoid()
        xy = (y[..., 0:2] * 2 + grid) * stride
        wh = (y[..., 2:4] * 2) ** 2 * anchors
        return torch.cat((xy, wh, y[..., 4:]), -1).reshape(b, na * h * w, no)

    def set_strides(self, strides: list[float]) -> None:
        """Set the strides of the maps, in pixels, and convert the anchors from pixels to units of these strides.

        If the anchor sizes and the strides are in opposite order, the order of the anchor rows is reversed, so that
        small anchors belong to small strides.
        """
        self.stride = torch.tensor(strides)
        area = self.anchors.prod(-1).mean(-1)
        if (area[-1] - area[0]) * (self.stride[-1] - self.stride[0]) < 0:
            self.anchors.copy_(self.anchors.flip(0))
        self.anchors /= self.stride.reshape(-1, 1, 1)

    def anchor_rows(self) -> list[list[list[float]]]:
        """Return the anchors in pixels, (nl, na, 2) as lists."""
        return (self.anchors.cpu() * self.stride.reshape(-1, 1, 1)).tolist()

    def _by_anchor(self, y: Tensor) -> Tensor:
        """Map (b, na * values, h, w) -> (b, na, h, w, values)."""
        b, channels, h, w = y.shape
        return y.reshape(b, self.na, channels // self.na, h, w).permute(0, 1, 3, 4, 2).contiguous()


@register(channels="head", example=(20, [[10, 13, 16, 30, 33, 23]]))
class Detect(AnchorHead):
    """YOLOv5's head: a 1x1 convolution per map."""

    def __init__(self, nc: int, anchors: list[list[float]], ch: list[int]) -> None:
        super().__init__(nc, anchors, ch)
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in ch)

    def raw_map(self, x: Tensor, level: int) -> Tensor:
        """Map (b, c, h, w) number `level` -> raw map (b, na, h, w, no)."""
        return self._by_anchor(self.m[level](x))

    @torch.no_grad()
    def initialize_biases(self) -> None:
        """Initialize the biases for about 8 objects in a 640 px image and equally likely classes (RetinaNet, 2017)."""
        for conv, s in zip(self.m, self.stride.tolist(), strict=True):
            b = conv.bias.view(self.na, -1)
            b[:, 4] += math.log(8 / (640 / s) ** 2)
            b[:, 5:] += math.log(0.6 / (self.nc - 0.99999))

    def permute_inputs(self, level: int, order: Tensor | None) -> None:
        """Change the weights for an input map whose channels are in another order (None: they are not)."""
        permute_inputs(self.m[level], order)

    def class_rows(self, key: str) -> tuple[int, int]:
        """Return groups of rows, and the rows before the classes in each, of the tensor `key` of the state dict."""
        return (self.na, BOX_ROWS) if key.startswith("m.") else (0, 0)


@register(channels="head", example=(20, [[10, 13, 16, 30, 33, 23]], 16))
class DecoupledDetect(AnchorHead):
    """YOLOv5's anchors with YOLOX's separate branches for classes and boxes (Ge et al., 2021).

    On each map a 1x1 convolution to `width` channels; then for each branch two 3x3 convolutions (with `light`:
    depthwise 3x3 and then 1x1) and a last 1x1 convolution. The branch of the boxes also predicts the objectness.
    """

    def __init__(self, nc: int, anchors: list[list[float]], width: int = 256, light: bool = False,
                 ch: Sequence[int] = ()) -> None:  # fmt: skip
        super().__init__(nc, anchors, ch)
        if not 1 <= width <= 4096:
            raise ValueError(f"width is {width}, it must be from 1 to 4096")
        self.stem = nn.ModuleList(Conv(c, width, 1) for c in ch)
        self.cls = nn.ModuleList(branch(width, width, 2, not light, self.na * nc) for _ in ch)
        self.box = nn.ModuleList(branch(width, width, 2, not light, self.na * BOX_ROWS) for _ in ch)

    def raw_map(self, x: Tensor, level: int) -> Tensor:
        """Map (b, c, h, w) number `level` -> raw map (b, na, h, w, no)."""
        x = self.stem[level](x)
        return torch.cat((self._by_anchor(self.box[level](x)), self._by_anchor(self.cls[level](x))), -1)

    @torch.no_grad()
    def initialize_biases(self) -> None:
        """Initialize the biases as `Detect`."""
        for cls, box, s in zip(self.cls, self.box, self.stride.tolist(), strict=True):
            box[-1].bias.view(self.na, -1)[:, 4] += math.log(8 / (640 / s) ** 2)
            cls[-1].bias += math.log(0.6 / (self.nc - 0.99999))

    def permute_inputs(self, level: int, order: Tensor | None) -> None:
        """Change the weights for an input map whose channels are in another order (None: they are not)."""
        permute_inputs(self.stem[level].conv, order)

    def class_rows(self, key: str) -> tuple[int, int]:
        """Return groups of rows, and the rows before the classes in each, of the tensor `key` of the state dict."""
        return (self.na, 0) if is_last_of_branch(self.cls, "cls", key) else (0, 0)
