"""Read and check yaml files: datasets, hyper-parameters, model configs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, did_you_mean
from utils.files import MODEL_FOLDERS, ROOT, atomic_write, find_file, read_file
from utils.settings.safe_yaml import YamlError, parse_yaml
from utils.system.console import LOGGER, has_control

# key: (default, lowest, highest). The defaults are those of YOLOv5's hyp.scratch-low.
HYPERPARAMETERS: dict[str, tuple[float, float, float]] = {
    "lr0": (0.01, 1e-8, 10.0),  # initial learning rate (SGD 1e-2, Adam 1e-3)
    "lrf": (0.01, 0.0, 1.0),  # final learning rate is lr0 * lrf
    "momentum": (0.937, 0.0, 0.9999),  # momentum of SGD, beta1 of Adam
    "weight_decay": (0.0005, 0.0, 1.0),
    "warmup_epochs": (3.0, 0.0, 1000.0),
    "warmup_momentum": (0.8, 0.0, 0.9999),
    "warmup_bias_lr": (0.1, 0.0, 1.0),
    "nbs": (64, 1, 65536),  # nominal batch size: smaller batches are accumulated up to it
    "box": (0.05, 0.0, 1e3),  # gains of the three losses
    "cls": (0.5, 0.0, 1e3),
    "cls_pw": (1.0, 1e-6, 1e3),  # weight of positives in the class loss
    "obj": (1.0, 0.0, 1e3),
    "obj_pw": (1.0, 1e-6, 1e3),
    "iou_t": (0.2, 0.0, 1.0),  # accepted for old files; not used by the loss
    "anchor_t": (4.0, 1.0, 100.0),  # a label fits an anchor below this ratio of sides
    "anchors": (0, 0, 100),  # anchors per output map; 0: use those of the model yaml
    "fl_gamma": (0.0, 0.0, 10.0),  # focal loss (1.5 in RetinaNet), 0: off
    "label_smoothing": (0.0, 0.0, 1.0),
    "hsv_h": (0.015, 0.0, 1.0),  # fractions of hue, saturation, value
    "hsv_s": (0.7, 0.0, 1.0),
    "hsv_v": (0.4, 0.0, 1.0),
    "degrees": (0.0, 0.0, 180.0),
    "translate": (0.1, 0.0, 0.9),  # fraction of the image
    "scale": (0.5, 0.0, 0.99),  # gain from 1 - scale to 1 + scale
    "shear": (0.0, 0.0, 89.0),  # degrees
    "perspective": (0.0, 0.0, 0.001),
    "flipud": (0.0, 0.0, 1.0),  # probabilities from here on
    "fliplr": (0.5, 0.0, 1.0),
    "mosaic": (1.0, 0.0, 1.0),
    "mixup": (0.0, 0.0, 1.0),
    "copy_paste": (0.0, 0.0, 1.0),  # accepted for old files; needs polygons, no effect on boxes
}
MODEL_KEYS = (
    "nc names depth_multiple width_multiple channel_multiple activation anchors backbone head ch inplace yaml_file"
).split()
LARGEST_YAML = 2**22  # bytes
MOST_CLASSES = 65536
LARGEST_IMAGE = 16384  # side in pixels of a network's input
DATA_KEYS = "path train val test nc names download hint defaults roboflow".split()


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a yaml file that contains a mapping. Raises UserError, with file and line, if it is not valid."""
    path = Path(path)
    try:
        content = parse_yaml(read_file(path, LARGEST_YAML).decode("utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: is not a text file in UTF-8 (byte {e.start})") from e
    except YamlError as e:
        raise UserError(f"{path}{f':{e.line}' if e.line else ''}: not valid yaml ({e})") from e
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains no 'key: value' lines")
    return content


def save_yaml(path: str | Path, content: dict[str, Any]) -> None:
    """Write plain values as yaml, atomically, in the given order."""
    with atomic_write(path, "w") as f:
        yaml.safe_dump(content, f, sort_keys=False, allow_unicode=True)


def check_keys(content: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise UserError for a key that is not in `known`."""
    known = list(known)
    for key in content:
        if key not in known:
            hint = did_you_mean(key, known)
            raise UserError(f"{where}: unknown key '{key}'{hint}" + ("" if hint else f"; known: {', '.join(known)}"))


def is_number(value: Any) -> bool:
    """Whether a yaml or json value is a finite int or float (a bool is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether a value is an int (a bool is not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def load_hyp(name: str | Path) -> dict[str, float]:
    """Read a hyper-parameter yaml; missing keys get YOLOv5's defaults.

    Raises UserError for unknown keys and for values that are not numbers or out of range.
    """
    path = find_file(name, ("data/hyps", "data"), "--hyp")
    content = load_yaml(path)
    check_keys(content, HYPERPARAMETERS, str(path))
    hyp = {key: default for key, (default, _, _) in HYPERPARAMETERS.items()}
    for key, value in content.items():
        _, low, high = HYPERPARAMETERS[key]
        if not is_number(value) or not low <= value <= high:
            raise UserError(f"{path}: {key} is {value!r}, it must be a number from {low:g} to {high:g}")
        hyp[key] = value
    if hyp["copy_paste"]:
        LOGGER.warning(f"{path}: copy_paste has no effect: it needs polygon labels, not boxes")
    return hyp


def load_model_cfg(name: str | Path) -> dict[str, Any]:
    """Read a model yaml, also searched for in models/, models/hub/ and models/zoo/; add its file name as `yaml_file`.

    Raises UserError for unknown or missing keys. The rows are checked later, when the model is built.
    """
    path = find_file(name, MODEL_FOLDERS, "--cfg")
    cfg = load_yaml(path)
    check_model_cfg(cfg, str(path))
    return {**cfg, "yaml_file": path.name}


def check_model_cfg(cfg: dict[str, Any], where: str) -> None:
    """Raise UserError if a model config has a missing key, an unknown key or an invalid value."""
    check_keys(cfg, MODEL_KEYS, where)
    for key in ("nc", "anchors", "backbone", "head"):
        if key not in cfg:
            raise UserError(f"{where}: the key '{key}' is missing")
    if not is_whole(cfg["nc"]) or not 1 <= cfg["nc"] <= MOST_CLASSES:
        raise UserError(f"{where}: nc is {str(cfg['nc'])[:40]}, it must be a whole number from 1 to {MOST_CLASSES}")
    if not is_whole(cfg.get("ch", 3)) or not 1 <= cfg.get("ch", 3) <= 1024:
        raise UserError(f"{where}: ch is {cfg['ch']!r}, it must be a whole number from 1 to 1024")
    for key in ("depth_multiple", "width_multiple"):
        if not is_number(cfg.get(key, 1.0)) or not 0 < cfg.get(key, 1.0) <= 100:
            raise UserError(f"{where}: {key} is {cfg[key]!r}, it must be a number above 0, at most 100")
    multiple = cfg.get("channel_multiple", 8)
    if not is_whole(multiple) or not 1 <= multiple <= 1024:
        raise UserError(f"{where}: channel_multiple is {multiple!r}, it must be a whole number from 1 to 1024")
    anchors = cfg["anchors"]
    pairs = isinstance(anchors, list) and anchors and all(
        isinstance(row, list) and row and len(row) % 2 == 0 and len(row) == len(anchors[0])
        and all(is_number(v) and v > 0 for v in row) for row in anchors
    )  # fmt: skip
    if not pairs and not (isinstance(anchors, int) and 1 <= anchors <= 100):
        raise UserError(f"{where}: anchors must be rows of width, height pairs in pixels, all of the same length, "
                        "or the number of anchors per map")  # fmt: skip
    for key in ("backbone", "head"):
        if not isinstance(cfg[key], list) or not cfg[key]:
            raise UserError(f"{where}: {key} must be a list of rows [from, repeats, module, args]")


@dataclass(frozen=True)
class DataConfig:
    """A dataset as described by its yaml; `train`, `val`, `test` are absolute paths of folders or list files."""

    yaml_file: Path
    names: dict[int, str]
    path: Path
    train: tuple[Path, ...] = ()
    val: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    hint: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)

    def existing(self, split: str) -> tuple[Path, ...]:
        """Return the existing paths of a split. Raises UserError, with the yaml's hint, if none exists."""
        parts: tuple[Path, ...] = getattr(self, split)
        if not parts:
            raise UserError(f"{self.yaml_file}: there is no '{split}:' in it")
        found = tuple(p for p in parts if p.exists())
        if not found:
            hint = self.hint or "correct 'path:' or the split in the yaml, or put the images there"
            raise UserError(f"{self.yaml_file}: '{split}' does not exist ({parts[0]}). {hint}")
        return found


def load_data(name: str | Path) -> DataConfig:
    """Read a dataset yaml, which is also searched for in data/.

    Splits are relative to `path:`, and `path:` to the project's root or else to the yaml's folder. Raises UserError for
    unknown keys, names that do not match nc, or if there is no split at all.
    """
    file = find_file(name, ("data",), "--data")
    content = load_yaml(file)
    check_keys(content, DATA_KEYS, str(file))
    base = _base_folder(content.get("path"), file)
    splits = {split: _split_paths(content.get(split), base, f"{file}: {split}") for split in ("train", "val", "test")}
    if not splits["train"] and not splits["val"] and not splits["test"]:
        raise UserError(f"{file}: there is no 'train:' or 'val:' in it")
    defaults = content.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise UserError(f"{file}: defaults must be 'flag: value' lines")
    hint = " ".join(str(content.get("hint", "")).split())
    if content.get("download") and not hint:
        hint = "Its 'download:' is not run: put the images there, or correct 'path:' or the split in the yaml"
    return DataConfig(file, _class_names(content, file), base, hint=hint, defaults=defaults, **splits)


def warn_of_names(weights: Path, names: Mapping[int, str], data: DataConfig) -> None:
    """Warn if the class names of a model and a dataset differ."""
    if list(names.values()) != list(data.names.values()):
        LOGGER.warning(f"the class names of {weights} and {data.yaml_file} differ: {list(names.values())[:5]} "
                       f"and {list(data.names.values())[:5]}")  # fmt: skip


def _base_folder(value: Any, file: Path) -> Path:
    if value is None:
        return ROOT
    if not isinstance(value, str):
        raise UserError(f"{file}: path is {value!r}, it must be a folder")
    if Path(value).is_absolute() or (ROOT / value).exists():
        return (ROOT / value).resolve()
    beside = (file.parent / value).resolve()  # most tools write the yaml into the folder of its images
    return beside if beside.exists() else (ROOT / value).resolve()


def _split_paths(value: Any, base: Path, where: str) -> tuple[Path, ...]:
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    if not all(isinstance(v, str) and "\0" not in v for v in values):
        raise UserError(f"{where} must be a folder, a .txt list of images, or a list of these")
    return tuple((base / v).resolve() for v in values)


def _class_names(content: dict[str, Any], file: Path) -> dict[int, str]:
    names = content.get("names")
    nc = content.get("nc")
    if "nc" in content and not (is_whole(nc) and 1 <= nc <= MOST_CLASSES):
        raise UserError(f"{file}: nc is {str(nc)[:40]}, it must be a whole number from 1 to {MOST_CLASSES}")
    if names is None and nc:
        names = [f"class{i}" for i in range(nc)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not 0 < len(names) <= MOST_CLASSES:
        raise UserError(f"{file}: 'names' must list the class names, {MOST_CLASSES} at most")
    if any(isinstance(name, (dict, list)) for name in names.values()):
        raise UserError(f"{file}: a class name in 'names' must be one word or one line of text")
    names = {i: str(name).strip() for i, name in names.items()}
    if odd := [n for n in names.values() if has_control(n)]:
        raise UserError(f"{file}: the class name {odd[0][:40]!r} in 'names' contains a line end or control character")
    if sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise UserError(f"{file}: the keys of 'names' must be 0 to {len(names) - 1}, each once")
    if "nc" in content and content["nc"] != len(names):
        raise UserError(f"{file}: nc is {content['nc']}, but there are {len(names)} names")
    return {i: names[i] for i in range(len(names))}
