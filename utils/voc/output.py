"""Creating and atomically writing the files of a converted VOC dataset: labels, images, COCO json and data yaml.

Files are written under a temporary name and then renamed, and only if their content changes. Unlike `atomic_write`,
which takes some milliseconds per file, the thousands of label files are not flushed to the disk one by one: killing the
process damages no file, and after a power failure the next run compares all files and rewrites the damaged ones.
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
from utils.voc.files import MAX_IMAGE, Files
from utils.voc.sizes import Frame

_TEMPORARY = ".voc2yolo."


@dataclass
class Converted:
    """The converted objects of one image.

    lines: lines of the label file. objects: (class, exact corners in pixels, difficult) of each. problems: messages.
    """

    lines: list[str] = field(default_factory=list)
    objects: list[tuple[int, Box, bool]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def convert_objects(
    annotation: VocAnnotation, classes: Mapping[str, int], frame: Frame, formula: str = "exact"
) -> Converted:
    """Convert an annotation to label lines and boxes; difficult objects get no label line.

    frame: where the boxes are given; they are placed in the image as training reads it.
    """
    done = Converted(problems=list(annotation.problems))
    width, height = frame.given
    exact = "zero" if formula == "zero" else "exact"
    for thing in annotation.objects:
        index = classes.get(thing.name)
        if index is None:
            done.problems.append(f"class not in the list: {thing.name[:60]!r}{did_you_mean(thing.name[:60], classes)}")
            continue
        try:
            corners, cut = pixel_box(thing.box, width, height, exact)
            if not thing.difficult:
                label = corners if formula == exact else pixel_box(thing.box, width, height, formula)[0]
                done.lines.append(yolo_line(index, frame.place(label), *frame.size))
        except VocError as e:
            done.problems.append(str(e))
            continue
        if cut:
            done.problems.append("box clipped to the image: " + " ".join(f"{v:g}" for v in thing.box))
        done.objects.append((index, frame.place(corners), thing.difficult))
    return done


def coco_json(rows: Sequence[tuple[str, int, int, list[tuple[int, Box, bool]]]], names: Sequence[str]) -> str:
    """Return COCO's instances json for rows of (file name, width, height, objects), one row per image.

    If all file names are distinct numbers, they are the image ids (000123.jpg has id 123, as in YOLOv5's json);
    otherwise the ids count from 1. Difficult objects have `iscrowd` 1, so that detecting one counts neither as a true
    nor as a false positive, as by VOC's rule.
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
    """Return the text of a data yaml for the existing splits, and a message for each split used in place of another.

    VOC's years are combined as usual: train and val of both years for training, 2007 test for validation.
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
        notes.append(f"no val split: the yaml uses {', '.join(val)} for validation")
    if not train:
        train = val
        notes.append(f"no train split: the yaml uses {', '.join(train)} for training")
    rows: dict[str, Any] = {"path": str(out)}
    for key, part in (("train", train), ("val", val), ("test", test)):
        if part:
            folders = [f"images/{s}" for s in part]
            rows[key] = folders if by_year else folders[0]
    rows["names"] = dict(enumerate(names))
    text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=1000)
    return f"# written by my_tools/voc2yolo.py\n{text}", notes


def write_if_changed(path: Path | str, data: bytes, flush: bool = False) -> bool:
    """Write a file atomically, unless it already has this content; return whether it was written."""
    try:
        with open(path, "rb") as f:
            if f.read(len(data) + 1) == data:
                return False
    except FileNotFoundError:
        pass
    if flush:
        try:
            _write_flushed(path, data)
        except FileNotFoundError:  # another conversion, started meanwhile, deleted the temporary file
            _write_flushed(path, data)
    else:
        _put(str(path), lambda temporary: _write(temporary, data))
    return True


def _write_flushed(path: Path | str, data: bytes) -> None:
    with atomic_write(path) as f:
        f.write(data)


def image_writer(files: Files, name: str, target: str, link: str) -> Callable[[], None] | None:
    """Return a function that writes the image `name` to `target`, or None if it is already there.

    An image in a zip is read here and not in that function, so that UserError for damaged data is raised before
    anything is written.
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
        except OSError:  # another disk, a file system without hard links, or a file of another owner
            pass
    shutil.copyfile(source, temporary)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)


def _put(target: str, write: Callable[[str], None]) -> None:
    """Call `write` to create a temporary file beside `target`, then rename it to `target`."""
    temporary = os.path.join(os.path.dirname(target), f"{_TEMPORARY}{os.getpid()}.part")
    for last in (False, True):
        try:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            write(temporary)
            os.replace(temporary, target)
            if os.path.lexists(temporary):  # os.replace does nothing if both are links to one file
                os.unlink(temporary)
            return
        except FileNotFoundError:  # another conversion, started meanwhile, deleted the temporary file
            if last:
                raise
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise


def sweep(folder: Path, written: Sequence[str] = ()) -> None:
    """Delete temporary files that a killed conversion left in `folder`; written: file names written by atomic_write."""
    prefixes = (_TEMPORARY, *(f".{name[:80]}." for name in written))
    for path in folder.glob(".*.part"):
        if path.name.startswith(prefixes):
            path.unlink(missing_ok=True)
