"""Read and check yaml files: datasets, hyper-parameters, model configs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, did_you_mean, shorten
from utils.files import MODEL_FOLDERS, atomic_write, find_file, read_file
from utils.settings.safe_yaml import YamlError, parse_yaml
from utils.system.console import LOGGER

# key: (default, lowest, highest). The defaults are those of YOLOv5's hyp.scratch-low.
HYPERPARAMETERS: dict[str, tuple[float, float, float]] = {
    "lr0": (0.01, 1e-8, 10.0),  # initial learning rate (SGD 1e-2, Adam 1e-3)
    "cos_lr": (0, 0, 1),  # 1: as --cos-lr
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
    "dfl": (1.5, 0.0, 1e3),  # gain of the distribution focal loss, in the place of obj in anchor-free heads
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
    "close_mosaic": (0, 0, 100000),  # number of the last epochs without mosaics
    "mixup": (0.0, 0.0, 1.0),
    "copy_paste": (0.0, 0.0, 1.0),  # accepted for old files; needs polygons, no effect on boxes
    "teacher_cls": (3.0, 0.0, 1e3),  # gains of what is learnt from --teacher
    "teacher_box": (6.0, 0.0, 1e3),
    "teacher_feature": (0.0, 0.0, 1e3),
}
CHOICES = {
    "assigner": ("", "anchor_ratio", "task_aligned", "simota"),  # empty: as the head needs it
    "box_loss": ("", "ciou", "siou", "eiou", "wiou", "mpdiou", "nwd"),
    "class_loss": ("", "bce", "focal", "varifocal", "quality_focal"),
    "feature_loss": ("", "channel_wise", "masked"),
    "optimizer": ("", "SGD", "Adam", "AdamW"),
}  # of a hyp file, with their texts
MODEL_KEYS = (
    "nc names depth_multiple width_multiple channel_multiple activation anchors backbone head ch inplace yaml_file"
).split()
LARGEST_YAML = 2**22  # bytes
MOST_CLASSES = 65536
LARGEST_IMAGE = 16384  # side in pixels of a network's input


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


def check_keys(content: Iterable[str], known: Iterable[str], where: str, allow_others: bool = False) -> list[str]:
    """Raise UserError for a key that is not in `known`.

    allow_others: raise only for a key that looks like a misspelt known one, and return the other unknown keys.
    """
    known, others = list(known), []
    for key in content:
        if key not in known:
            hint = did_you_mean(key, known)
            if hint or not allow_others:
                more = "" if hint else f"; known: {', '.join(known)}"
                raise UserError(f"{where}: unknown key '{shorten(key, 60)}'{hint}{more}")
            others.append(shorten(key, 60))
    return others


def warn_of_ignored(keys: Iterable[str], where: str) -> None:
    """Warn, in one line, of keys of a yaml file that have no meaning here."""
    if keys := list(keys):
        LOGGER.warning(f"{where}: ignored {'keys' if len(keys) > 1 else 'key'} {shorten(', '.join(keys))}")


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
    check_keys(content, {**HYPERPARAMETERS, **CHOICES}, str(path))
    hyp = {key: default for key, (default, _, _) in HYPERPARAMETERS.items()}
    for key, value in content.items():
        if key in CHOICES:
            if value not in CHOICES[key]:
                raise UserError(f"{path}: {key} is {shorten(value)}{did_you_mean(str(value), CHOICES[key])}; it must "
                                f"be one of {', '.join(CHOICES[key][1:])}")  # fmt: skip
            hyp[key] = value
            continue
        _, low, high = HYPERPARAMETERS[key]
        if not is_number(value) or not low <= value <= high:
            raise UserError(f"{path}: {key} is {value!r}, it must be a number from {low:g} to {high:g}")
        hyp[key] = value
    return hyp


def load_model_cfg(name: str | Path) -> dict[str, Any]:
    """Read a model yaml, also searched for in models/, models/hub/ and models/zoo/; add its file name as `yaml_file`.

    Raises UserError for misspelt or missing keys. The rows are checked later, when the model is built.
    """
    path = find_file(name, MODEL_FOLDERS, "--cfg")
    cfg = load_yaml(path)
    warn_of_ignored(check_model_cfg(cfg, str(path)), str(path))
    return {**cfg, "yaml_file": path.name}


def check_model_cfg(cfg: dict[str, Any], where: str) -> list[str]:
    """Raise UserError if a model config has a missing key, a misspelt key or an invalid value.

    Returns the keys that have no meaning here, such as `loss` in a fork's yaml.
    """
    others = check_keys(cfg, MODEL_KEYS, where, allow_others=True)
    for key in ("nc", "backbone", "head"):
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
    anchors = cfg.get("anchors", 1)  # only a head that has anchors needs them
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
    return others
