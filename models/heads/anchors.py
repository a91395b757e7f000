"""YOLOv5's anchor-based head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.registry import register


@register(channels="head", example=(20, [[10, 13, 16, 30, 33, 23]]))
class Detect(nn.Module):
    """YOLOv5's head: a 1x1 convolution per map; for each of `na` anchors it predicts `no` = nc + 5 values per cell.

    In training mode it returns a list of raw maps (b, na, h, w, no). In eval mode it returns a pair: the decoded
    detections (b, n, no), which are cx, cy, w, h in pixels, objectness and class scores in [0, 1]; and the raw maps.
    """

    def __init__(self, nc: int, anchors: list[list[float]], ch: list[int]) -> None:
        super().__init__()
        self.nc = nc
        self.no = nc + 5
        self.nl = len(anchors)
        self.na = len(anchors[0]) // 2
        if len(ch) != self.nl:
            raise ValueError(f"Detect has {len(ch)} input maps but {self.nl} rows of anchors")
        self.stride = torch.zeros(self.nl)
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32).reshape(self.nl, -1, 2))
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in ch)

    def forward(self, x: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """List of nl maps (b, c_i, h_i, w_i) -> raw maps in training mode, (detections, raw maps) in eval mode."""
        raw = [self._raw(conv(xi)) for conv, xi in zip(self.m, x, strict=True)]
        if self.training:
            return raw
        return torch.cat([self.decode(r, i) for i, r in enumerate(raw)], 1), raw

    def _raw(self, y: Tensor) -> Tensor:
        b, _, h, w = y.shape
        return y.reshape(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous()

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

    @torch.no_grad()
    def initialize_biases(self) -> None:
        """Initialize the biases for about 8 objects in a 640 px image and equally likely classes (RetinaNet, 2017)."""
        for conv, s in zip(self.m, self.stride.tolist(), strict=True):
            b = conv.bias.view(self.na, -1)
            b[:, 4] += math.log(8 / (640 / s) ** 2)
            b[:, 5:] += math.log(0.6 / (self.nc - 0.99999))
