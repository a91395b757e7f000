"""Fit the new layers of a light network to the outputs of the original network on the same images.

Layers are fitted one after another. The input of a layer is computed by the light network as fitted so far, the target
by the original network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.common import C3, Bottleneck, C3Slim, Conv, GSBottleneck, GSConv, SlimNeck, VoVGSCSP
from models.inference.runtime import to_input
from models.slimming.least_squares import regress, regress_gsconv, regress_slim, settle, unexplained
from models.slimming.surgery import Swap
from models.yolo import DetectionModel, trace_shapes
from utils.system.console import progress

ROUNDS = 2  # of alternating fits of a GSBottleneck's two branches
LEARNING_RATE = 1e-4


# --- two networks side by side ---------------------------------------------------------------------------------------


def sources(layer: nn.Module) -> list[int]:
    """Return the indices of the layers whose output a layer reads; -1 is the image."""
    return [f if f >= 0 else layer.i + f for f in ([layer.f] if isinstance(layer.f, int) else layer.f)]


def run_layer(model: DetectionModel, index: int, outputs: dict[int, Tensor]) -> Tensor:
    """Run one layer on `outputs`, the outputs of earlier layers by index (-1: the image)."""
    layer = model.model[index]
    given = [outputs[k] for k in sources(layer)]
    return layer(given[0] if isinstance(layer.f, int) else given)


class SideBySide:
    """A light network and its original, run layer by layer on the same batches of images (b, 3, h, w).

    `outputs` has for each batch the outputs (light, original) by layer index, only those that later layers read.
    `first` is the first layer that differs; `shared` has for each batch the outputs of the layers before it that it or
    later layers read, which are the same in both networks.
    """

    def __init__(self, slim: DetectionModel, original: DetectionModel, first: int, images: Sequence[Tensor]) -> None:
        self.slim, self.original, self.first, self.at = slim, original, first, 0
        self.outputs = [({-1: batch}, {-1: batch}) for batch in images]
        self.shared: list[dict[int, Tensor]] = []

    @torch.no_grad()
    def go_to(self, index: int) -> None:
        """Run all layers before `index` that have not run yet."""
        device = next(self.slim.parameters()).device
        for ours, theirs in self.outputs:  # batch by batch, so that the maps in between exist for one batch only
            for k in range(self.at, index):
                if k == 0:
                    ours[-1] = theirs[-1] = to_input(theirs[-1], device)
                if k == self.first:
                    self.shared.append(dict(ours))
                theirs[k] = run_layer(self.original, k, theirs)
                ours[k] = theirs[k] if k < self.first else run_layer(self.slim, k, ours)
                for gone in theirs.keys() - still_read(self.original, k + 1):
                    del ours[gone], theirs[gone]
        self.at = max(self.at, index)

    def inputs(self, index: int) -> list[tuple[Tensor, Tensor]]:
        """Return for each batch the input of layer `index`, which has one, in the light and the original network."""
        self.go_to(index)
        source = sources(self.original.model[index])[0]
        return [(ours[source], theirs[source]) for ours, theirs in self.outputs]


def still_read(model: DetectionModel, start: int) -> set[int]:
    """Return the indices of the layers whose output layer `start` or a later one reads."""
    return {k for layer in model.model[start:] for k in sources(layer)}


def held_bytes(model: DetectionModel, layers: Sequence[int], imgsz: int) -> int:
    """Estimate the bytes that the maps of one image take while these layers are fitted, at imgsz x imgsz pixels."""
    twin = copy.deepcopy(model).to("meta")
    twin.model[-1].train()  # only shapes are needed: boxes are not decoded
    sizes = [math.prod(shape[1:]) for shape in trace_shapes(twin, imgsz)] + [3 * imgsz**2]  # the last is layer -1
    held = [sum(sizes[k] for k in still_read(model, i) if k < i) for i in layers]
    return max(4 * (2 * both + 4 * sizes[i]) for i, both in zip(layers, held, strict=True))  # 4 sizes: inside a block


# --- blocks ----------------------------------------------------------------------------------------------------------


def target(conv: Conv, x: Tensor) -> Tensor:
    """Return the output of a Conv before its activation."""
    return conv.bn(conv.conv(x))


@torch.no_grad()
def fit_block(new: nn.Module, old: nn.Module, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Fit a light block initialized by `surgery.start_from`; inputs: pairs of inputs of the new and the old block."""
    if isinstance(new, SlimNeck):
        regress_slim(new, old, ((x, target(old, y)) for x, y in inputs))
    elif isinstance(new, GSConv):
        regress_gsconv(new, [(x, target(old, y)) for x, y in inputs])
    else:
        _fit_csp(new, old, inputs)


def _fit_csp(new: C3Slim | VoVGSCSP, old: C3, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Fit the branches, then the bottlenecks one after another, then the 1x1 convolution that joins the branches."""
    slim = isinstance(new, C3Slim)
    for ours, theirs in ((new.cv1, old.cv1), (new.cv2, old.cv2)):
        regress(ours, ((x, target(theirs, y)) for x, y in inputs))
    hidden = [(new.cv1(x), old.cv1(y)) for x, y in inputs]
    for ours, theirs in zip(new.m if slim else new.gsb, old.m, strict=True):
        (_fit_slim_bottleneck if slim else _fit_gsbottleneck)(ours, theirs, hidden)
        hidden = [(ours(x), theirs(y)) for x, y in hidden]

    def both() -> Iterator[tuple[Tensor, Tensor]]:
        for (x, y), (h, t) in zip(inputs, hidden, strict=True):
            side = new.cv2(x)
            yield torch.cat((h, side) if slim else (side, h), 1), target(old.cv3, torch.cat((t, old.cv2(y)), 1))

    regress(new.cv3, both())


def _fit_slim_bottleneck(new: Bottleneck, old: Bottleneck, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
    regress(new.cv1, ((x, target(old.cv1, y)) for x, y in inputs))
    regress_slim(new.cv2, old.cv2, ((new.cv1(x), target(old.cv2, old.cv1(y))) for x, y in inputs))


def _fit_gsbottleneck(new: GSBottleneck, old: Bottleneck, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Fit the first GSConv to the first convolution, then in turns the second one and the shortcut to their sum."""
    first, second = new.conv_lighting
    regress_gsconv(first, [(x, target(old.cv1, y)) for x, y in inputs])
    data = [(x, first(x), old(y)) for x, y in inputs]
    regress(new.shortcut, ((x, t) for x, _, t in data))
    for _ in range(ROUNDS):
        regress_gsconv(second, [(h, t - new.shortcut(x)) for x, h, t in data])
        regress(new.shortcut, ((x, t - second(h)) for x, h, t in data))


# --- the network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """The result of fitting one replaced layer.

    unexplained: 1 - R^2 of the new layer's output against the original's, with all layers before it already replaced;
    lost: how much lower this would be with the original layer in its place; kept: whether the new layer is kept.
    """

    swap: Swap
    parameters: int
    unexplained: float
    lost: float
    kept: bool = True


def parts(batches: int) -> tuple[slice, slice]:
    """Split batches into those to fit on and those to measure on; a single batch serves for both."""
    apart = max(batches // 8, 1) if batches > 1 else 0
    return slice(0, batches - apart), slice(batches - apart if apart else 0, batches)


def fit_layer(walk: SideBySide, swap: Swap, max_error: float | None = None) -> Fit:
    """Fit one replaced layer of the light network in place, after all layers before it.

    If the fit is not better than the initial weights, these are kept. If more than max_error is lost on the held-out
    images, the layer becomes a copy of the original one.
    """
    new, old = walk.slim.model[swap.index], walk.original.model[swap.index]
    inputs = walk.inputs(swap.index)
    fitting, measuring = parts(len(inputs))

    def share(layer: nn.Module) -> float:
        return unexplained((layer(x), old(y)) for x, y in inputs[measuring])

    start, weights = share(new), copy.deepcopy(new.state_dict())
    fit_block(new, old, inputs[fitting])
    fitted = share(new)
    if not fitted < start:
        new.load_state_dict(weights)
        fitted = start
    settle([new], lambda: [new(x) for x, _ in inputs[fitting]])
    lost = max(fitted - share(old), 0.0)
    kept = max_error is None or lost <= max_error
    if not kept:
        walk.slim.model[swap.index] = copy.deepcopy(old)
    return Fit(swap, new.np, fitted, lost, kept)


def polish(walk: SideBySide, kept: Sequence[int], steps: int) -> tuple[float, float]:
    """Train the replaced layers together with Adam, with the inputs of the original network's head as targets.

    Returns the unexplained share (1 - R^2) on held-out images, averaged over the maps, before and after. If it does not
    decrease, the layers keep their weights.
    """
    walk.go_to(len(walk.slim.model) - 1)
    fitting, measuring = parts(len(walk.shared))
    blocks = [walk.slim.model[i] for i in kept]
    before, weights = _head_share(walk, measuring), copy.deepcopy([b.state_dict() for b in blocks])
    _descend(walk, blocks, fitting, steps)
    settle(blocks, lambda: [_head_maps(walk, outputs) for outputs in walk.shared[fitting]])
    after = _head_share(walk, measuring)
    if not after < before:
        for block, state in zip(blocks, weights, strict=True):
            block.load_state_dict(state)
        after = before
    return before, after


def _descend(walk: SideBySide, blocks: Sequence[nn.Module], fitting: slice, steps: int) -> None:
    """Run Adam on the mean squared error of the head's input maps, each divided by its variance; one batch a step."""
    data = [(outputs, _targets(walk, n)) for n, outputs in enumerate(walk.shared)][fitting]
    levels = zip(*(targets for _, targets in data), strict=True)
    spread = [torch.stack([t.var((0, 2, 3)).mean() for t in level]).mean() for level in levels]
    parameters = [p.requires_grad_(True) for b in blocks for p in b.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    for step in progress(range(steps), desc="together"):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        outputs, targets = data[step % len(data)]
        maps = _head_maps(walk, outputs)
        loss = sum((y - t).square().mean() / v for y, t, v in zip(maps, targets, spread, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for p in parameters:
        p.requires_grad_(False)


def _head_maps(walk: SideBySide, outputs: dict[int, Tensor]) -> list[Tensor]:
    """Return the inputs of the light network's head, computed from the outputs that both networks share."""
    outputs, head = dict(outputs), walk.slim.model[-1]
    for k in range(walk.first, head.i):
        outputs[k] = run_layer(walk.slim, k, outputs)
    return [outputs[k] for k in sources(head)]


def _targets(walk: SideBySide, batch: int) -> list[Tensor]:
    return [walk.outputs[batch][1][k] for k in sources(walk.original.model[-1])]


@torch.no_grad()
def _head_share(walk: SideBySide, batches: slice) -> float:
    found = [(_head_maps(walk, walk.shared[n]), _targets(walk, n)) for n in range(len(walk.shared))[batches]]
    levels = range(len(found[0][0]))
    return sum(unexplained((y[k], t[k]) for y, t in found) for k in levels) / len(levels)
