"""The shuffle-free form of a network: channel shuffles folded into the weights of the convolutions that follow.

A shuffle only renames channels, so the next convolution can read them where they lie if the columns of its weights are
put in that order. Each layer here may leave its output in an order of its own; what reads it is adjusted. For
inference: batch norms are folded too, and the state dict is no longer that of the config.
"""

from __future__ import annotations

from collections.abc import Sequence

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

# channel k of what a layer gives is channel order[k] of what it gave before; None: all lie where they did
Order = Tensor | None
PASSING = (nn.Upsample, nn.MaxPool2d, nn.Identity)


class Reorder(nn.Module):
    """Puts the channels of one or several maps back where a block expects them that cannot be adjusted; calls it."""

    def __init__(self, block: nn.Module, orders: Sequence[Order]) -> None:
        super().__init__()
        self.block = block
        for k, order in enumerate(orders):
            self.register_buffer(f"back{k}", None if order is None else order.argsort())

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if isinstance(x, Tensor):
            return self.block(self._put_back(x, 0))
        return self.block([self._put_back(xi, k) for k, xi in enumerate(x)])

    def _put_back(self, x: Tensor, k: int) -> Tensor:
        back = getattr(self, f"back{k}")
        return x if back is None else x.index_select(1, back)


class UnshuffledGSConv(nn.Module):
    """A GSConv whose two halves stay one after the other."""

    def __init__(self, block: GSConv) -> None:
        super().__init__()
        self.cv1, self.cv2 = block.cv1, block.cv2

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return torch.cat((x, self.cv2(x)), 1)


class UnshuffledStage(nn.Module):
    """ShuffleNetV2 units in a row, without shuffles: each channel stays where it was made until a unit reads it.

    Of what a unit makes, half is read by the next one, a quarter by the one after, and so on: pieces of the output
    that need no copy but the one that puts together what a unit reads. `order` is that of the stage's output.
    """

    def __init__(self, units: list[InvertedResidual]) -> None:
        super().__init__()
        first = units[0] if units[0].stride > 1 else None
        width = units[-1].branch2[-3].out_channels * 2
        self.heads = nn.ModuleList([first.branch1, first.branch2] if first else [nn.Identity()])
        self.units = nn.ModuleList(u.branch2 for u in units[1 if first else 0 :])
        # a channel is (which source made it, its place there); sources are the heads, then the units
        sources = [width // len(self.heads)] * len(self.heads) + [width // 2] * len(self.units)
        made = [[(s, k) for k in range(n)] for s, n in enumerate(sources)]
        channels = [c for pair in zip(*made[: len(self.heads)], strict=True) for c in pair]
        reads: list[list[tuple[int, int]]] = []  # by each unit, and last what is left for the output
        for k in range(len(self.units)):
            passing, read = channels[: width // 2], channels[width // 2 :]
            reads.append(read)
            channels = [c for pair in zip(passing, made[len(self.heads) + k], strict=True) for c in pair]
        reads.append(channels)
        stored = [sorted(r) for r in reads]
        # how many channels of each source each reader takes; those for later readers lie in front
        self.widths = [[sum(c[0] == s for c in r) for r in reads] for s in range(len(sources))]
        for unit, read, have in zip(self.units, reads, stored, strict=False):
            permute_inputs(unit[0], _places(have, read))
        self.order = _places(stored[-1], reads[-1])

    def forward(self, x: Tensor) -> Tensor:
        pieces: list[list[Tensor]] = [[] for _ in range(len(self.units) + 1)]
        for source, head in enumerate(self.heads):
            self._hand_out(head(x), source, pieces)
        for k, unit in enumerate(self.units):
            self._hand_out(unit(_joined(pieces[k])), len(self.heads) + k, pieces)
        return _joined(pieces[-1])

    def _hand_out(self, made: Tensor, source: int, pieces: list[list[Tensor]]) -> None:
        """Give each reader its piece of what a source has made."""
        readers = [r for r, n in enumerate(self.widths[source]) if n][::-1]
        parts = made.split([self.widths[source][r] for r in readers], 1) if len(readers) > 1 else [made]
        for reader, part in zip(readers, parts, strict=True):
            pieces[reader].append(part)


def _joined(pieces: list[Tensor]) -> Tensor:
    return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]


def _places(stored: list, wanted: list) -> Tensor:
    """Where in `wanted` each of `stored` stands."""
    where = {c: k for k, c in enumerate(wanted)}
    return torch.tensor([where[c] for c in stored])


@torch.no_grad()
def permute_inputs(conv: nn.Conv2d, order: Order) -> None:
    """Make an ungrouped convolution read channels that come in `order`."""
    if order is not None:
        conv.weight.copy_(conv.weight[:, order])


@torch.no_grad()
def permute_outputs(conv: nn.Conv2d, order: Order) -> None:
    """Make a convolution give its channels in `order`; of a depthwise one, that they come in it."""
    if order is not None:
        conv.weight.copy_(conv.weight[order])
        if conv.bias is not None:
            conv.bias.copy_(conv.bias[order])


def unshuffle(layers: nn.Sequential, saved: Sequence[int], widths: Sequence[int]) -> dict[int, Order]:
    """Bring the layers of a network, all but the last (its head), into their shuffle-free form.

    layers: with batch norms folded; changed in place. saved: those whose output a later one reads; widths: output
    channels of each. Returns the order of each one's output. A shuffle stays, as a gather, only in front of a block
    that is not known here.
    """
    orders: dict[int, Order] = {-1: None}
    for i, m in enumerate(list(layers)[:-1]):
        sources = [i + f if f < 0 else f for f in ([m.f] if isinstance(m.f, int) else m.f)]
        came = [orders[s] for s in sources]
        units, following = _units(layers[i]), _units(layers[i + 1])
        alone = i not in saved and layers[i + 1].f == -1
        if alone and units and following and all(u.stride == 1 for u in following):
            layers[i + 1] = nn.Sequential(*units, *following)  # one stage, in the second one's place
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
    """The ShuffleNetV2 units of a layer that consists of them, none of another layer."""
    units = list(m) if isinstance(m, nn.Sequential) else [m]
    return units if all(type(u) is InvertedResidual for u in units) else []


def _concatenated(orders: Sequence[Order], widths: Sequence[int]) -> Order:
    """The order of maps put one behind the other."""
    if all(o is None for o in orders):
        return None
    starts = [sum(widths[:k]) for k in range(len(widths))]
    return torch.cat([start + (torch.arange(n) if o is None else o)
                      for o, n, start in zip(orders, widths, starts, strict=True)])  # fmt: skip


def _restored(m: nn.Module, came: Sequence[Order]) -> nn.Module:
    """A block that cannot be adjusted to the order in which its input comes."""
    return m if all(o is None for o in came) else Reorder(m, came)


def _adjusted(m: nn.Module, came: Order) -> tuple[nn.Module, Order]:
    """A block in its shuffle-free form, reading channels in the order `came`; and the order of its output."""
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
    """ShuffleNetV2 units as stages, a new one at each stride above 1."""
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
    """In which order the shuffle would have to find what a GSConv makes."""
    width = m.cv1.conv.out_channels * 2
    return channel_shuffle(torch.arange(width).reshape(1, width, 1, 1), width // 2).flatten().argsort()


def _adjusted_bottleneck(m: GSBottleneck, came: Order) -> tuple[nn.Module, Order]:
    """A GSBottleneck: what stands beside its two GSConv is put in their order, so that both can be added."""
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
    """The bottlenecks of a VoVGSCSP, and what puts their result together with the other half."""
    hidden = m.cv1.conv.out_channels
    order = None
    if isinstance(m, VoVGSCSPC):  # a depthwise convolution cannot turn an order into another
        order = _gsconv_order(m.gsb[-1].conv_lighting[1])
        permute_outputs(m.cv1.conv, order)
    _, order = _adjusted(m.gsb, order)
    permute_inputs(m.cv3.conv, _concatenated([None, order], [hidden, hidden]))
