"""The options of a training run: one validated object from the command line, the data yaml's defaults and YOLOv5's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from utils.errors import UserError, did_you_mean
from utils.files import ROOT

OPTIMIZERS = ("SGD", "Adam", "AdamW")
# what a data yaml's `defaults:` may set, for flags that are not given
DATA_DEFAULTS = ("hyp", "epochs", "batch_size", "imgsz", "optimizer", "cache", "cos_lr", "patience")


@dataclass
class TrainOptions:
    """Options of train.py, named as its flags. Raises UserError for a value that cannot be.

    `given` are the names that the user set, which a data yaml's defaults leave alone.
    """

    weights: str = ""
    cfg: str = ""
    data: str = "shapes.yaml"
    hyp: str = "hyp.scratch-low.yaml"
    epochs: int = 100
    batch_size: int = 16
    imgsz: int = 640
    rect: bool = False
    resume: bool | str = False
    nosave: bool = False
    noval: bool = False
    noautoanchor: bool = False
    noplots: bool = False
    cache: str = ""
    device: str = ""
    single_cls: bool = False
    optimizer: str = "SGD"
    workers: int = 8
    project: str = str(ROOT / "runs/train")
    name: str = "exp"
    exist_ok: bool = False
    cos_lr: bool = False
    patience: int = 100
    seed: int = 0
    given: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> TrainOptions:
        """Options from keyword arguments; None means not given. Raises UserError for an unknown one."""
        known = [f.name for f in fields(cls) if f.name != "given"]
        for key in flags:
            if key not in known:
                raise UserError(f"train has no option '{key}'{did_you_mean(key, known)}; known: {', '.join(known)}")
        given = {k: v for k, v in flags.items() if v is not None}
        return cls(**given, given=tuple(sorted(given)))

    def with_defaults(self, defaults: Mapping[str, Any], where: str) -> list[str]:
        """Take a data yaml's `defaults:` for options that were not given; returns them as `flag value` texts."""
        taken = []
        for key, value in defaults.items():
            if key not in DATA_DEFAULTS:
                raise UserError(f"{where}: defaults: unknown '{key}'{did_you_mean(key, DATA_DEFAULTS)}; known: "
                                f"{', '.join(DATA_DEFAULTS)}")  # fmt: skip
            if key not in self.given:
                setattr(self, key, value)
                taken.append(f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}"))
        self.check(f"{where}: defaults: ")
        return taken

    def check(self, where: str = "") -> None:
        """Raise UserError naming the flag if a value is of a wrong type or out of range."""
        for f in fields(self):
            value, flag = getattr(self, f.name), f"{where}--{f.name.replace('_', '-')}"
            if f.type == "int" and (not isinstance(value, int) or isinstance(value, bool)):
                raise UserError(f"{flag} is {value!r}, it must be a whole number")
            if f.type == "str" and not isinstance(value, str):
                raise UserError(f"{flag} is {value!r}, it must be a text")
            if f.type == "bool" and not isinstance(value, bool):
                raise UserError(f"{flag} is {value!r}, it must be true or false")
        least = {"epochs": 1, "batch_size": 1, "imgsz": 32, "workers": 0, "patience": 0, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"{where}--{name.replace('_', '-')} is {getattr(self, name)}, the least is {low}")
        if self.seed >= 2**63:
            raise UserError(f"{where}--seed {self.seed} is too large, the largest is {2**63 - 1}")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"{where}--optimizer {self.optimizer}{did_you_mean(self.optimizer, OPTIMIZERS)}: one of "
                            f"{', '.join(OPTIMIZERS)}")  # fmt: skip
        if self.cache not in ("", "ram", "disk"):
            raise UserError(f"{where}--cache {self.cache}: ram or disk")

    def plain(self) -> dict[str, Any]:
        """The options as plain values, for opt.yaml and the checkpoint."""
        return {k: v for k, v in asdict(self).items() if k != "given"}
