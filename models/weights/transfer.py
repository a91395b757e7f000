"""Starts a network from the weights of another: what fits is taken, head rows by the names of their classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from models.weights.checkpoint import model_from_checkpoint
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.system.console import LOGGER

BOX_ROWS = 5  # of each anchor in a head: x, y, w, h, objectness; then a row per class
LITTLE = 0.2  # share of a network below which it is a mistake to call it pretrained
SYNONYMS = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}  # COCO, VOC


@dataclass
class Transfer:
    """What was taken from a checkpoint: keys of whole tensors, keys of heads taken in part, classes by name."""

    whole: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)  # ours: theirs
    left: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """`342 of 349 tensors taken; of the head: boxes, objectness and 20 classes by name; not taken: ...`."""
        total = len(self.whole) + len(self.parts) + len(self.left)
        text = f"{len(self.whole)} of {total} tensors taken"
        if self.parts:
            classes = ", ".join(k if k == v else f"{k} from {v}" for k, v in self.classes.items()) or "no class"
            text += f"; of the head: boxes, objectness, and by name {classes}"
        if self.left:
            text += f"; not taken: {', '.join(self.left[:4])}" + (", ..." if len(self.left) > 4 else "")
        return text

    def table(self, model: DetectionModel) -> str:
        """A row per layer: how many of its tensors were taken."""
        counts = {kind: Counter(_layer(k) for k in keys)
                  for kind, keys in (("taken", self.whole), ("in part", self.parts), ("fresh", self.left))}  # fmt: skip
        rows = [f"{'layer':>6}  {'module':<18}{'taken':>8}{'in part':>9}{'fresh':>7}"]
        for m in model.model:
            numbers = [counts[kind][m.i] for kind in ("taken", "in part", "fresh")]
            if any(numbers):
                rows.append(f"{m.i:>6}  {m.type:<18}{numbers[0]:>8}{numbers[1]:>9}{numbers[2]:>7}")
        return "\n".join(rows)


def _layer(key: str) -> int:
    return int(key.split(".")[1])


def transfer_weights(
    model: DetectionModel, content: Mapping[str, Any], where: str | Path, anchors: bool = False,
    fresh_head: bool = False, verbose: bool = False,
) -> Transfer:  # fmt: skip
    """Copy into `model` every tensor of a checkpoint whose name and shape fit; returns what was taken, and prints it.

    anchors: take the anchors too (otherwise those of the model's own config stay).
    fresh_head: take nothing of the head. Otherwise, of a head of other classes, the rows for boxes and objectness are
    taken, and those of the classes that have the same name (in any case and spelling, COCO's names for VOC's too).
    Where one side's classes have no names, only numbers, a head of as many classes is taken as it is.
    Raises UserError if nothing fits.
    """
    own, given = model.state_dict(), content["model"]
    result, chosen = Transfer(), {}
    theirs = content["names"]
    same = same_classes(model.names, theirs)
    alike = model.names == theirs or _nameless(model.names) or _nameless(theirs)
    for key, tensor in own.items():
        new, head = given.get(key), key.startswith(f"model.{len(model.model) - 1}.m.")
        # a counter or a bias is worth nothing without the numbers it belongs to, which come before it
        partner = key.removesuffix(".num_batches_tracked").removesuffix(".bias") + ".weight"
        lonely = partner != f"{key}.weight" and partner in own and partner not in chosen
        if new is None or lonely or (key.endswith(".anchors") and not anchors) or (head and fresh_head):
            result.left.append(key)
        elif new.shape == tensor.shape and (alike or not head):
            chosen[key] = new
            result.whole.append(key)
        elif head and _heads_fit(model, tensor, new, len(theirs)):
            chosen[key] = merge_head(tensor, new, model.model[-1].na, same)
            result.parts.append(key)
        else:
            result.left.append(key)
    if not chosen:
        raise UserError(f"{where}: not one tensor fits this model; is it the right --cfg?")
    if result.parts:
        result.classes = {model.names[i]: theirs[k] for i, k in same.items()}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in chosen.items()}, strict=False)
    LOGGER.info(f"{where}: {result.summary()}" + (f"\n{result.table(model)}" if verbose else ""))
    share = sum(own[k].numel() for k in chosen) / sum(v.numel() for v in own.values())
    if share < LITTLE:
        LOGGER.warning(f"{where}: that is {share:.0%} of the network's numbers: it starts almost from nothing; is it "
                       "the right --cfg?")  # fmt: skip
    return result


def same_classes(ours: Mapping[int, str], theirs: Mapping[int, str]) -> dict[int, int]:
    """Numbers of our classes -> numbers of theirs that have the same name; the same letters go before other spellings.

    Each of theirs serves one of ours. Empty if one side's names are mere numbers.
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
    """Whether the classes were never named: each is called by its own number."""
    return all(name == str(number) for number, name in names.items())


def _plain(name: str) -> str:
    plain = re.sub(r"[\s_-]+", "", name).lower()
    return SYNONYMS.get(plain, plain)


def _heads_fit(model: DetectionModel, own: Tensor, new: Tensor, classes: int) -> bool:
    rows = model.model[-1].na * (BOX_ROWS + classes)
    return bool(classes) and new.shape[0] == rows and new.shape[1:] == own.shape[1:]


def merge_head(own: Tensor, new: Tensor, na: int, same: Mapping[int, int]) -> Tensor:
    """A head's weight (na * (5 + nc), c, 1, 1) or bias with the rows of another that mean the same."""
    merged = own.detach().clone().reshape(na, -1, *own.shape[1:])
    source = new.to(merged).reshape(na, -1, *new.shape[1:])
    merged[:, :BOX_ROWS] = source[:, :BOX_ROWS]
    for i, k in same.items():
        merged[:, BOX_ROWS + i] = source[:, BOX_ROWS + k]
    return merged.reshape(own.shape)


def with_classes(
    content: Mapping[str, Any], where: str | Path, names: Mapping[int, str], given_by: str | Path
) -> DetectionModel:
    """The model of a checkpoint in eval mode, with these classes: rows of its head are carried over by name.

    names, given_by: the classes, and what lists them. Without a name in common they are taken by their numbers if there
    are as many; otherwise raises UserError.
    """
    model = model_from_checkpoint(dict(content), where)
    if list(model.names.values()) == list(names.values()):
        return model
    same = same_classes(names, model.names)
    if not same and len(model.names) == len(names):
        LOGGER.warning(f"{where} and {given_by} have no class name in common: classes are taken by their numbers")
        return model
    if not same:
        raise UserError(f"{where} knows {len(model.names)} classes, none of which {given_by} lists: give the --data it "
                        "was trained on")  # fmt: skip
    LOGGER.info(f"{where} gets the {len(names)} classes of {given_by} before all else")
    if unknown := [name for i, name in names.items() if i not in same]:
        LOGGER.warning(f"{where} does not know {', '.join(unknown)}: rows of the head that know nothing")
    ours = DetectionModel(model.yaml, ch=model.yaml.get("ch", 3), nc=len(names))
    ours.names = dict(names)
    transfer_weights(ours, content, where, anchors=True)
    return ours.eval()
