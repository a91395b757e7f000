"""Dataset yamls, as YOLOv5, Ultralytics, Roboflow and CVAT write them: their splits and class names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.archive import Archive
from utils.errors import UserError, shorten
from utils.files import ROOT, find_file
from utils.settings.config import MOST_CLASSES, check_keys, is_whole, load_yaml, warn_of_ignored
from utils.system.console import LOGGER, has_control

SPLITS = ("train", "val", "test")
PARTS = (*SPLITS, "unlabelled")
KEYS = (*PARTS, "path", "nc", "names", "download", "hint", "defaults", "kpt_shape", "channels")
# other tools' words for keys: an error if the key itself is missing, as its content would be lost
MEANT = {"valid": "val", "validation": "val", "training": "train", "testing": "test", "classes": "names",
         "class_names": "names", "labels": "names", "num_classes": "nc", "number_of_classes": "nc"}  # fmt: skip
MOST_KEYPOINTS = 1000


@dataclass(frozen=True)
class DataConfig:
    """A dataset as described by its yaml; `train`, `val`, `test` and `unlabelled` (images that a
    teacher labels) are absolute paths of folders or list files.

    path: the folder that the splits are relative to. roots: where relative paths in list files may start. keypoints:
    whether label rows have keypoints after the box. tried: for each split, where it was looked for.
    """

    yaml_file: Path
    names: dict[int, str]
    path: Path
    train: tuple[Path, ...] = ()
    val: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    unlabelled: tuple[Path, ...] = ()
    hint: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    roots: tuple[Path, ...] = ()
    keypoints: bool = False
    tried: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)

    def existing(self, split: str) -> tuple[Path, ...]:
        """Return the existing paths of a split. Raises UserError, with the yaml's hint, if none exists."""
        parts: tuple[Path, ...] = getattr(self, split)
        if not parts:
            raise UserError(f"{self.yaml_file}: there is no '{split}:' in it")
        found = tuple(p for p in parts if os.path.exists(p))
        if not found:
            hint = self.hint or "correct 'path:' or the split in the yaml, or put the images there"
            tried = ", ".join(map(str, self.tried.get(split, ()) or parts[:1]))
            raise UserError(f"{self.yaml_file}: '{split}' does not exist; looked for {shorten(tried, 1000)}. {hint}")
        return found


def load_data(name: str | Path) -> DataConfig:
    """Read a dataset yaml, which is also searched for in data/.

    A split is relative to `path:`, and `path:` to the project's root or else to the yaml's folder. Without `path:`, or
    with `path: .`, it is looked for beside the yaml, below it without its leading ../, and in the working folder and
    the project's root. Raises UserError for misspelt keys, names that do not match nc, or if there is no split at all.
    """
    file = find_file(_not_a_zip(name), ("data",), "--data")
    content = load_yaml(file)
    _check_keys(content, file)
    bases = list(_bases(content.get("path"), file))
    # one base for all splits: they are not to come from different datasets
    by_base = [(base, {split: _split_paths(content.get(split), base, f"{file}: {split}") for split in PARTS})
               for base in bases]  # fmt: skip
    base, found = max(by_base, key=lambda pair: sum(count for _, count in pair[1].values()))
    if not any(found[split][0] for split in SPLITS):
        raise UserError(f"{file}: there is no 'train:' or 'val:' in it")
    tried = {split: _tried(content.get(split), bases) for split in PARTS}
    defaults = content.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise UserError(f"{file}: defaults must be 'flag: value' lines")
    hint = " ".join(str(content.get("hint", "")).split())
    if content.get("download") and not hint:
        hint = "Its 'download:' is not run: put the images there, or correct 'path:' or the split in the yaml"
    for split, (parts, _) in found.items():
        if parts and os.path.exists(parts[0]) and parts[0] != tried[split][0]:
            LOGGER.info(f"{file.name}: '{split}' found at {parts[0]}")
    return DataConfig(file, _class_names(content, file), base, hint=hint, defaults=defaults, roots=tuple(bases),
                      keypoints=_has_keypoints(content.get("kpt_shape"), file), tried=tried,
                      **{split: parts for split, (parts, _) in found.items()})  # fmt: skip


def warn_of_names(weights: Path, names: Mapping[int, str], data: DataConfig) -> None:
    """Warn if the class names of a model and a dataset differ."""
    if list(names.values()) != list(data.names.values()):
        LOGGER.warning(f"the class names of {weights} and {data.yaml_file} differ: {list(names.values())[:5]} "
                       f"and {list(data.names.values())[:5]}")  # fmt: skip


def _not_a_zip(name: str | Path) -> str | Path:
    """Raise UserError for a zip, naming the yamls in it; otherwise return `name`."""
    if Path(name).suffix.lower() != ".zip" or not Path(name).is_file():
        return name
    with Archive(name) as archive:
        yamls = [m for m in archive.members if m.lower().endswith((".yaml", ".yml")) and not m.startswith("__MACOSX")]
    inside = f"; it contains {shorten(', '.join(yamls[:5]))}" if yamls else ""
    raise UserError(f"--data {name} is a zip: unpack it and give the yaml file in it{inside}")


def _check_keys(content: Mapping[str, Any], file: Path) -> None:
    for key, meant in MEANT.items():
        if key in content and meant not in content:
            raise UserError(f"{file}: unknown key '{key}' (did you mean '{meant}'?)")
    for key in ("classes", "labels", "class_names"):
        theirs, names = content.get(key), content.get("names")
        count = len(theirs) if isinstance(theirs, (list, dict)) else theirs
        if is_whole(count) and isinstance(names, (list, dict)) and count != len(names):
            raise UserError(f"{file}: '{key}' lists {count} classes, 'names' {len(names)}")
    others = check_keys([str(key) for key in content if key not in MEANT], KEYS, str(file), allow_others=True)
    warn_of_ignored([*others, *(key for key in content if key in MEANT)], str(file))
    if content.get("channels") not in (None, 3):
        LOGGER.warning(f"{file}: channels is {shorten(content['channels'], 40)}, but images are read with 3 channels")


def _bases(value: Any, file: Path) -> Iterator[Path]:
    """The folders that a split may be relative to, the likeliest first."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{file}: path is {shorten(value, 60)}, it must be a folder")
    if "\0" in (value or ""):
        raise UserError(f"{file}: path contains a zero byte")
    if not value or Path(value) == Path():  # nothing, . or ./
        yield from dict.fromkeys((file.parent, Path.cwd(), ROOT))
    elif Path(value).is_absolute():
        yield Path(value)
    else:
        places = [ROOT / value, file.parent / value, Path.cwd() / value]
        yield from dict.fromkeys(p.resolve() for p in sorted(places, key=lambda p: not os.path.exists(p)))


def _candidates(value: str, bases: list[Path]) -> list[Path]:
    """Where a split may be: below each base as it is written, then without its leading ../ (Roboflow's yamls)."""
    below = value.replace("\\", "/")
    while below.startswith("../"):
        below = below[3:]
    return [base / name for base in bases for name in dict.fromkeys((value, below))]


def _tried(value: Any, bases: list[Path]) -> tuple[Path, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(p.resolve() for v in values[:3] if isinstance(v, str) for p in _candidates(v, bases)))


def _split_paths(value: Any, base: Path, where: str) -> tuple[tuple[Path, ...], int]:
    """The paths of a split below a base, and how many of them exist."""
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    if not all(isinstance(v, str) and "\0" not in v for v in values):
        raise UserError(f"{where} must be a folder, a .txt list of images, or a list of these")
    paths = []
    for v in values:
        candidates = _candidates(v, [base])
        paths.append(next((p for p in candidates if os.path.exists(p)), candidates[0]).resolve())
    return tuple(paths), sum(map(os.path.exists, paths))


def _has_keypoints(shape: Any, file: Path) -> bool:
    """Whether `kpt_shape: [points, 2 or 3]` says that label rows have keypoints."""
    if shape is None:
        return False
    fits = isinstance(shape, list) and len(shape) == 2 and all(is_whole(v) for v in shape)
    if not fits or not 1 <= shape[0] <= MOST_KEYPOINTS or shape[1] not in (2, 3):
        raise UserError(f"{file}: kpt_shape is {shorten(shape, 40)}, it must be [number of points, 2 or 3]")
    return True


def _class_names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
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
    names = {int(k) if isinstance(k, str) and k.isdecimal() and k.isascii() and len(k) < 8 else k: name
             for k, name in names.items()}  # fmt: skip
    if any(isinstance(name, (dict, list)) for name in names.values()):
        raise UserError(f"{file}: a class name in 'names' must be one word or one line of text")
    names = {i: "" if name is None else str(name).strip() for i, name in names.items()}
    if odd := [n for n in names.values() if has_control(n)]:
        raise UserError(f"{file}: the class name {odd[0][:40]!r} in 'names' contains a line end or control character")
    if sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise UserError(f"{file}: the keys of 'names' must be 0 to {len(names) - 1}, each once")
    if empty := [i for i, name in names.items() if not name]:
        raise UserError(f"{file}: class {empty[0]} in 'names' has no name")
    if "nc" in content and content["nc"] != len(names):
        raise UserError(f"{file}: nc is {content['nc']}, but there are {len(names)} names")
    return {i: names[i] for i in range(len(names))}
