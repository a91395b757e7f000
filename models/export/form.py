"""The exported form of a network: without channel shuffles, with box decoding and only widely supported operations."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.export.decoders import split_head
from models.yolo import DetectionModel


class ExportForm(nn.Module):
    """A network that maps images (b, 3, h, w), float in [0, 1], to decoded boxes (b, n, 5 + nc).

    A box has its centre, width and height in pixels, objectness and class scores, equal to those of the head up to
    rounding. size: (h, w) of the images, which makes the grid a constant; None for any size, with the grid computed in
    each call.
    """

    def __init__(self, model: DetectionModel, size: Sequence[int] | None) -> None:
        super().__init__()
        model = copy.deepcopy(model).float().eval().deploy().requires_grad_(False)
        head = model.model[-1]
        self.layers, self.save = model.model[:-1], frozenset(model.save)
        self.froms, self.no = [f % head.i for f in head.f], head.no
        self.convs, self.decoder = split_head(head, size)

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
        maps = [conv(outputs[f]) for conv, f in zip(self.convs, self.froms, strict=True)]
        return torch.cat([self.decoder(k, y) for k, y in enumerate(maps)], 1)
