"""Conversion of checkpoints of YOLOv5 (v6, v7), YOLOv5-Lite and their forks, which are pickled networks.

The file is read by `models.weights.unpickle`, which runs no code from it: the network's modules become placeholders
that hold its tensors, its yaml and its class names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from models.weights.unpickle import Inert
from models.yolo import parse_model
from utils.errors import UserError
from utils.settings.config import LARGEST_IMAGE, MODEL_KEYS, MOST_CLASSES, is_number, is_whole

BATCH_NORM_EPS = 1e-3  # of every batch norm in YOLOv5 and here
LONGEST_PREFIX = 200  # characters of a key; a damaged network may contain itself
PLAIN = (str, int, float, bool, type(None), dict, list, tuple)
# attributes in which two layers of the same class and with equal tensors can still differ
FACTS = ("kernel_size stride padding dilation groups padding_mode ceil_mode scale_factor mode size align_corners "
         "negative_slope alpha").split()  # fmt: skip
# blocks that forks name differently -> our name, {their name of a part: our name}
RENAMED_BLOCKS = {"conv_bn_relu_maxpool": ("CRM", {"conv": "conv1"}), "Shuffle_Block": ("InvertedResidual", {})}
# buffers that older versions computed from other tensors and stored too
DERIVED = ("anchor_grid",)


def foreign_content(tree: Any, where: str) -> dict[str, Any]:
    """Convert a tree from `read_torch_zip` to the content of a "weights" checkpoint (see `models.weights.checkpoint`).

    Uses the EMA weights if there are any. Raises UserError if the file does not contain a detector.
    """
    facts = tree if isinstance(tree, dict) else {"model": tree}
    model = facts["ema"] if isinstance(facts.get("ema"), Inert) else facts.get("model")
    if not isinstance(model, Inert) or not isinstance(model.state.get("yaml"), dict):
        raise UserError(f"{where}: contains {what_is(model)}, but not a YOLOv5 network with its yaml")
    try:
        check_plain({"yaml": model.state["yaml"], "names": model.state.get("names")})
        cfg = _our_yaml(model)
        names = _names(model, cfg)
        modules = list(_modules(model))
        if activation := _activation(modules):
            cfg["activation"] = activation
        tensors = dict(_tensors(modules))
        stride = model.state["stride"].tolist() if isinstance(model.state.get("stride"), Tensor) else None
        _check_layers(modules, cfg)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as e:
        reason = str(e) if type(e) is ValueError else f"{type(e).__name__}: {str(e)[:200]!r}"
        raise UserError(f"{where}: its network is invalid ({reason})") from e
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    content = {"kind": "weights", "model": tensors, "yaml": cfg, "names": names}
    if stride:
        content["stride"] = stride
    options = facts.get("opt")
    if isinstance(options, dict) and is_whole(options.get("imgsz")) and 32 <= options["imgsz"] <= LARGEST_IMAGE:
        content["imgsz"] = options["imgsz"]
    return {**content, **{k: facts[k] for k in ("epoch", "date") if isinstance(facts.get(k), (int, str))}}


def what_is(value: Any) -> str:
    """Describe the type of a value read from a file, for messages."""
    if isinstance(value, Inert):
        return f"an object of class {value.path}"
    name = type(value).__name__
    return "nothing" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def check_plain(value: Any, most: int = 1_000_000) -> None:
    """Raise ValueError unless `value` consists of plain values, at most `most` values and characters in total.

    A value that is referred to several times counts each time, because printing or comparing it takes that long.
    """
    waiting, seen = [value], 0
    while waiting:
        item = waiting.pop()
        seen += 1 + (len(item) if isinstance(item, str) else 0)
        if seen + len(waiting) > most:
            raise ValueError("its config is too large")
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, int) and abs(item) > 2**63 or not isinstance(item, PLAIN):
            raise ValueError(f"{what_is(item)} where a plain value is expected")


def _modules(model: Inert) -> Iterator[tuple[str, Inert]]:
    """Yield the modules of a network, in PyTorch's order, each with the prefix of its keys in the state dict."""
    waiting, seen = [("", model)], set()
    while waiting:
        prefix, module = waiting.pop()
        # blocks may share an activation, but not a module that has children, parameters or buffers
        if id(module) in seen and any(module.state[part] for part in ("_modules", "_parameters", "_buffers")):
            raise ValueError("one block is used in several places")
        seen.add(id(module))
        if len(prefix) > LONGEST_PREFIX:
            raise ValueError("its blocks are nested too deeply")
        yield prefix, module
        renamed = RENAMED_BLOCKS.get(_class(module), ("", {}))[1]
        children = [(k, m) for k, m in module.state["_modules"].items() if isinstance(m, Inert)]
        waiting += [(f"{prefix}{_proper(renamed.get(k, k))}.", m) for k, m in reversed(children)]


def _proper(key: Any) -> str:
    """Return the name of a part of a module unchanged. Raises ValueError if it is not fit to be part of a key."""
    if not isinstance(key, str) or not re.fullmatch(r"\w{1,40}", key):
        raise ValueError("one of its parts has an invalid name")
    return key


def _tensors(modules: Sequence[tuple[str, Inert]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the items of a network's state dict, with our names as keys."""
    storages = set()
    for prefix, module in modules:
        state = module.state
        eps = state.get("eps", BATCH_NORM_EPS)
        own = {**state["_parameters"], **state["_buffers"]}
        not_stored = state.get("_non_persistent_buffers_set")
        left_out = {*DERIVED, *(not_stored if isinstance(not_stored, set) else ())}
        own = {_proper(k): v for k, v in own.items() if v is not None and k not in left_out}
        for key, value in own.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{prefix}{key} is not a tensor")
            if value.numel() and value.untyped_storage().data_ptr() in storages:
                raise ValueError(f"{prefix}{key} shares its storage with another tensor")
            storages.add(value.untyped_storage().data_ptr())
        if "running_var" in own and "weight" in own and eps != BATCH_NORM_EPS:
            own["weight"] = fold_eps(own["weight"], own["running_var"], eps)
        yield from ((prefix + key, value) for key, value in own.items())


def fold_eps(weight: Tensor, running_var: Tensor, eps: float) -> Tensor:
    """Return the weight with which a batch norm of our eps computes, in eval mode, the same as one of another `eps`.

    weight: of the batch norm with `eps`. Both tensors: (c,).
    """
    var = running_var.double()
    return (weight.double() * torch.sqrt((var + BATCH_NORM_EPS) / (var + eps))).to(weight.dtype)


def _class(module: Inert) -> str:
    return module.path.rpartition(".")[2]


def _our_yaml(model: Inert) -> dict[str, Any]:
    """Return the model config, with our names of the blocks."""
    cfg = {k: v for k, v in model.state["yaml"].items() if k in MODEL_KEYS}
    for part in ("backbone", "head"):
        cfg[part] = [[*row[:2], RENAMED_BLOCKS.get(str(row[2]), (row[2],))[0], *row[3:]] for row in cfg[part]]
    if isinstance(file := model.state.get("yaml_file"), str):
        cfg["yaml_file"] = PurePath(file).name
    return cfg


def _activation(modules: Sequence[tuple[str, Inert]]) -> str:
    """Return the yaml's `activation:` for the activation of the convolutions; empty for SiLU, the default."""
    for _, module in modules:
        act = module.state["_modules"].get("act") if _class(module) == "Conv" else None
        if isinstance(act, Inert) and _class(act) != "Identity":
            number = act.state.get("negative_slope", act.state.get("alpha", ""))
            if number != "" and not is_number(number):
                raise ValueError(f"the argument of its {_class(act)} is not a number")
            return "" if _class(act) == "SiLU" else f"nn.{_class(act)}({number})"
    return ""


def _names(model: Inert, cfg: dict[str, Any]) -> dict[int, str]:
    if not is_whole(cfg["nc"]) or not 1 <= cfg["nc"] <= MOST_CLASSES:
        raise ValueError("its nc is not a valid number of classes")
    names = model.state.get("names") or range(cfg["nc"])
    named = {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
    if sorted(named) != list(range(cfg["nc"])):
        raise ValueError(f"{len(named)} class names for nc {cfg['nc']}")
    return named


def _check_layers(modules: Sequence[tuple[str, Inert]], cfg: dict[str, Any]) -> None:
    """Raise ValueError unless PyTorch's own layers in a network equal those of our network with the same config."""
    ours = {f"{name}.": m for name, m in outline(cfg, len(modules)).named_modules()}
    for prefix, module in modules:
        if not module.path.startswith("torch.nn.modules.") or prefix not in ours:
            continue  # missing layers are found later, when the tensors are compared
        own = ours[prefix]
        if type(own).__name__ != _class(module):
            raise ValueError(f"{prefix[:-1]} is {_class(module)} in the file and {type(own).__name__} in this program")
        for fact in FACTS:
            if hasattr(own, fact) and fact in module.state and module.state[fact] != getattr(own, fact):
                raise ValueError(f"{fact} of {prefix[:-1]} differs from that in this program")


def outline(cfg: dict[str, Any], blocks: int) -> nn.Module:
    """Return a module whose `model` has the layers of a config, on the meta device, at almost no cost.

    Raises ValueError if the config requires many more than `blocks` blocks, UserError if it is wrong.
    """
    rows = [row for row in (*cfg["backbone"], *cfg["head"]) if isinstance(row, list) and len(row) > 1]
    if sum(row[1] for row in rows if is_whole(row[1])) > 4 * blocks + 100:
        raise ValueError("its yaml requires more blocks than the file contains")
    network = nn.Module()
    with torch.device("meta"):
        network.model = parse_model(cfg, [cfg.get("ch", 3)])[0]
    return network
