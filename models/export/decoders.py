"""Box decoding in exported networks, one class for each kind of head, with widely supported operations only.

No tensor has more than four dimensions, as not every engine supports five.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.heads.anchor_free import AnchorFreeDetect
from models.heads.anchors import BOX_ROWS, AnchorHead, Detect
from models.heads.base import Head


class Branches(nn.Module):
    """The box and class branch of one map of a head; both read the output of `stem`."""

    def __init__(self, box: nn.Module, cls: nn.Module, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.box, self.cls = nn.Identity() if stem is None else stem, box, cls

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, c, h, w) -> maps of the boxes and of the classes."""
        x = self.stem(x)
        return self.box(x), self.cls(x)


def split_head(head: Head, size: Sequence[int] | None) -> tuple[nn.ModuleList, Decoder]:
    """Return the convolutions of a head, one module per map, and the decoder of what they compute.

    size: (h, w) of the images, which makes the grid a constant; None for any size, with the grid computed in each call.
    """
    if isinstance(head, Detect):
        return head.m, AnchorDecoder(head, size)
    stems = head.stem if hasattr(head, "stem") else [None] * head.nl
    parts = nn.ModuleList(Branches(*three) for three in zip(head.box, head.cls, stems, strict=True))
    return parts, (AnchorFreeDecoder if isinstance(head, AnchorFreeDetect) else DecoupledDecoder)(head, size)


class Decoder(nn.Module):
    """Decodes what the convolutions of map k compute into detections (b, n, 5 + nc)."""

    def __init__(self, head: Head, size: Sequence[int] | None) -> None:
        super().__init__()
        self.na, self.nc, self.strides, self.fixed = head.na, head.nc, [float(s) for s in head.stride], size is not None
        self.sides = [(int(size[0] / s), int(size[1] / s)) for s in self.strides] if size is not None else []

    def forward(self, k: int, y: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Decode the map or maps (b, channels, h, w) of level k into detections (b, na * h * w, 5 + nc)."""
        raise NotImplementedError

    def _cells(self, y: Tensor) -> int | Tensor:
        """Return the number of cells of a map whose last two dimensions are h and w."""
        h, w = y.shape[2:]
        return int(h) * int(w) if self.fixed else h * w


class AnchorDecoder(Decoder):
    """Decoder of `Detect`: with y the sigmoid of a map, each value is y * (y * square + once) + offset.

    Engines compute this in one pass over memory, as channels are last, the layout of their convolutions.
    """

    def __init__(self, head: AnchorHead, size: Sequence[int] | None, values: int | None = None) -> None:
        super().__init__(head, size)
        self.values = values or head.no
        for name, value in self._factors(head.anchors.float(), head.stride.reshape(-1, 1, 1)).items():
            self.register_buffer(name, value)
        for k, (h, w) in enumerate(self.sides):
            across, down = self._offsets(k, torch.zeros(1, h, w, 1))
            self.register_buffer(f"across{k}", across)
            self.register_buffer(f"down{k}", down)

    def forward(self, k: int, y: Tensor) -> Tensor:
        """Decode a map (b, na * values, h, w) into (b, na * h * w, values)."""
        b, cells = y.shape[0], self._cells(y)
        y = y.permute(0, 2, 3, 1).float().sigmoid()
        across, down = ((getattr(self, f"across{k}"), getattr(self, f"down{k}")) if self.fixed
                        else self._offsets(k, y))  # fmt: skip
        y = y * (y * self.square[k] + self.once[k]) + across + down
        return y.reshape(b, cells, self.na, self.values).permute(0, 2, 1, 3).reshape(b, self.na * cells, self.values)

    def _factors(self, anchors: Tensor, strides: Tensor) -> dict[str, Tensor]:
        """Return the factors of decoding, each (maps, na * values).

        `square` is for the squared sigmoid, `once` for the sigmoid, `is_x` and `is_y` for a cell's column and row.
        anchors: (maps, na, 2) in cells; strides: (maps, 1, 1) in pixels.
        """
        square, once, is_x, is_y = torch.zeros(4, len(anchors), self.na, self.values).unbind()
        square[..., 2:4] = 4 * anchors * strides
        once[..., :2] = 2 * strides
        once[..., 4:] = 1
        is_x[..., :1], is_y[..., 1:2] = strides, strides
        return {"square": square.flatten(1), "once": once.flatten(1), "is_x": is_x.flatten(1), "is_y": is_y.flatten(1)}

    def _offsets(self, k: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the grid offsets of x and y for map k, (1, 1, w, values) and (1, h, 1, values); y: (b, h, w, any).

        Cells are numbered by cumulative sums, as torch.arange would record its device as a constant in the trace.
        """
        columns, rows = torch.ones_like(y[:1, :1, :, :1]), torch.ones_like(y[:1, :, :1, :1])
        return (columns.cumsum(2) - 1.5) * self.is_x[k], (rows.cumsum(1) - 1.5) * self.is_y[k]


class DecoupledDecoder(AnchorDecoder):
    """Decoder of `DecoupledDetect`, whose classes are in a map of their own."""

    def __init__(self, head: AnchorHead, size: Sequence[int] | None) -> None:
        super().__init__(head, size, BOX_ROWS)

    def forward(self, k: int, y: tuple[Tensor, Tensor]) -> Tensor:
        """Decode maps (b, na * 5, h, w) and (b, na * nc, h, w) into detections (b, na * h * w, 5 + nc)."""
        box, cls = y
        b, cells = cls.shape[0], self._cells(cls)
        scores = cls.permute(0, 2, 3, 1).float().sigmoid().reshape(b, cells, self.na, self.nc)
        scores = scores.permute(0, 2, 1, 3).reshape(b, self.na * cells, self.nc)
        return torch.cat((super().forward(k, box), scores), 2)


class AnchorFreeDecoder(Decoder):
    """Decoder of `AnchorFreeDetect`: the distances to the sides of a box are means of distributions."""

    def __init__(self, head: AnchorFreeDetect, size: Sequence[int] | None) -> None:
        super().__init__(head, size)
        self.reg_max = head.reg_max
        self.register_buffer("bins", torch.arange(self.reg_max, dtype=torch.float32).reshape(1, 1, -1, 1))
        for k, (h, w) in enumerate(self.sides):
            self.register_buffer(f"centres{k}", self._centres(torch.zeros(1, 1, h, w)))

    def forward(self, k: int, y: tuple[Tensor, Tensor]) -> Tensor:
        """Decode maps (b, 4 * max(reg_max, 1), h, w) and (b, nc, h, w) into detections (b, h * w, 5 + nc)."""
        box, cls = y[0].float(), y[1].float()
        b, cells = cls.shape[0], self._cells(cls)
        centres = getattr(self, f"centres{k}") if self.fixed else self._centres(cls)
        if self.reg_max:
            ltrb = (box.reshape(b, 4, self.reg_max, cells).softmax(2) * self.bins).sum(2)
        else:
            ltrb = nn.functional.softplus(box).reshape(b, 4, cells)
        near, far = ltrb[:, :2], ltrb[:, 2:]
        scores = cls.reshape(b, self.nc, cells).sigmoid()
        sure = torch.ones_like(scores[:, :1])
        boxes = torch.cat((centres + (far - near) / 2, near + far), 1) * self.strides[k]
        return torch.cat((boxes, sure, scores), 1).permute(0, 2, 1)

    def _centres(self, y: Tensor) -> Tensor:
        """Return the centres x, y of the cells of a map (b, c, h, w) in units of its stride, (1, 2, h * w)."""
        one = torch.ones_like(y[:1, :1])
        return (torch.cat((one.cumsum(3), one.cumsum(2)), 1) - 0.5).reshape(1, 2, self._cells(y))
