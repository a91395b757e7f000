"""The exported form of a network: without channel shuffles, with box decoding and only widely supported operations."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.yolo import DetectionModel


class ExportForm(nn.Module):
    """A network that maps images (b, 3, h, w), float in [0, 1], to decoded boxes (b, n, 5 + nc).

    A box has its centre, width and height in pixels, objectness and class scores, equal to those of `Detect` up to
    rounding. size: (h, w) of the images, which makes the grid a constant; None for any size, with the grid computed in
    each call.
    """

    def __init__(self, model: DetectionModel, size: Sequence[int] | None) -> None:
        super().__init__()
        model = copy.deepcopy(model).float().eval().deploy().requires_grad_(False)
        head = model.model[-1]
        self.layers, self.save, self.convs = model.model[:-1], frozenset(model.save), head.m
        self.froms = [f % head.i for f in head.f]
        self.na, self.no = head.na, head.no
        self.strides = [float(s) for s in head.stride]
        for name, value in self._factors(head.anchors.float(), head.stride.reshape(-1, 1, 1)).items():
            self.register_buffer(name, value)
        self.fixed = size is not None
        for k, stride in enumerate(self.strides if size is not None else ()):
            across, down = self._offsets(k, torch.zeros(1, int(size[0] / stride), int(size[1] / stride), 1))
            self.register_buffer(f"across{k}", across)
            self.register_buffer(f"down{k}", down)

    def half_weights(self) -> ExportForm:
        """Convert the layers to float16 in place; boxes are still decoded in float32. Returns self."""
        self.layers.half()
        self.convs.half()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w), float in [0, 1], to decoded boxes (b, n, 5 + nc)."""
        outputs: list[Tensor | None] = []
        x = images
        for m in self.layers:
            if m.f != -1:
                x = outputs[m.f] if isinstance(m.f, int) else [x if f == -1 else outputs[f] for f in m.f]
            x = m(x)
            outputs.append(x if m.i in self.save else None)
        outputs[-1] = x
        return torch.cat([self._decode(k, conv(outputs[f])) for k, (conv, f) in
                          enumerate(zip(self.convs, self.froms, strict=True))], 1)  # fmt: skip

    def _decode(self, k: int, y: Tensor) -> Tensor:
        """Decode the head's map k, (b, na * no, h, w), to boxes (b, na * h * w, no).

        With y the sigmoid of the map, each value is y * (y * square + once) + offset. Engines compute this in one pass
        over memory, as channels are last, the layout of their convolutions. No tensor has more than four dimensions,
        as not every engine supports five.
        """
        y = y.permute(0, 2, 3, 1).float().sigmoid()
        b, h, w, _ = y.shape
        cells = int(h) * int(w) if self.fixed else h * w
        across, down = ((getattr(self, f"across{k}"), getattr(self, f"down{k}")) if self.fixed
                        else self._offsets(k, y))  # fmt: skip
        y = y * (y * self.square[k] + self.once[k]) + across + down
        return y.reshape(b, cells, self.na, self.no).permute(0, 2, 1, 3).reshape(b, self.na * cells, self.no)

    def _factors(self, anchors: Tensor, strides: Tensor) -> dict[str, Tensor]:
        """Return the factors of decoding, each (maps, na * no).

        `square` is for the squared sigmoid, `once` for the sigmoid, `is_x` and `is_y` for a cell's column and row.
        anchors: (maps, na, 2) in cells; strides: (maps, 1, 1) in pixels.
        """
        square, once, is_x, is_y = torch.zeros(4, len(anchors), self.na, self.no).unbind()
        square[..., 2:4] = 4 * anchors * strides
        once[..., :2] = 2 * strides
        once[..., 4:] = 1
        is_x[..., :1], is_y[..., 1:2] = strides, strides
        return {"square": square.flatten(1), "once": once.flatten(1), "is_x": is_x.flatten(1), "is_y": is_y.flatten(1)}

    def _offsets(self, k: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the grid offsets of x and y for map k, (1, 1, w, na * no) and (1, h, 1, na * no); y: (b, h, w, any).

        Cells are numbered by cumulative sums, as torch.arange would record its device as a constant in the trace.
        """
        columns, rows = torch.ones_like(y[:1, :1, :, :1]), torch.ones_like(y[:1, :, :1, :1])
        return (columns.cumsum(2) - 1.5) * self.is_x[k], (rows.cumsum(1) - 1.5) * self.is_y[k]
