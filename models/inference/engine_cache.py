"""The cache folder of converted checkpoints, with the speeds of the engines that can run them.

A checkpoint has a record, <digest of the checkpoint>.json: which converted file belongs to it, and what was measured
with it. The converted file, <digest of its content>.onnx, is used only if its content has the digest in the record.
Both are read as data, and a file that is damaged, too large or that others could have written counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.files import atomic_write, read_file, user_cache
from utils.settings.config import is_number, is_whole
from utils.system.console import LOGGER

FORMAT, VERSION = "yolov5-light engines", 2
LARGEST_RECORD, LARGEST_MODEL = 1 << 21, 1 << 30  # bytes
MOST_MODELS, MOST_BYTES = 20, 2 << 30  # converted files that are kept, and their size in all
MOST_RECORDS, MOST_ENTRIES = 100, 50  # records that are kept, and entries of each kind in one of them
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
DAY = 86_400  # seconds after which an unfinished file of a killed process is removed


@dataclass
class Record:
    """What is known about a checkpoint.

    weights: its SHA-256. model: the SHA-256 of the converted file, empty if there is none. maker: the versions with
    which it was converted. facts: its metadata as JSON. trained: the size of the images that the network was trained on
    and its largest stride, in pixels; 0 if unknown. checked: {engine: whether its outputs are close enough to the
    network's}. speeds: {machine and versions: {engine: milliseconds per image}}.
    """

    weights: str
    model: str = ""
    maker: str = ""
    facts: str = ""
    trained: tuple[int, int] = (0, 0)
    checked: dict[str, bool] = field(default_factory=dict)
    speeds: dict[str, dict[str, float]] = field(default_factory=dict)


def cache_folder() -> Path | None:
    """Return the folder of the cache, which may not exist; None without a home folder."""
    folder = user_cache()
    return folder / "engines" if folder else None


def digest_of(file: str | Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    with open(file, "rb") as f:
        while piece := f.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def read_record(weights: str) -> Record:
    """Return the record of a checkpoint with this SHA-256, an empty one if there is no valid record."""
    content = _read(f"{weights}.json", LARGEST_RECORD)
    try:
        tree = json.loads(content or b"null")
        return _checked(tree, weights) or Record(weights)
    except (ValueError, RecursionError):
        return Record(weights)


def write_record(record: Record) -> None:
    """Write a record, with at most MOST_ENTRIES entries of each kind, the newest ones; not that of an unknown file."""
    if not record.weights:
        return
    record.speeds, record.checked = (dict(list(d.items())[-MOST_ENTRIES:]) for d in (record.speeds, record.checked))
    _write(f"{record.weights}.json", json.dumps({"format": FORMAT, "version": VERSION, **asdict(record)}).encode())


def read_model(record: Record) -> bytes | None:
    """Return the content of the converted file, None if it is missing or is not the recorded one."""
    if not record.model:
        return None
    content = _read(f"{record.model}.onnx", LARGEST_MODEL)
    if content is None or hashlib.sha256(content).hexdigest() != record.model:
        return None
    try:
        os.utime(cache_folder() / f"{record.model}.onnx")  # the files used last are kept
    except OSError:
        pass
    return content


def write_model(record: Record, content: bytes, facts: str, maker: str) -> None:
    """Keep a converted file and enter it in the record, which the caller has to write; old files are removed."""
    record.model, record.maker, record.facts = hashlib.sha256(content).hexdigest(), maker, facts
    record.checked = {}
    if record.weights and len(content) <= LARGEST_MODEL:
        _write(f"{record.model}.onnx", content)
        _remove_old(cache_folder())


def _checked(tree: Any, weights: str) -> Record | None:
    """Return the record with these plain values, or None if any of them is invalid."""
    def is_text(value: Any, most: int = 1000) -> bool:
        return isinstance(value, str) and len(value) <= most

    if not isinstance(tree, dict) or (tree.get("format"), tree.get("version")) != (FORMAT, VERSION):
        return None
    model, maker, facts, checked, speeds = (tree.get(k) for k in ("model", "maker", "facts", "checked", "speeds"))
    if tree.get("weights") != weights or not is_text(model) or not is_text(maker) or not is_text(facts, LARGEST_RECORD):
        return None
    trained = tree.get("trained")
    if not isinstance(trained, list) or len(trained) != 2 or not all(is_whole(n) and 0 <= n < 1 << 20 for n in trained):
        return None
    if model and not re.fullmatch("[0-9a-f]{64}", model):
        return None
    for entries in (checked, speeds):
        if not isinstance(entries, dict) or len(entries) > MOST_ENTRIES or not all(map(is_text, entries)):
            return None
    if not all(isinstance(good, bool) for good in checked.values()):
        return None
    for found in speeds.values():
        if not isinstance(found, dict) or not all(is_number(v) and 0 < v < 1e9 for v in found.values()):
            return None
    return Record(weights, model, maker, facts, (trained[0], trained[1]), checked, speeds)


def _read(name: str, most: int) -> bytes | None:
    """Return the content of a file of the cache, or None if it cannot be used."""
    folder = cache_folder()
    try:
        if folder is None or not (_is_ours(folder) and _is_ours(folder / name, most)):
            return None
        return read_file(folder / name, most)
    except (OSError, MemoryError):
        return None


def _is_ours(path: Path, most: int = LARGEST_MODEL) -> bool:
    """Whether only this user can have written a file of at most `most` bytes, or a folder.

    Raises OSError if it does not exist.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_size > most:
        return False
    return not hasattr(os, "getuid") or status.st_uid == os.getuid() and not status.st_mode & OTHERS_WRITE


def _write(name: str, content: bytes) -> None:
    """Write a file of the cache; if that is impossible, nothing is kept."""
    folder = cache_folder()
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder):
            with atomic_write(folder / name, durable=False, private=True) as f:
                f.write(content)
    except OSError as e:
        LOGGER.debug(f"{folder / name}: not kept ({e.strerror})")


def _remove_old(folder: Path | None) -> None:
    """Remove the converted files and records used longest ago, and what killed processes left unfinished."""
    files: dict[Path, os.stat_result] = {}
    try:
        for entry in os.scandir(folder) if folder else ():
            if entry.is_file(follow_symlinks=False):
                files[Path(entry.path)] = entry.stat(follow_symlinks=False)
    except OSError:
        return
    newest = sorted(files, key=lambda file: files[file].st_mtime, reverse=True)
    total, old = 0, [f for f in newest if f.suffix == ".part" and files[f].st_mtime < time.time() - DAY]
    old += [f for f in newest if f.suffix == ".json"][MOST_RECORDS:]
    for number, file in enumerate(f for f in newest if f.suffix == ".onnx"):
        total += files[file].st_size
        if number and (number >= MOST_MODELS or total > MOST_BYTES):
            old.append(file)
    for file in old:
        try:
            file.unlink()
        except OSError:  # another process may have removed it, or uses it, on Windows
            continue
