"""The form of a network that is exported: shuffle-free, decoding built in, without what converters stumble on."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.yolo import DetectionModel


class ExportForm(nn.Module):
    """A network as one function: images (b, 3, h, w) float in [0, 1] to decoded boxes (b, n, 5 + nc).

    These are centre, width and height in pixels, objectness and class scores, as `Detect` gives them, but for rounding.
    size: (h, w) of the images, for which the grid is then a constant; None for any, to be worked out each time.
    """

    def __init__(self, model: DetectionModel, size: Sequence[int] | None) -> None:
        super().__init__()
        model = copy.deepcopy(model).float().eval().deploy().requires_grad_(False)
        head = model.model[-1]
        self.layers, self.save, self.convs = model.model[:-1], frozenset(model.save), head.m
        self.froms = [f % head.i for f in head.f]
        self.na, self.no = head.na, head.no
        self.strides = [float(s) for s in head.stride]
        self.register_buffer("anchors", head.anchors.float() * head.stride.reshape(-1, 1, 1))
        self.fixed = size is not None
        if size is not None:
            maps = [torch.zeros(1, 1, int(size[0] / s), int(size[1] / s)) for s in self.strides]
            for name, value in zip(("scale", "offset", "area"), self._grid(maps), strict=True):
                self.register_buffer(name, value)

    def half_weights(self) -> ExportForm:
        """The layers in float16, in place; boxes are still worked out in float32. Returns self."""
        self.layers.half()
        self.convs.half()
        return self

    def forward(self, images: Tensor) -> Tensor:
        outputs: list[Tensor | None] = []
        x = images
        for m in self.layers:
            if m.f != -1:
                x = outputs[m.f] if isinstance(m.f, int) else [x if f == -1 else outputs[f] for f in m.f]
            x = m(x)
            outputs.append(x if m.i in self.save else None)
        outputs[-1] = x
        maps = [conv(outputs[f]) for conv, f in zip(self.convs, self.froms, strict=True)]
        rows = []
        for y in maps:  # with four axes at most, as not every engine has five
            b, _, h, w = y.shape
            cells = int(h) * int(w) if self.fixed else h * w
            y = y.reshape(b, self.na, self.no, cells).permute(0, 1, 3, 2)
            rows.append(y.reshape(b, self.na * cells, self.no))
        y = torch.cat(rows, 1).float().sigmoid()
        scale, offset, area = ((self.scale, self.offset, self.area) if self.fixed
                               else self._grid(maps))  # fmt: skip
        xy, wh, scores = y.split((2, 2, self.no - 4), 2)
        return torch.cat((xy * scale + offset, wh * wh * area, scores), 2)

    def _grid(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What turns sigmoids into pixels: xy * scale + offset, and wh squared * area; each (1, n, 1 or 2).

        maps: of the head, (b, c, h, w). Cells are counted by sums along them, as a device named here would be traced.
        """
        scales, offsets, areas = [], [], []
        for one, stride, anchors in zip(maps, self.strides, self.anchors, strict=True):
            h, w = one.shape[2:]
            ones = torch.ones_like(one[0, 0], dtype=torch.float32)
            cells = torch.stack((ones.cumsum(1), ones.cumsum(0)), -1).reshape(1, h * w, 2)
            offset = ((cells - 1.5) * stride).expand(self.na, h * w, 2)
            offsets.append(offset.reshape(self.na * h * w, 2))
            scales.append(torch.full_like(offsets[-1][:, :1], 2 * stride))
            areas.append((4 * anchors).reshape(self.na, 1, 2).expand(self.na, h * w, 2).reshape(self.na * h * w, 2))
        return torch.cat(scales)[None], torch.cat(offsets)[None], torch.cat(areas)[None]
