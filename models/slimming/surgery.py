"""Replace layers of a trained network with lighter ones, initialized from the trained kernels.

The result is an ordinary model with other rows in its yaml. With slimneck (Li et al., 2022), `Conv` becomes `GSConv`
and `C3` becomes `VoVGSCSP`. With slimconv, `Conv` becomes `SlimNeck`, a grouped convolution and a 1x1 convolution, and
`C3` becomes `C3Slim`. All other layers keep their weights. If images are available,
`models/slimming/reconstruct.py` then fits the new layers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.common import C3, Bottleneck, C3Slim, Conv, GSBottleneck, GSConv, SlimNeck, VoVGSCSP, channel_shuffle
from models.yolo import DetectionModel, parse_model
from utils.errors import UserError

KINDS: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "slimneck": MappingProxyType({"Conv": "GSConv", "C3": "VoVGSCSP"}),
    "slimconv": MappingProxyType({"Conv": "SlimNeck", "C3": "C3Slim"}),
})  # fmt: skip
TINY = 1e-12  # least norm to divide by, for kernels that are all zero


@dataclass(frozen=True)
class Swap:
    """A layer to replace: its index, the names of its present and new block, the arguments of the new yaml row."""

    index: int
    old: str
    new: str
    args: tuple[Any, ...]


# --- which layers, and as what ---------------------------------------------------------------------------------------


def parse_layers(text: str, cfg: Mapping[str, Any]) -> list[int]:
    """Parse `--layers`: `neck` (the yaml's head without Detect), `all`, or `10,13,17-20`; returns sorted indices.

    Raises UserError for any other text, and for layers that the model does not have.
    """
    first, last = len(cfg["backbone"]), len(cfg["backbone"]) + len(cfg["head"]) - 1
    word = text.strip().lower()
    if word in ("neck", "all"):
        return list(range(first if word == "neck" else 0, last))
    chosen: set[int] = set()
    for part in word.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if not match:
            raise UserError(f"--layers {text}: {part.strip()!r} is not neck, all, a number such as 13 or a range "
                            "such as 10-23; separate several with commas")  # fmt: skip
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise UserError(f"--layers {text}: {low}-{high} runs backwards; give {high}-{low}")
        if high > last:
            raise UserError(f"--layers {text}: there is no layer {high}; this model has layers 0 to {last}, neck is "
                            f"{first}-{last - 1}")  # fmt: skip
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def plan_swaps(
    model: DetectionModel, to: str, layers: Sequence[int], group_size: int = 1
) -> tuple[list[Swap], dict[int, str]]:
    """Return the replacements of `layers`, and {index: reason} for layers with weights that cannot be replaced.

    to: a key of KINDS. group_size: channels per group of slimconv's grouped convolutions; if it does not divide the
    number of channels, the next smaller divisor is used. Raises UserError if nothing can be replaced.
    """
    rows = [*model.yaml["backbone"], *model.yaml["head"]]
    swaps, left = [], {}
    for i in layers:
        found = _light_form(rows[i], model.model[i], to, group_size)
        if isinstance(found, str):
            if model.model[i].np:
                left[i] = found
        else:
            swaps.append(Swap(i, rows[i][2], KINDS[to][rows[i][2]], found))
    with torch.device("meta"):
        trial = parse_model(slim_config(model, swaps), [model.yaml.get("ch", 3)])[0]
    heavy = {s.index: f"{s.new} would have {trial[s.index].np:,} parameters in place of {model.model[s.index].np:,}"
             for s in swaps if trial[s.index].np >= model.model[s.index].np}  # fmt: skip
    swaps, left = [s for s in swaps if s.index not in heavy], dict(sorted({**left, **heavy}.items()))
    if not swaps:
        reasons = "; ".join(f"{i} {rows[i][2]}: {reason}" for i, reason in list(left.items())[:3])
        raise UserError(f"--layers names nothing that --to {to} can replace: {reasons or 'no layer there has weights'}")
    return swaps, left


def _light_form(row: Sequence[Any], layer: nn.Module, to: str, group_size: int) -> tuple[Any, ...] | str:
    """Return the arguments of the new yaml row for a layer, or the reason why it cannot be replaced."""
    name, args = row[2], row[3]
    if isinstance(layer, nn.Sequential):
        return "several blocks in one row"
    if type(layer) is Conv and name == "Conv":
        if len(args) > 3:
            return f"its row {args} has more than width, kernel and stride"
        if to == "slimneck":
            return tuple(args) if layer.conv.out_channels % 2 == 0 else f"its width {layer.conv.out_channels} is odd"
        if layer.conv.kernel_size == (1, 1):
            return "a 1x1 convolution has nothing to separate"
        width, k, s = (*args, 1)[:3]
        return width, k, s, groups_of(layer.conv.in_channels, group_size)
    if type(layer) is C3 and name == "C3":
        width, shortcut, g, *e = (*args, *(True, 1)[len(args) - 1 :]) if len(args) < 3 else args
        if g != 1:
            return f"its row {args} already has groups"
        hidden = layer.cv1.conv.out_channels
        if to == "slimneck":
            return tuple(args) if hidden % 2 == 0 else f"its hidden width {hidden} is odd"
        return width, shortcut, groups_of(hidden, group_size), *e
    return f"{name} has no light form; only {' and '.join(KINDS[to])} have one"


def groups_of(width: int, group_size: int) -> int:
    """Return into how many equal groups of at most `group_size` channels to split `width` channels."""
    return next(width // size for size in range(min(group_size, width), 0, -1) if width % size == 0)


def slim_config(model: DetectionModel, swaps: Sequence[Swap]) -> dict[str, Any]:
    """Return the model's yaml with the rows of `swaps` replaced and its current anchors, in pixels."""
    cfg, head = copy.deepcopy(model.yaml), model.model[-1]
    for swap in swaps:
        part, i = ("backbone", swap.index) if swap.index < len(cfg["backbone"]) else (
            "head", swap.index - len(cfg["backbone"]))  # fmt: skip
        cfg[part][i] = [*cfg[part][i][:2], swap.new, list(swap.args)]
    if rows := head.anchor_rows():
        cfg["anchors"] = [[round(v, 4) for pair in row for v in pair] for row in rows]
    cfg["yaml_file"] = f"{Path(cfg.get('yaml_file') or 'model').stem.removesuffix('_slim')}_slim.yaml"
    return cfg


def transplant(model: DetectionModel, swaps: Sequence[Swap]) -> DetectionModel:
    """Return a new model in eval mode: layers of `swaps` are replaced and initialized, all others are copied.

    `model` is not changed. The same random state gives the same weights.
    """
    slim = DetectionModel(slim_config(model, swaps), ch=model.yaml.get("ch", 3))
    slim.names = dict(model.names)
    replaced = {s.index for s in swaps}
    for i, (old, new) in enumerate(zip(model.model, slim.model, strict=True)):
        if i in replaced:
            start_from(new, old)
        else:
            new.load_state_dict(old.state_dict())
    return slim.to(next(model.parameters()).device).eval()


# --- new blocks from trained ones ------------------------------------------------------------------------------------


@torch.no_grad()
def start_from(new: nn.Module, old: nn.Module) -> None:
    """Initialize a light block from the weights of the block it replaces, as far as they correspond.

    A SlimNeck or C3Slim gets the best approximation of the kernels. In a GSConv or VoVGSCSP the dense half of the
    channels is exact, and the depthwise half has no counterpart.
    """
    if isinstance(new, SlimNeck):
        _start_slim(new, old)
    elif isinstance(new, GSConv):
        _start_gsconv(new, old)
    elif isinstance(new, C3Slim):
        for ours, theirs in ((new.cv1, old.cv1), (new.cv2, old.cv2), (new.cv3, old.cv3)):
            ours.load_state_dict(theirs.state_dict())
        for ours, theirs in zip(new.m, old.m, strict=True):
            ours.cv1.load_state_dict(theirs.cv1.state_dict())
            _start_slim(ours.cv2, theirs.cv2)
    else:
        _start_vovgscsp(new, old)


def separate(weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the grouped k x k kernel and the 1x1 kernel that together best approximate a kernel (c_out, c_in, k, k).

    Their shapes are (c_in, c_in / groups, k, k) and (c_out, c_in, 1, 1). Each group is a matrix with c_out rows; its
    truncated singular value decomposition is the best approximation of that rank (Eckart and Young, 1936). Groups do
    not share weights, so the approximation of the whole kernel is the best too.
    """
    c_out, c_in, k, _ = weight.shape
    size = c_in // groups
    matrices = weight.double().reshape(c_out, groups, size * k * k).transpose(0, 1)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    rank = min(size, s.shape[1])
    grouped, pointwise = weight.new_zeros(groups, size, size * k * k), weight.new_zeros(groups, c_out, size)
    grouped[:, :rank] = vh[:, :rank].to(weight)
    pointwise[:, :, :rank] = (u * s[:, None])[:, :, :rank].to(weight)
    return grouped.reshape(c_in, size, k, k), pointwise.transpose(0, 1).reshape(c_out, c_in, 1, 1)


def neutral(bn: nn.BatchNorm2d) -> None:
    """Make a batch norm the identity in eval mode, whatever its statistics are."""
    bn.weight.copy_(torch.sqrt(bn.running_var + bn.eps))
    bn.bias.copy_(bn.running_mean)


def _start_slim(new: SlimNeck, old: Conv) -> None:
    grouped, pointwise = separate(old.conv.weight, new.grouped.conv.groups)
    new.grouped.conv.weight.copy_(grouped)
    neutral(new.grouped.bn)
    new.pointwise.conv.weight.copy_(pointwise)
    new.pointwise.bn.load_state_dict(old.bn.state_dict())


def places(width: int) -> tuple[Tensor, Tensor]:
    """Return the indices of a GSConv's output channels from its dense half and from its depthwise half, in order."""
    source = channel_shuffle(torch.arange(width).reshape(1, width, 1, 1), width // 2).flatten()
    target = torch.argsort(source)
    return target[: width // 2], target[width // 2 :]


def _start_gsconv(new: GSConv, old: Conv) -> None:
    dense, cheap = places(old.conv.out_channels)
    new.cv1.conv.weight.copy_(old.conv.weight[dense])
    copy_rows(new.cv1.bn, old.bn, dense)
    # each depthwise channel reads only one dense channel; it starts from the similarity of the two original kernels
    common = torch.cosine_similarity(old.conv.weight[cheap].flatten(1), old.conv.weight[dense].flatten(1))
    new.cv2.conv.weight.zero_()
    middle = new.cv2.conv.kernel_size[0] // 2
    new.cv2.conv.weight[:, 0, middle, middle] = common
    new.cv2.bn.weight.copy_(old.bn.weight[cheap])
    new.cv2.bn.bias.copy_(old.bn.bias[cheap])


def copy_rows(new: nn.BatchNorm2d, old: nn.BatchNorm2d, rows: Tensor) -> None:
    """Copy the channels `rows` of a batch norm to another one."""
    for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, key).copy_(getattr(old, key)[rows])


def _start_vovgscsp(new: VoVGSCSP, old: C3) -> None:
    new.cv1.load_state_dict(old.cv1.state_dict())
    new.cv2.load_state_dict(old.cv2.state_dict())
    new.cv3.load_state_dict(old.cv3.state_dict())
    half = old.cv1.conv.out_channels
    # a C3 concatenates the bottlenecks' output first, a VoVGSCSP the other branch
    new.cv3.conv.weight.copy_(torch.cat((old.cv3.conv.weight[:, half:], old.cv3.conv.weight[:, :half]), 1))
    for ours, theirs in zip(new.gsb, old.m, strict=True):
        _start_gsbottleneck(ours, theirs)


def _start_gsbottleneck(new: GSBottleneck, old: Bottleneck) -> None:
    for ours, theirs in zip(new.conv_lighting, (old.cv1, old.cv2), strict=True):
        _start_gsconv(ours, theirs)
    width = new.shortcut.conv.in_channels
    identity = torch.eye(width).reshape(width, width, 1, 1)
    new.shortcut.conv.weight.copy_(identity if old.add else torch.zeros_like(identity))
    neutral(new.shortcut.bn)


@torch.no_grad()
def unexplained_kernel(new: nn.Module, old: nn.Module) -> float:
    """Return the share of the old kernels' squared norm that the new block does not represent, from 0 to 1."""
    if isinstance(new, SlimNeck):
        return _lost(new, old) / max(_energy(old), TINY)
    if isinstance(new, C3Slim):
        lost = sum(_lost(ours.cv2, theirs.cv2) for ours, theirs in zip(new.m, old.m, strict=True))
    elif isinstance(new, GSConv):
        lost = _energy(old, places(old.conv.out_channels)[1])
    else:
        lost = sum(_energy(c, places(c.conv.out_channels)[1]) for b in old.m for c in (b.cv1, b.cv2))
    return lost / max(sum(_energy(m) for m in old.modules() if isinstance(m, Conv)), TINY)


def _energy(conv: Conv, rows: Tensor | slice = slice(None)) -> float:
    return float(conv.conv.weight[rows].double().square().sum())


def _lost(new: SlimNeck, old: Conv) -> float:
    return float((old.conv.weight - combined(new)).double().square().sum())


def combined(block: SlimNeck) -> Tensor:
    """Return the kernel (c_out, c_in, k, k) of a single convolution equal to a SlimNeck's two, without batch norms."""
    grouped, pointwise = block.grouped.conv.weight, block.pointwise.conv.weight
    groups = block.grouped.conv.groups
    _, size, k, _ = grouped.shape
    parts = pointwise.reshape(-1, groups, size).transpose(0, 1) @ grouped.reshape(groups, size, -1)
    return parts.transpose(0, 1).reshape(-1, size * groups, k, k)
