"""Checkpoints of YOLOv5 (v6, v7), YOLOv5-Lite and their forks: a pickled network becomes a checkpoint of ours.

The file is read by `utils.unpickle`, which runs nothing of it: what is left of the network are stand-ins that hold
its tensors, its yaml and its class names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from utils.config import MODEL_KEYS, is_whole
from utils.errors import UserError
from utils.unpickle import Inert

BATCH_NORM_EPS = 1e-3  # of every batch norm in YOLOv5 and here
DEEPEST, MOST_MODULES = 40, 50_000  # far beyond any detector; a damaged network may contain itself
# what forks call a block we have: our name, and their names of its parts
RENAMED_BLOCKS = {"conv_bn_relu_maxpool": ("CRM", {"conv": "conv1"}), "Shuffle_Block": ("InvertedResidual", {})}
# computed from other tensors by older versions, and stored beside them
DERIVED = ("anchor_grid",)


def foreign_content(tree: Any, where: str) -> dict[str, Any]:
    """Turn what `read_torch_zip` returned into the content of a "weights" checkpoint (see `models.checkpoint`).

    The smoothed weights are taken where there are any. Raises UserError if it holds no detector.
    """
    model = tree
    if isinstance(tree, dict):
        model = tree.get("ema") or tree.get("model")
    if not isinstance(model, Inert) or not isinstance(model.state.get("yaml"), dict):
        raise UserError(f"{where}: holds {_what(model)}, but no YOLOv5 network with its yaml")
    try:
        tensors = dict(_tensors(model))
        cfg = _our_yaml(model)
        names = _names(model, cfg)
        stride = model.state["stride"].tolist() if isinstance(model.state.get("stride"), Tensor) else None
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as e:
        raise UserError(f"{where}: its network makes no sense ({type(e).__name__}: {e})") from e
    facts = tree if isinstance(tree, dict) else {}
    content = {"kind": "weights", "model": tensors, "yaml": cfg, "names": names}
    if stride:
        content["stride"] = stride
    options = facts.get("opt")
    if isinstance(options, dict) and is_whole(options.get("imgsz")):
        content["imgsz"] = options["imgsz"]
    return {**content, **{k: facts[k] for k in ("epoch", "date") if isinstance(facts.get(k), (int, str))}}


def _what(model: Any) -> str:
    if isinstance(model, Inert):
        return f"an object of class {model.path}"
    return "nothing" if model is None else f"a {type(model).__name__}"


def _modules(model: Inert) -> Iterator[tuple[str, Inert]]:
    """The modules of a network, in PyTorch's order, each with the prefix of its keys in the state dict."""
    waiting = [("", model)]
    for _ in range(MOST_MODULES):
        if not waiting:
            return
        prefix, module = waiting.pop()
        if prefix.count(".") > DEEPEST:
            break
        yield prefix, module
        renamed = RENAMED_BLOCKS.get(_class(module), ("", {}))[1]
        children = [(k, m) for k, m in module.state["_modules"].items() if isinstance(m, Inert)]
        waiting += [(f"{prefix}{renamed.get(k, k)}.", m) for k, m in reversed(children)]
    raise ValueError("blocks in blocks without end")


def _tensors(model: Inert) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a network: keys as we call them, and tensors."""
    for prefix, module in _modules(model):
        state = module.state
        eps = state.get("eps", BATCH_NORM_EPS)
        own = {**state["_parameters"], **state["_buffers"]}
        if own.get("running_var") is not None and eps != BATCH_NORM_EPS and own.get("weight") is not None:
            own["weight"] = fold_eps(own["weight"], own["running_var"], eps)
        for key, value in own.items():
            if value is None or key in DERIVED or key in state.get("_non_persistent_buffers_set", ()):
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"{prefix}{key} is no tensor")
            yield prefix + key, value


def fold_eps(weight: Tensor, running_var: Tensor, eps: float) -> Tensor:
    """The weight with which a batch norm of our eps gives, evaluated, what one of another `eps` gave."""
    var = running_var.double()
    return (weight.double() * torch.sqrt((var + BATCH_NORM_EPS) / (var + eps))).to(weight.dtype)


def _class(module: Inert) -> str:
    return module.path.rpartition(".")[2]


def _our_yaml(model: Inert) -> dict[str, Any]:
    """The model config under our names of the blocks."""
    cfg = {k: v for k, v in model.state["yaml"].items() if k in MODEL_KEYS}
    for part in ("backbone", "head"):
        cfg[part] = [[*row[:2], RENAMED_BLOCKS.get(str(row[2]), (row[2],))[0], *row[3:]] for row in cfg[part]]
    if activation := _activation(model):
        cfg["activation"] = activation
    if isinstance(file := model.state.get("yaml_file"), str):
        cfg["yaml_file"] = PurePath(file).name
    return cfg


def _activation(model: Inert) -> str:
    """The `activation:` that stands for what the convolutions use; empty for SiLU, the one that needs no mention."""
    for _, module in _modules(model):
        act = module.state["_modules"].get("act") if _class(module) == "Conv" else None
        if isinstance(act, Inert) and _class(act) != "Identity":
            number = act.state.get("negative_slope", act.state.get("alpha", ""))
            return "" if _class(act) == "SiLU" else f"nn.{_class(act)}({number})"
    return ""


def _names(model: Inert, cfg: dict[str, Any]) -> dict[int, str]:
    names = model.state.get("names") or list(range(cfg["nc"]))
    named = dict(names) if isinstance(names, dict) else dict(enumerate(names))
    named = {int(k): str(v) for k, v in named.items()}
    if sorted(named) != list(range(cfg["nc"])):
        raise ValueError(f"{len(named)} class names for nc {cfg['nc']}")
    return named
