"""The options of train.py and val.py as dataclasses that validate their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.errors import UserError, did_you_mean, shorten
from utils.files import ROOT, find_file
from utils.settings.config import LARGEST_IMAGE, check_keys, is_whole, load_hyp
from utils.settings.values import converted_flags, hints_of
from utils.system.console import LOGGER

SPLITS, TASKS = ("train", "val", "test"), ("train", "val", "test", "speed", "study")
OPTIMIZERS = ("auto", "SGD", "Adam", "AdamW")  # auto: as the hyp file says, otherwise SGD
AMP_CHOICES = ("auto", "off", "fp16", "bf16")
ENGINE_CHOICES = ("auto", "pytorch", "onnx", "openvino")
PROTOCOLS = {
    "yolov5": "P, R, mAP50 and mAP50-95 as YOLOv5 computes them",
    "voc07": "PASCAL VOC 2007: AP at IoU 0.5 from 11 points of recall",
    "voc12": "PASCAL VOC 2012: AP at IoU 0.5, area under the envelope",
    "coco": "COCO's 12 metrics, by faster-coco-eval",
}
DEFAULT_HYP = "hyp.scratch-low.yaml"
HEAD_HYPS = {"AnchorFreeDetect": "hyp.free.yaml"}  # of heads whose loss needs other values
# keys allowed in a dataset yaml's `defaults:`, which apply to flags that are not given
DATA_DEFAULTS = ("hyp", "epochs", "batch_size", "imgsz", "optimizer", "cache", "cos_lr", "patience", "amp")


@dataclass
class TrainOptions:
    """Options of train.py, named like its flags. Raises UserError for invalid values.

    `given` lists the options that the user set, which a dataset yaml's `defaults:` do not change.
    """

    weights: str = ""
    backbone_weights: str = ""
    teacher: str = ""
    cfg: str = ""
    data: str = "shapes.yaml"
    hyp: str = ""
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
    optimizer: str = "auto"
    workers: int = 8
    project: str = str(ROOT / "runs/train")
    name: str = "exp"
    exist_ok: bool = False
    cos_lr: bool = False
    patience: int = 100
    seed: int = 0
    amp: str = "auto"
    multi_scale: bool = False
    image_weights: bool = False
    quad: bool = False
    label_smoothing: float = 0.0
    fresh_head: bool = False
    verbose: bool = False
    freeze: tuple[int, ...] = (0,)
    save_period: int = -1
    sync_bn: bool = False
    tensorboard: bool = False
    compile: bool = False
    gpu_augment: bool = False
    parts: int = 0
    evolve: int = 0
    resume_evolve: bool | str = False
    given: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> TrainOptions:
        """Build options from keyword arguments; None means not given. Raises UserError for unknown or invalid ones."""
        hints = {name: hint for name, hint in hints_of(cls).items() if name != "given"}
        given = converted_flags(flags, hints, "train.run")
        for name in {"resume", "resume_evolve"} & set(given):
            given[name] = _switch(given[name])
        given = {k: v for k, v in given.items() if k not in ("resume", "resume_evolve") or v}  # off: as if not given
        return cls(**given, given=tuple(sorted(given)))

    def with_defaults(self, defaults: Mapping[str, Any], where: str) -> list[str]:
        """Apply a dataset yaml's `defaults:` to options that were not given; return these as `--flag value` texts."""
        taken = []
        check_keys(defaults, DATA_DEFAULTS, f"{where}: defaults")
        for key, value in defaults.items():
            if key not in self.given:
                if key == "hyp" and find_file(str(value), ("data/hyps",), "--hyp").parent != ROOT / "data/hyps":
                    raise UserError(f"{where}: defaults: hyp is {shorten(value)}, it must lead to a file in data/hyps; "
                                    "give any other file with --hyp")  # fmt: skip
                setattr(self, key, value)
                taken.append(f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}"))
        self.check(f"{where}: defaults: ")
        return taken

    def check(self, where: str = "") -> None:
        """Raise UserError naming the flag if a value is of a wrong type or out of range."""
        for f in fields(self):
            value, flag = getattr(self, f.name), f"{where}--{f.name.replace('_', '-')}"
            if f.type == "int" and not is_whole(value):
                raise UserError(f"{flag} is {value!r}, it must be a whole number")
            if f.type == "float" and not (is_whole(value) or isinstance(value, float)):
                raise UserError(f"{flag} is {value!r}, it must be a number")
            if f.type == "str" and not isinstance(value, str):
                raise UserError(f"{flag} is {value!r}, it must be a text")
            if f.type == "bool" and not isinstance(value, bool):
                raise UserError(f"{flag} is {value!r}, it must be true or false")
        least = {"epochs": 1, "imgsz": 32, "workers": 0, "patience": 0, "seed": 0, "save_period": -1, "evolve": 0,
                 "parts": 0}  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"{where}--{name.replace('_', '-')} is {getattr(self, name)}, the least is {low}")
        if self.imgsz > LARGEST_IMAGE:
            raise UserError(f"{where}--imgsz is {self.imgsz}, the largest is {LARGEST_IMAGE}")
        if self.batch_size < 1 and self.batch_size != -1:
            raise UserError(f"{where}--batch-size is {self.batch_size}, the least is 1 (-1: as many as memory allows)")
        if self.seed >= 2**63:
            raise UserError(f"{where}--seed {self.seed} is too large, the largest is {2**63 - 1}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"{where}--label-smoothing is {self.label_smoothing}, it must be from 0 to below 1")
        self._check_words(where)
        self._check_freeze(where)

    def _check_words(self, where: str) -> None:
        for flag, value, known in (
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--cache", self.cache, ("", "ram", "disk")),
            ("--amp", self.amp, AMP_CHOICES),
        ):
            if value not in known:
                words = ", ".join(w for w in known if w)
                raise UserError(f"{where}{flag} {value}{did_you_mean(value, known)}: one of {words}")

    def _check_freeze(self, where: str) -> None:
        """Check --freeze: one number counts layers (10: the first ten), several are layer indices (0 1 2)."""
        if is_whole(self.freeze):
            self.freeze = (self.freeze,)
        if not isinstance(self.freeze, (list, tuple)) or not all(is_whole(v) and v >= 0 for v in self.freeze):
            raise UserError(f"{where}--freeze is {self.freeze!r}, it must be a number of layers or layer indices")
        self.freeze = tuple(self.freeze)

    @property
    def frozen_layers(self) -> tuple[int, ...]:
        """The indices of the layers that are not trained."""
        return self.freeze if len(self.freeze) > 1 else tuple(range(*self.freeze))

    def check_together(self) -> None:
        """Raise UserError for flags that cannot be combined."""
        if self.resume_evolve and (not self.evolve or set(self.given) - {"evolve", "resume_evolve"}):
            raise UserError("--resume-evolve goes with --evolve N, the generations in total, and with no other flag")
        if self.evolve and self.resume:
            raise UserError("an evolution is continued by --resume-evolve, not by --resume")
        if self.fresh_head and not self.weights:
            raise UserError("--fresh-head needs --weights: without them the whole network is newly initialized")
        if self.teacher:
            flags = {"quad": self.quad, "compile": self.compile, "batch-size -1": self.batch_size == -1}
            if given := [flag for flag, value in flags.items() if value]:
                raise UserError(f"--{given[0]} cannot be combined with --teacher")
        if self.weights and self.backbone_weights:
            raise UserError("--weights and --backbone-weights both initialize the backbone: give only one of them")

    def plain(self) -> dict[str, Any]:
        """Return the options as plain values, for opt.yaml and the checkpoint."""
        plain = {k: v for k, v in asdict(self).items() if k != "given"}
        return {**plain, "freeze": list(self.freeze)}


def _switch(value: bool | str) -> bool | str:
    """Return True or False for the words true and false in any case, unless a file or folder of that name exists."""
    word = value.strip().lower() if isinstance(value, str) else ""
    return value if word not in ("true", "false") or Path(value).exists() else word == "true"


def effective_hyp(opt: TrainOptions) -> dict[str, float]:
    """Load the hyper-parameters of the hyp file; `--label-smoothing` replaces the value in the file."""
    hyp = load_hyp(opt.hyp or DEFAULT_HYP)
    if hyp["copy_paste"]:
        LOGGER.warning(f"{opt.hyp}: copy_paste has no effect: it needs polygon labels, not boxes")
    return {**hyp, "label_smoothing": opt.label_smoothing} if opt.label_smoothing else hyp


@dataclass
class ValOptions:
    """The flags of val.py, with their names in code; weights and imgsz are one value or several.

    Raises UserError for values out of range and for flags that cannot be combined.
    """

    data: str = "shapes.yaml"
    weights: str | Sequence[str] = ""
    batch_size: int = 32
    imgsz: int | Sequence[int] | None = None
    conf_thres: float = 0.001
    iou_thres: float = 0.6
    max_det: int = 300
    task: str = "val"
    protocol: str = "yolov5"
    device: str = ""
    workers: int = 8
    single_cls: bool = False
    augment: bool = False
    verbose: bool = False
    save_txt: bool = False
    save_hybrid: bool = False
    save_conf: bool = False
    save_json: bool = False
    half: bool = False
    amp: str = "off"
    project: str = str(ROOT / "runs/val")
    name: str = "exp"
    exist_ok: bool = False
    noplots: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1:
            raise UserError(f"--conf-thres {self.conf_thres} and --iou-thres {self.iou_thres} must lie between 0 and 1")
        for flag, value, least in (("batch-size", self.batch_size, 1), ("max-det", self.max_det, 1),
                                   ("workers", self.workers, 0)):  # fmt: skip
            if value < least:
                raise UserError(f"--{flag} {value}: must be {least} or more")
        for flag, value, known in (("task", self.task, TASKS), ("protocol", self.protocol, PROTOCOLS)):
            if value not in known:
                raise UserError(f"--{flag} {value}: one of {', '.join(known)}{did_you_mean(value, known)}")
        if len(self.files) > 1 and self.task in SPLITS:
            raise UserError("--weights: several files are for --task speed and --task study; give one")
        if min(self.sizes, default=1) < 1:
            raise UserError(f"--imgsz {min(self.sizes)}: must be 1 or more pixels")
        if len(self.sizes) > 1 and self.task != "study":
            raise UserError("--imgsz: val.py takes one size; several are for --task study")
        for flag in ("save_txt", "save_hybrid", "save_json"):
            if getattr(self, flag) and self.task not in SPLITS:
                raise UserError(f"--{flag.replace('_', '-')} is of no use with --task {self.task}: leave it out")
        self.save_txt |= self.save_hybrid
        if self.save_hybrid and self.conf_thres == ValOptions.conf_thres:
            self.conf_thres = 0.25  # only detections good enough as labels, not all that AP needs

    @property
    def files(self) -> list[Path]:
        """The weights files given; empty for best.pt of the newest run."""
        return [Path(w) for w in ([self.weights] if isinstance(self.weights, (str, Path)) else self.weights) if str(w)]

    @property
    def sizes(self) -> list[int]:
        """The image sizes given; empty for the model's own size."""
        return [] if self.imgsz is None else [self.imgsz] if isinstance(self.imgsz, int) else list(self.imgsz)
