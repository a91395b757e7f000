"""Shuffle-free networks for inference: channel shuffles are folded into the weights of the following convolutions.

A shuffle only permutes channels, so it can be dropped if the input channels of the next convolution's weights are
permuted instead. Each layer may therefore output its channels in a different order than before; the layers that read
them are adjusted. Batch norms must be folded first, and the state dict no longer matches the config.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from models.common import (
    C3,
    SPPF,
    C3Slim,
    Concat,
    Conv,
    DWConv,
    GSBottleneck,
    GSBottleneckC,
    GSConv,
    GSConvns,
    InvertedResidual,
    VoVGSCSP,
    VoVGSCSPC,
    channel_shuffle,
)

# output channel k of a converted layer is output channel order[k] of the original layer; None: the order is unchanged
Order = Tensor | None
PASSING = (nn.Upsample, nn.MaxPool2d, nn.Identity)


class Reorder(nn.Module):
    """Wrapper for a block that cannot be adjusted: restores the original channel order of its inputs, then calls it."""

    def __init__(self, block: nn.Module, orders: Sequence[Order]) -> None:
        super().__init__()
        self.block = block
        for k, order in enumerate(orders):
            self.register_buffer(f"back{k}", None if order is None else order.argsort())

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        """Call the block on x, a map (b, c, h, w) or a list of maps."""
        if isinstance(x, Tensor):
            return self.block(self._put_back(x, 0))
        return self.block([self._put_back(xi, k) for k, xi in enumerate(x)])

    def _put_back(self, x: Tensor, k: int) -> Tensor:
        back = getattr(self, f"back{k}")
        return x if back is None else x.index_select(1, back)


class UnshuffledGSConv(nn.Module):
    """GSConv without its shuffle: the two halves stay concatenated."""

    def __init__(self, block: GSConv) -> None:
        super().__init__()
        self.cv1, self.cv2 = block.cv1, block.cv2

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h / s, w / s)."""
        x = self.cv1(x)
        return torch.cat((x, self.cv2(x)), 1)


class UnshuffledStage(nn.Module):
    """ShuffleNetV2 units without shuffles: channels stay where they were computed until a unit reads them.

    The next unit reads half of the channels that a unit computes, the one after that a quarter, and so on. Each output
    is split into one piece per reader, and the only copy is the concatenation of the pieces that a unit reads.
    `order` is the channel order of the stage's output.
    """

    def __init__(self, units: list[InvertedResidual]) -> None:
        super().__init__()
        first = units[0] if units[0].stride > 1 else None
        width = units[-1].branch2[-3].out_channels * 2
        self.heads = nn.ModuleList([first.branch1, first.branch2] if first else [nn.Identity()])
        self.units = nn.ModuleList(u.branch2 for u in units[1 if first else 0 :])
        # a channel is (index of the source that computes it, index within that source); sources: heads, then units
        sources = [width // len(self.heads)] * len(self.heads) + [width // 2] * len(self.units)
        made = [[(s, k) for k in range(n)] for s, n in enumerate(sources)]
        channels = [c for pair in zip(*made[: len(self.heads)], strict=True) for c in pair]
        reads: list[list[tuple[int, int]]] = []  # the channels that each unit reads; last, those of the stage's output
        for k in range(len(self.units)):
            passing, read = channels[: width // 2], channels[width // 2 :]
            reads.append(read)
            channels = [c for pair in zip(passing, made[len(self.heads) + k], strict=True) for c in pair]
        reads.append(channels)
        stored = [sorted(r) for r in reads]
        # number of channels that each reader takes from each source; within a source, those of later readers come first
        self.widths = [[sum(c[0] == s for c in r) for r in reads] for s in range(len(sources))]
        for unit, read, have in zip(self.units, reads, stored, strict=False):
            permute_inputs(unit[0], _places(have, read))
        self.order = _places(stored[-1], reads[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h / s, w / s), with the channels in `order`."""
        pieces: list[list[Tensor]] = [[] for _ in range(len(self.units) + 1)]
        for source, head in enumerate(self.heads):
            self._hand_out(head(x), source, pieces)
        for k, unit in enumerate(self.units):
            self._hand_out(unit(_joined(pieces[k])), len(self.heads) + k, pieces)
        return _joined(pieces[-1])

    def _hand_out(self, made: Tensor, source: int, pieces: list[list[Tensor]]) -> None:
        """Split the output of a source and append each reader's piece to `pieces`."""
        readers = [r for r, n in enumerate(self.widths[source]) if n][::-1]
        for reader, part in zip(readers, _split(made, [self.widths[source][r] for r in readers]), strict=True):
            pieces[reader].append(part)


def _split(made: Tensor, widths: Sequence[int]) -> Sequence[Tensor]:
    """Split a map along the channels into parts of these widths.

    ONNX graphs get one Slice per part, as OpenCV 4.7 cannot load a Split of uneven parts. ONNX Runtime fuses the slices
    of a map into a Split again.
    """
    if len(widths) == 1:
        return [made]
    if torch.onnx.is_in_onnx_export():
        return [made[:, end - width : end] for width, end in zip(widths, accumulate(widths), strict=True)]
    return made.split(widths, 1)


def _joined(pieces: list[Tensor]) -> Tensor:
    return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]


def _places(stored: list, wanted: list) -> Tensor:
    """Return the index in `wanted` of each element of `stored`."""
    where = {c: k for k, c in enumerate(wanted)}
    return torch.tensor([where[c] for c in stored])


@torch.no_grad()
def permute_inputs(conv: nn.Conv2d, order: Order) -> None:
    """Permute the input channels of an ungrouped convolution, for an input in `order`."""
    if order is not None:
        conv.weight.copy_(conv.weight[:, order])


@torch.no_grad()
def permute_outputs(conv: nn.Conv2d, order: Order) -> None:
    """Permute the output channels of a convolution into `order` (a depthwise one also needs its input in it)."""
    if order is not None:
        conv.weight.copy_(conv.weight[order])
        if conv.bias is not None:
            conv.bias.copy_(conv.bias[order])


def unshuffle(layers: nn.Sequential, saved: Sequence[int], widths: Sequence[int]) -> dict[int, Order]:
    """Convert the layers of a network, except the last (its head), to their shuffle-free form.

    layers: with batch norms folded; changed in place. saved: indices of the layers whose output is kept for a later
    layer. widths: output channels of each layer. Returns the channel order of each layer's output. A shuffle remains,
    as an `index_select`, only in front of blocks that this module does not know.
    """
    orders: dict[int, Order] = {-1: None}
    for i, m in enumerate(list(layers)[:-1]):
        sources = [i + f if f < 0 else f for f in ([m.f] if isinstance(m.f, int) else m.f)]
        came = [orders[s] for s in sources]
        units, following = _units(layers[i]), _units(layers[i + 1])
        alone = i not in saved and layers[i + 1].f == -1
        if alone and units and following and all(u.stride == 1 for u in following):
            layers[i + 1] = nn.Sequential(*units, *following)  # both layers as one stage; layer i becomes an Identity
            new, orders[i] = nn.Identity(), came[0]
        elif type(m) is Concat and m.d == 1:
            new, orders[i] = m, _concatenated(came, [widths[s] for s in sources])
        elif len(came) == 1:
            new, orders[i] = _adjusted(layers[i], came[0])
        else:
            new, orders[i] = _restored(m, came), None
        new.i, new.f, new.type, new.np = m.i, m.f, m.type, m.np
        layers[i] = new
    return orders


def _units(m: nn.Module) -> list[InvertedResidual]:
    """Return the ShuffleNetV2 units of a layer that consists of nothing else; an empty list for other layers."""
    units = list(m) if isinstance(m, nn.Sequential) else [m]
    return units if all(type(u) is InvertedResidual for u in units) else []


def _concatenated(orders: Sequence[Order], widths: Sequence[int]) -> Order:
    """Return the order of the concatenation of maps with these orders and widths."""
    if all(o is None for o in orders):
        return None
    starts = [sum(widths[:k]) for k in range(len(widths))]
    return torch.cat([start + (torch.arange(n) if o is None else o)
                      for o, n, start in zip(orders, widths, starts, strict=True)])  # fmt: skip


def _restored(m: nn.Module, came: Sequence[Order]) -> nn.Module:
    """Wrap a block that cannot be adjusted in `Reorder`, unless all its inputs are in their original order."""
    return m if all(o is None for o in came) else Reorder(m, came)


def _adjusted(m: nn.Module, came: Order) -> tuple[nn.Module, Order]:
    """Return a block in its shuffle-free form, for an input in the order `came`, and the order of its output."""
    kind = type(m)
    if isinstance(m, PASSING):
        return m, came
    if _units(m):
        return _adjusted_units(_units(m), came)
    if kind is nn.Sequential:
        for k, child in enumerate(m):
            m[k], came = _adjusted(child, came)
        return m, came
    if kind in (Conv, DWConv) and m.conv.groups == 1:
        permute_inputs(m.conv, came)
        return m, None
    if kind is GSConv and m.cv1.conv.groups == 1:
        permute_inputs(m.cv1.conv, came)
        return UnshuffledGSConv(m), _gsconv_order(m)
    if kind in (GSBottleneck, GSBottleneckC):
        return _adjusted_bottleneck(m, came)
    if kind in (C3, C3Slim, SPPF, GSConvns, VoVGSCSP, VoVGSCSPC) and m.cv1.conv.groups == 1:
        permute_inputs(m.cv1.conv, came)
        if kind not in (SPPF, GSConvns):
            permute_inputs(m.cv2.conv, came)
        if isinstance(m, VoVGSCSP):
            _adjust_inside(m)
        return m, None
    return _restored(m, [came]), None


def _adjusted_units(units: list[InvertedResidual], came: Order) -> tuple[nn.Module, Order]:
    """Group ShuffleNetV2 units into stages, each stride above 1 starting a new one; returns them and their order."""
    starts = [k for k, u in enumerate(units) if k == 0 or u.stride > 1]
    stages = []
    for start, end in zip(starts, [*starts[1:], len(units)], strict=True):
        first = units[start]
        if first.stride > 1:
            permute_outputs(first.branch1[0], came)  # depthwise
            permute_inputs(first.branch1[2], came)
            permute_inputs(first.branch2[0], came)
        stage = UnshuffledStage(units[start:end])
        stages.append(stage if first.stride > 1 else _restored(stage, [came]))
        came = stage.order
    return stages[0] if len(stages) == 1 else nn.Sequential(*stages), came


def _gsconv_order(m: GSConv) -> Tensor:
    """Return the channel order of a GSConv's output without its shuffle."""
    width = m.cv1.conv.out_channels * 2
    return channel_shuffle(torch.arange(width).reshape(1, width, 1, 1), width // 2).flatten().argsort()


def _adjusted_bottleneck(m: GSBottleneck, came: Order) -> tuple[nn.Module, Order]:
    """Convert a GSBottleneck: its shortcut gets the order of its two GSConv, so that their outputs can be added."""
    made = _gsconv_order(m.conv_lighting[1])
    beside = m.shortcut.conv
    if beside.groups > 1 and not (beside.groups == len(made) and came is not None and torch.equal(came, made)):
        return _restored(m, [came]), None
    _adjusted(m.conv_lighting, came)
    if beside.groups == 1:
        permute_inputs(beside, came)
    permute_outputs(beside, made)
    return m, made


def _adjust_inside(m: VoVGSCSP) -> None:
    """Convert the bottlenecks of a VoVGSCSP and adjust cv3, which reads their output."""
    hidden = m.cv1.conv.out_channels
    order = None
    if isinstance(m, VoVGSCSPC):  # its depthwise shortcut cannot change the order, so cv1 outputs the right one
        order = _gsconv_order(m.gsb[-1].conv_lighting[1])
        permute_outputs(m.cv1.conv, order)
    _, order = _adjusted(m.gsb, order)
    permute_inputs(m.cv3.conv, _concatenated([None, order], [hidden, hidden]))
