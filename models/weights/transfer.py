"""Transfer of pretrained weights: tensors that fit are loaded, class rows of a head by the names of the classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from models.heads.anchors import BOX_ROWS
from models.weights.checkpoint import model_from_checkpoint
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.system.console import LOGGER

LITTLE = 0.2  # a warning is printed if a smaller share of the parameters was loaded
SYNONYMS = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}  # COCO, VOC


@dataclass
class Transfer:
    """Result of a transfer.

    Keys of the tensors that were loaded as a whole, loaded in part (of heads), and not loaded; the matched classes.
    """

    whole: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)  # name in the model -> name in the checkpoint
    left: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return "342 of 349 tensors loaded; head: boxes, objectness, classes by name: a; not loaded: ..."."""
        total = len(self.whole) + len(self.parts) + len(self.left)
        text = f"{len(self.whole)} of {total} tensors loaded"
        if self.parts:
            classes = ", ".join(k if k == v else f"{k} from {v}" for k, v in self.classes.items()) or "none"
            text += f"; head: boxes, objectness, classes by name: {classes}"
        if self.left:
            text += f"; not loaded: {', '.join(self.left[:4])}" + (", ..." if len(self.left) > 4 else "")
        return text

    def table(self, model: DetectionModel) -> str:
        """Return a table with a row per layer: how many of its tensors were loaded, loaded in part, or stayed new."""
        counts = {kind: Counter(_layer(k) for k in keys)
                  for kind, keys in (("loaded", self.whole), ("in part", self.parts), ("new", self.left))}  # fmt: skip
        rows = [f"{'layer':>6}  {'module':<18}{'loaded':>8}{'in part':>9}{'new':>7}"]
        for m in model.model:
            numbers = [counts[kind][m.i] for kind in ("loaded", "in part", "new")]
            if any(numbers):
                rows.append(f"{m.i:>6}  {m.type:<18}{numbers[0]:>8}{numbers[1]:>9}{numbers[2]:>7}")
        return "\n".join(rows)


def _layer(key: str) -> int:
    return int(key.split(".")[1])


def transfer_weights(
    model: DetectionModel, content: Mapping[str, Any], where: str | Path, anchors: bool = False,
    fresh_head: bool = False, verbose: bool = False,
) -> Transfer:  # fmt: skip
    """Copy every tensor of a checkpoint whose name and shape fit into `model`. Returns and prints what was loaded.

    content: the checkpoint; where: its name, for messages.
    anchors: load the anchors too (otherwise the model keeps those of its own config).
    fresh_head: load nothing into the head. Otherwise, if the classes differ, the head's rows for boxes and objectness
    are loaded, and the rows of classes with the same name (ignoring case, spaces, `-` and `_`; COCO's names match
    VOC's). If the classes of one side have no names, only numbers, a head for equally many classes is loaded unchanged.
    verbose: also print a table of the layers. Raises UserError if no tensor fits.
    """
    own, given = model.state_dict(), content["model"]
    result, chosen = Transfer(), {}
    theirs, prefix = content["names"], f"model.{len(model.model) - 1}."
    other_head = "yaml" in content and _head_of(content["yaml"]) != _head_of(model.yaml)
    same = same_classes(model.names, theirs)
    alike = model.names == theirs or _nameless(model.names) or _nameless(theirs)
    for key, tensor in own.items():
        new, in_head = given.get(key), key.startswith(prefix) and not key.endswith(".anchors")
        groups, before = model.model[-1].class_rows(key.removeprefix(prefix)) if in_head else (0, 0)
        # a counter or a bias is loaded only together with its weight, which comes before it in the state dict
        partner = key.removesuffix(".num_batches_tracked").removesuffix(".bias") + ".weight"
        lonely = partner != f"{key}.weight" and partner in own and partner not in chosen
        kept_out = key.endswith(".anchors") and not anchors or in_head and (fresh_head or other_head)
        if new is None or lonely or kept_out:
            result.left.append(key)
        elif new.shape == tensor.shape and (alike or not groups):
            chosen[key] = new
            result.whole.append(key)
        elif groups and theirs and _rows_fit(tensor, new, groups * (before + len(theirs))):
            chosen[key] = merge_head(tensor, new, groups, same, before)
            result.parts.append(key)
        else:
            result.left.append(key)
    if not chosen:
        raise UserError(f"{where}: no tensor fits this model; is --cfg right?")
    if result.parts:
        result.classes = {model.names[i]: theirs[k] for i, k in same.items()}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in chosen.items()}, strict=False)
    LOGGER.info(f"{where}: {result.summary()}" + (f"\n{result.table(model)}" if verbose else ""))
    share = sum(own[k].numel() for k in chosen) / sum(v.numel() for v in own.values())
    if share < LITTLE:
        LOGGER.warning(f"{where}: only {share:.0%} of the parameters were loaded, training starts almost from "
                       "scratch; is --cfg right?")  # fmt: skip
    return result


def same_classes(ours: Mapping[int, str], theirs: Mapping[int, str]) -> dict[int, int]:
    """Match classes by name: returns {our class index: their class index}.

    Identical names are matched first, then names that differ in spelling. Each of their classes is used at most once.
    Empty if the names of one side are only numbers.
    """
    same: dict[int, int] = {}
    if _nameless(ours) or _nameless(theirs):
        return same
    for spelt in (str, _plain):
        free = {spelt(name): k for k, name in reversed(theirs.items()) if k not in same.values()}
        for i, name in ours.items():
            if i not in same and spelt(name) in free:
                same[i] = free.pop(spelt(name))
    return dict(sorted(same.items()))


def _nameless(names: Mapping[int, str]) -> bool:
    """Whether the classes were never named: the name of each is its index."""
    return all(name == str(number) for number, name in names.items())


def _plain(name: str) -> str:
    plain = re.sub(r"[\s_-]+", "", name).lower()
    return SYNONYMS.get(plain, plain)


def _head_of(cfg: Mapping[str, Any]) -> str:
    """Return the name of the head in a model config; all heads have tensors of equal names, which mean other things."""
    return str(cfg["head"][-1][2])


def _rows_fit(own: Tensor, new: Tensor, rows: int) -> bool:
    return new.shape[0] == rows and new.shape[1:] == own.shape[1:]


def merge_head(own: Tensor, new: Tensor, groups: int, same: Mapping[int, int], before: int = BOX_ROWS) -> Tensor:
    """Return a head's weight (groups * (before + nc), c, 1, 1) or bias, with the matching rows of another one.

    new: of the other head; groups: anchors per cell; same: {our class index: their class index}; before: rows of each
    group that are not of classes.
    """
    merged = own.detach().clone().reshape(groups, -1, *own.shape[1:])
    source = new.to(merged).reshape(groups, -1, *new.shape[1:])
    merged[:, :before] = source[:, :before]
    for i, k in same.items():
        merged[:, before + i] = source[:, before + k]
    return merged.reshape(own.shape)


def with_classes(
    content: Mapping[str, Any], where: str | Path, names: Mapping[int, str], given_by: str | Path
) -> DetectionModel:
    """Return the model of a checkpoint in eval mode, with its head converted to other classes, matched by name.

    names, given_by: the classes, and the file that lists them. If no name matches, equally many classes are matched by
    index; otherwise raises UserError.
    """
    model = model_from_checkpoint(dict(content), where)
    if list(model.names.values()) == list(names.values()):
        return model
    same = same_classes(names, model.names)
    if not same and len(model.names) == len(names):
        LOGGER.warning(f"{where} and {given_by} have no class name in common: classes are matched by index")
        return model
    if not same:
        raise UserError(f"{where} has {len(model.names)} classes, none of which {given_by} lists: give the --data it "
                        "was trained on")  # fmt: skip
    LOGGER.info(f"{where}: its head is first converted to the {len(names)} classes of {given_by}")
    if unknown := [name for i, name in names.items() if i not in same]:
        LOGGER.warning(f"{where} was not trained on {', '.join(unknown)}: their rows of the head are untrained")
    ours = DetectionModel(model.yaml, ch=model.yaml.get("ch", 3), nc=len(names))
    ours.names = dict(names)
    transfer_weights(ours, content, where, anchors=True)
    return ours.eval()
