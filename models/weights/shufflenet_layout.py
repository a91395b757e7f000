"""ShuffleNetV2 weights in the layout of its authors' code, converted to torchvision's.

The authors' units shuffle at their start: of the channels of the previous output, the even ones pass on and the odd
ones are computed with; the output is the concatenation of both. torchvision's units pass on the first half, compute
with the second half, and shuffle at the end. If the convolutions write their channels in a suitable order, both compute
the same: a channel must be passed on as often as before.

Keys: `first_conv`, then `stageN.k.branch_main` and `branch_proj` or, counted over all stages, `features.n`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from utils.errors import UserError

BRANCHES = {"branch_proj": "branch1", "branch_main": "branch2"}
READS = {"branch1": ("0", "1", "2"), "branch2": ("0",)}  # layers whose weights depend on the order of the input
WRITES = {"branch1": ("2", "3"), "branch2": ("5", "6")}  # and of the output
Channel = tuple[int, int, int]  # unit, branch (0: proj, 1: main) and index of the output that a channel comes from


def is_authors_layout(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the authors' keys."""
    return any(key.startswith("first_conv.") for key in state) and any(".branch_main." in key for key in state)


def as_torchvision(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return a state dict with torchvision's keys and channel order, and the order of each stage's output.

    Channel k of a stage is then channel order[k] of the original. Keys of other layers are left out. A state dict with
    missing or odd tensors is converted as far as possible; comparison with the network tells what is wrong. Raises
    UserError for widths that no such network can have.
    """
    found = {re.sub("^first_conv", "conv1", k): v for k, v in state.items() if k.startswith("first_conv.")}
    orders: list[Tensor] = []
    came: Tensor | None = None
    for stage, units in _stages(state).items():
        came = _convert_stage(units, came, f"stage{stage}.", found)
        orders.append(came)
    return found, orders


def _stages(state: Mapping[str, Tensor]) -> dict[int, list[dict[str, Tensor]]]:
    """Return the units of each stage, from 2 on, as {branch.layer.name: tensor}; a unit with branch_proj begins one."""
    pattern = re.compile(r"(?:stage(\d)|features)\.(\d+)\.(branch_proj|branch_main)\.(.+)")
    units: dict[tuple[int, int], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if match := pattern.fullmatch(key):
            stage, number, branch, rest = match.groups()
            units.setdefault((int(stage or 0), int(number)), {})[f"{BRANCHES[branch]}.{rest}"] = tensor
    stages: dict[int, list[dict[str, Tensor]]] = {}
    for place in sorted(units):
        if any(key.startswith("branch1.") for key in units[place]) or not stages:
            stages[len(stages) + 2] = []
        stages[len(stages) + 1].append(units[place])
    return stages


def _convert_stage(
    units: list[dict[str, Tensor]], came: Tensor | None, prefix: str, found: dict[str, Tensor]
) -> Tensor:
    """Add a stage's tensors to `found`; returns the order of its output. came: the order of its input."""
    last = units[0].get("branch2.5.weight", torch.zeros(0))
    half = last.shape[0] if last.ndim == 4 else 0
    if half % 2:
        raise UserError(f"{prefix}0.branch_main writes {half} channels, which cannot be passed on by halves")
    theirs: list[Channel] = []
    ours: list[Channel] = []
    for number, unit in enumerate(units):
        left = len(units) - 1 - number  # units that follow in this stage
        made = {b: _output_order(half, b, left) for b in (0, 1)}
        if number == 0:
            read = came
            theirs = [(0, b, i) for b in (0, 1) for i in range(half)]
            first: list[Channel] = [(0, 0, i) for i in made[0].tolist()]
        else:
            before = {channel: place for place, channel in enumerate(theirs[1::2])}
            read = torch.tensor([before[channel] for channel in ours[half:]])
            theirs = theirs[::2] + [(number, 1, i) for i in range(half)]
            first = ours[:half]
        second = [(number, 1, i) for i in made[1].tolist()]
        ours = [channel for pair in zip(first, second, strict=True) for channel in pair]
        for key, tensor in unit.items():
            branch, layer, name = (*key.split("."), "", "")[:3]
            found[f"{prefix}{number}.{key}"] = _reordered(tensor, branch, layer, name, read, made)
    places = {channel: place for place, channel in enumerate(theirs)}
    return torch.tensor([places[channel] for channel in ours])


def _output_order(half: int, branch: int, left: int) -> Tensor:
    """Return which of a branch's output channels becomes channel k here, for all k.

    Channels are sorted by how many of the `left` following units pass them on, here and in the authors' units; those
    with equal numbers correspond.
    """
    theirs = [_times_even(i + branch * half, left) for i in range(half)]
    ours = [_times_in_first_half(2 * k + branch, half, left) for k in range(half)]
    order = torch.empty(half, dtype=torch.long)
    order[torch.tensor(ours).argsort(stable=True)] = torch.tensor(theirs).argsort(stable=True)
    return order


def _times_even(place: int, most: int) -> int:
    """Return how often a channel at this place is passed on by the authors' units, at most `most` times."""
    times = 0
    while times < most and place % 2 == 0:
        place, times = place // 2, times + 1
    return times


def _times_in_first_half(place: int, half: int, most: int) -> int:
    """Return how often a channel at this place is passed on by torchvision's units, at most `most` times."""
    times = 0
    while times < most and place < half:
        place, times = place * 2, times + 1
    return times


def _reordered(
    tensor: Tensor, branch: str, layer: str, name: str, read: Tensor | None, made: Mapping[int, Tensor]
) -> Tensor:
    """Return a tensor of a unit for an input in the order `read` and outputs in the orders `made`."""
    if not tensor.ndim:  # the counter of a batch norm
        return tensor
    if layer in READS[branch] and read is not None:
        per_channel = branch == "branch1" and layer in ("0", "1")  # depthwise, and its batch norm
        if per_channel and len(tensor) == len(read):
            tensor = tensor[read]
        elif not per_channel and name == "weight" and tensor.ndim == 4 and tensor.shape[1] == len(read):
            tensor = tensor[:, read]
    order = made[int(branch == "branch2")]
    if layer in WRITES[branch] and len(tensor) == len(order):
        tensor = tensor[order]
    return tensor
