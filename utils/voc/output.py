"""What a converted VOC set consists of, label files, images, COCO json, data yaml, and writing it whole or not at all.

Files are written under a temporary name and renamed, and only if they differ from what lies there. Thousands of label
files are not flushed to the disk one by one (`atomic_write` does, at some milliseconds each): killing the process loses
nothing, and after a power cut the next run compares them all and writes the damaged ones again.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import did_you_mean
from utils.files import atomic_write
from utils.voc.annotation import Box, VocAnnotation, VocError, pixel_box, yolo_line
from utils.voc.source import MAX_IMAGE, Files

LINKS = ("hard", "copy", "symlink")
_TEMPORARY = ".voc2yolo."


@dataclass
class Converted:
    """One image's objects: its label file's lines, (class, exact corners in pixels, difficult) of each, complaints."""

    lines: list[str] = field(default_factory=list)
    objects: list[tuple[int, Box, bool]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def convert_objects(annotation: VocAnnotation, classes: Mapping[str, int], formula: str = "exact") -> Converted:
    """Turn an annotation (with its size known) into label lines and boxes; difficult objects get no line."""
    done = Converted(problems=list(annotation.problems))
    width, height = annotation.width, annotation.height
    for thing in annotation.objects:
        index = classes.get(thing.name)
        if index is None:
            done.problems.append(f"class not in the list: {thing.name[:60]!r}{did_you_mean(thing.name[:60], classes)}")
            continue
        try:
            corners, cut = pixel_box(thing.box, width, height)
            if not thing.difficult:
                label = corners if formula == "exact" else pixel_box(thing.box, width, height, formula)[0]
                done.lines.append(yolo_line(index, label, width, height))
        except VocError as e:
            done.problems.append(str(e))
            continue
        if cut:
            done.problems.append("box cut to the image: " + " ".join(f"{v:g}" for v in thing.box))
        done.objects.append((index, corners, thing.difficult))
    return done


def coco_json(rows: Sequence[tuple[str, int, int, list[tuple[int, Box, bool]]]], names: Sequence[str]) -> str:
    """COCO's instances format for (file name, width, height, objects) of each image.

    An image's id is its number if every file is named by one (000123.jpg is 123, as YOLOv5's json has it), else it
    counts from 1. Difficult objects have `iscrowd` 1: finding one is neither right nor wrong, which is VOC's rule.
    """
    stems = [os.path.splitext(name)[0] for name, *_ in rows]
    numbered = all(s.isascii() and s.isdecimal() and len(s) < 16 for s in stems) and len(set(map(int, stems))) == len(
        stems
    )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for count, (stem, (name, width, height, objects)) in enumerate(zip(stems, rows, strict=True), 1):
        image_id = int(stem) if numbered else count
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for index, (x0, y0, x1, y1), difficult in objects:
            w, h = x1 - x0, y1 - y0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": index,
                    "bbox": [round(v, 4) for v in (x0, y0, w, h)],
                    "area": round(w * h, 4),
                    "iscrowd": int(difficult),
                    "difficult": int(difficult),
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def data_yaml(out: Path, splits: Sequence[str], names: Sequence[str]) -> tuple[str, list[str]]:
    """The text of a data yaml for the splits there are, and a sentence for each split that stands in for another.

    VOC's years are joined as usual: train and val of both to train on, 2007 test to evaluate on.
    """
    notes: list[str] = []
    train = [s for s in splits if s.startswith("train")]
    val = [s for s in splits if s.startswith("val")]
    test = [s for s in splits if s.startswith("test")]
    by_year = any(s[-1].isdigit() for s in splits)
    if by_year and test:
        train, val = train + val, test
    elif not val:
        val = test or train
        notes.append(f"no val split: the yaml evaluates on {', '.join(val)}")
    if not train:
        train = val
        notes.append(f"no train split: the yaml trains on {', '.join(train)}")
    rows: dict[str, Any] = {"path": str(out)}
    for key, part in (("train", train), ("val", val), ("test", test)):
        if part:
            folders = [f"images/{s}" for s in part]
            rows[key] = folders if by_year else folders[0]
    rows["names"] = dict(enumerate(names))
    text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=1000)
    return f"# written by my_tools/voc2yolo.py\n{text}", notes


def write_if_changed(path: Path | str, data: bytes, flush: bool = False) -> bool:
    """Give the file this content, atomically; return False, leaving it alone, if it has it already."""
    try:
        with open(path, "rb") as f:
            if f.read(len(data) + 1) == data:
                return False
    except FileNotFoundError:
        pass
    if flush:
        try:
            _write_flushed(path, data)
        except FileNotFoundError:  # swept away by a second conversion that was started meanwhile
            _write_flushed(path, data)
    else:
        _put(str(path), lambda temporary: _write(temporary, data))
    return True


def _write_flushed(path: Path | str, data: bytes) -> None:
    with atomic_write(path) as f:
        f.write(data)


def image_writer(files: Files, name: str, target: str, link: str) -> Callable[[], None] | None:
    """Return what puts the image `name` at `target`, or None if it is there already.

    Bytes in a zip are read here, not in the writer: raises UserError if they are damaged, with nothing written.
    """
    try:
        status = os.stat(target)
        if stat.S_ISREG(status.st_mode) and status.st_size == files.size(name) and files.equals(name, target):
            return None
    except OSError:
        pass
    source = files.path(name)
    if source is None:
        data = files.read(name, MAX_IMAGE)
        return lambda: _put(target, lambda temporary: _write(temporary, data))
    return lambda: _put(target, lambda temporary: _link(source, temporary, link))


def _link(source: Path, temporary: str, link: str) -> None:
    if link == "symlink":
        os.symlink(source, temporary)
        return
    if link == "hard":
        try:
            os.link(source, temporary)
            return
        except OSError:  # another disk, a file system without links, another owner's file
            pass
    shutil.copyfile(source, temporary)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)


def _put(target: str, write: Callable[[str], None]) -> None:
    """Let `write` make a temporary file beside `target`, then rename it."""
    temporary = os.path.join(os.path.dirname(target), f"{_TEMPORARY}{os.getpid()}.part")
    for last in (False, True):
        try:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            write(temporary)
            os.replace(temporary, target)
            if os.path.lexists(temporary):  # another conversion was first: of two names of one file both stay
                os.unlink(temporary)
            return
        except FileNotFoundError:  # swept away by a second conversion that was started meanwhile
            if last:
                raise
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise


def sweep(folder: Path, written: Sequence[str] = ()) -> None:
    """Remove the temporary files that a killed conversion left in `folder`; `written`: names given to atomic_write."""
    prefixes = (_TEMPORARY, *(f".{name[:80]}." for name in written))
    for path in folder.glob(".*.part"):
        if path.name.startswith(prefixes):
            path.unlink(missing_ok=True)
