"""What all heads have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from models.common import Conv


class Head(nn.Module):
    """The last layer of a detector: it turns feature maps into detections.

    Attributes: `nc` (classes), `no` = nc + 5 (values of a detection), `nl` (maps), `na` (predictions per cell),
    `stride` (of the maps, in pixels, (nl,)).

    In training mode it returns a list of raw maps (b, na, h, w, values), the input of its loss. In eval mode it returns
    a pair: the decoded detections (b, n, no), which are cx, cy, w, h in pixels, objectness and class scores in [0, 1];
    and the raw maps.
    """

    nc: int
    no: int
    nl: int
    na: int
    stride: Tensor

    def forward(self, x: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """List of nl maps (b, c_i, h_i, w_i) -> raw maps in training mode, (detections, raw maps) in eval mode."""
        raw = [self.raw_map(xi, i) for i, xi in enumerate(x)]
        if self.training:
            return raw
        return torch.cat([self.decode(r, i) for i, r in enumerate(raw)], 1), raw

    @abstractmethod
    def raw_map(self, x: Tensor, level: int) -> Tensor:
        """Map (b, c, h, w) number `level` -> raw map (b, na, h, w, values)."""

    @abstractmethod
    def decode(self, raw: Tensor, level: int) -> Tensor:
        """Decode one raw map (b, na, h, w, values) into detections (b, na * h * w, no), in float32."""

    @abstractmethod
    def initialize_biases(self) -> None:
        """Initialize the biases of the last convolutions, once the strides are known."""

    @abstractmethod
    def permute_inputs(self, level: int, order: Tensor | None) -> None:
        """Change the weights for an input map whose channels are in another order (None: they are not)."""

    @abstractmethod
    def class_rows(self, key: str) -> tuple[int, int]:
        """Return groups of rows, and the rows before the classes in each, of the tensor `key` of the state dict.

        (0, 0) for a tensor whose size does not depend on the number of classes.
        """

    def set_strides(self, strides: list[float]) -> None:
        """Set the strides of the maps, in pixels."""
        self.stride = torch.tensor(strides)

    def anchor_rows(self) -> list[list[list[float]]]:
        """Return the anchors in pixels, (nl, na, 2) as lists; empty if the head has none."""
        return []


def branch(c: int, width: int, depth: int, plain: bool, outputs: int) -> nn.Sequential:
    """Return `depth` convolutions to `width` channels and a last 1x1 convolution to `outputs` channels.

    c: input channels. plain: 3x3 convolutions; otherwise each is a depthwise 3x3 and then a 1x1 convolution, without a
    batch norm and an activation in between (Chollet, Xception, 2017), which take more time than the convolutions.
    """
    layers: list[nn.Module] = []
    for _ in range(depth):
        depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        layers += [Conv(c, width, 3)] if plain else [depthwise, Conv(c, width, 1)]
        c = width
    return nn.Sequential(*layers, nn.Conv2d(c, outputs, 1))


def is_last_of_branch(branches: nn.ModuleList, name: str, key: str) -> bool:
    """Whether a state-dict key belongs to the last convolution of one of the branches, an attribute called `name`."""
    return any(key.startswith(f"{name}.{i}.{len(b) - 1}.") for i, b in enumerate(branches))
