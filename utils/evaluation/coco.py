"""COCO's instances format: reading the exact boxes and difficult objects of a split, and COCO's own metrics.

`voc2yolo.py` writes annotations/instances_<split>.json for each split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.labels import LabelIndex
from utils.errors import UserError
from utils.evaluation.protocols import ProtocolScore, class_counts
from utils.settings.config import is_number, is_whole
from utils.settings.dataset import DataConfig
from utils.system.console import LOGGER

FIGURES = "AP AP50 AP75 APsmall APmedium APlarge AR1 AR10 AR100 ARsmall ARmedium ARlarge".split()
REMEDY = "write it again with my_tools/voc2yolo.py, or delete it"


@dataclass(frozen=True)
class Annotated:
    """One image of a COCO file.

    image_id: its id. shape: (height, width). objects: (k, 7) float64 class, corners, area, difficult. categories: class
    index -> category id in the file.
    """

    image_id: int
    shape: tuple[int, int]
    objects: np.ndarray
    categories: Mapping[int, int] = field(default_factory=dict)


def read_annotations(file: Path, names: Mapping[int, str]) -> dict[str, Annotated]:
    """Read a COCO file and return `file_name` -> `Annotated`, with the class indices of `names`.

    Categories are matched by their names, or by their ids if the names do not match and every id is a class index of
    `names`. Objects with `iscrowd` or `difficult` 1 are difficult. Raises UserError, naming the file and the entry, if
    the file is damaged or has other classes.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}: is not valid JSON; {REMEDY}") from e
    images, annotations, categories = (_entries(content, key, file) for key in ("images", "annotations", "categories"))
    classes = _class_numbers(categories, names, file)
    found: dict[int, tuple[str, tuple[int, int]]] = {}
    for i, image in enumerate(images):
        name, number = image.get("file_name"), image.get("id")
        size = [image.get("height"), image.get("width")]
        if not isinstance(name, str) or not all(is_whole(v) for v in (number, *size)) or number in found:
            raise _damaged(file, f"images[{i}] needs a unique id, file_name, width and height")
        found[number] = name, (size[0], size[1])
    rows: dict[int, list[list[float]]] = {number: [] for number in found}
    for i, entry in enumerate(annotations):
        row = _object_row(entry, classes)
        if row is None or not is_whole(entry.get("image_id")) or entry["image_id"] not in rows:
            raise _damaged(file, f"annotations[{i}] needs a listed image_id and category_id, and a bbox of 4 numbers")
        rows[entry["image_id"]].append(row)
    ids = {number: i for i, number in classes.items()}
    return {name: Annotated(n, shape, np.array(rows[n], float).reshape(-1, 7), ids)
            for n, (name, shape) in found.items()}  # fmt: skip


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file}: {what}; {REMEDY}")


def _entries(content: Any, key: str, file: Path) -> list[dict[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise _damaged(file, f"'{key}' is missing or is not a list of entries")
    return entries


def _class_numbers(categories: list[dict[str, Any]], names: Mapping[int, str], file: Path) -> dict[int, int]:
    """Return category id -> class index."""
    by_name = {name: number for number, name in names.items()}
    ids = [c.get("id") for c in categories]
    if not all(is_whole(i) for i in ids) or len(set(ids)) < len(ids):
        raise _damaged(file, "every entry of 'categories' needs a unique id")
    if len(by_name) == len(names) and all(str(c.get("name")) in by_name for c in categories):
        return {c["id"]: by_name[str(c["name"])] for c in categories}
    if all(i in names for i in ids):
        return {i: i for i in ids}
    unknown = next(c.get("name") for c in categories if str(c.get("name")) not in by_name)
    raise UserError(f"{file}: category {unknown!r} is not one of the data yaml's names; {REMEDY}")


def _object_row(entry: dict[str, Any], classes: Mapping[int, int]) -> list[float] | None:
    """Return class, corners, area and difficult of an annotation, or None if the entry is damaged."""
    box = entry.get("bbox")
    flags = [entry.get(key, 0) for key in ("iscrowd", "difficult")]
    if not is_whole(entry.get("category_id")) or entry["category_id"] not in classes:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) for v in box) or min(box[2:]) < 0:
        return None
    area = entry.get("area", box[2] * box[3])
    if not is_number(area) or not all(flag in (0, 1) for flag in flags):
        return None
    return [classes[entry["category_id"]], box[0], box[1], box[0] + box[2], box[1] + box[3], area, float(any(flags))]


def split_annotations(data: DataConfig, split: str) -> dict[str, Annotated]:
    """Read the COCO files of a split: image path -> `Annotated`; empty if there are no such files.

    Raises UserError for a damaged file.
    """
    found: dict[str, Annotated] = {}
    for source in getattr(data, split):
        file = data.path / "annotations" / f"instances_{source.name}.json"
        if file.is_file():
            found.update({str(source / name): a for name, a in read_annotations(file, data.names).items()})
    return found


def check_sizes(index: LabelIndex, annotations: Mapping[str, Annotated]) -> None:
    """Raise UserError if an image's size in the COCO file is not its real size, since its boxes would be misplaced."""
    for i in range(len(index)):
        noted, real = annotations.get(index.file(i)), tuple(index.shapes[i].tolist())
        if noted and noted.shape != real:
            raise UserError(f"{index.file(i)} is {real[1]}x{real[0]} px, but its COCO file gives {noted.shape[1]}x"
                            f"{noted.shape[0]}: write annotations/ again with my_tools/voc2yolo.py")  # fmt: skip


def usable_annotations(data: DataConfig, split: str, index: LabelIndex, needed: bool) -> dict[str, Annotated]:
    """Return `split_annotations` if they match the images.

    If they do not, raises UserError where they are `needed`; otherwise warns and returns an empty dict.
    """
    try:
        annotations = split_annotations(data, split)
        check_sizes(index, annotations)
    except UserError as e:
        if needed:
            raise
        LOGGER.warning(str(e))
        return {}
    return annotations


def score_coco(found: Sequence[np.ndarray], truths: Sequence[np.ndarray], nc: int) -> ProtocolScore:
    """Compute COCO's metrics with the package faster-coco-eval; arguments as for `protocols.score_voc`.

    The result's `figures` holds the twelve metrics of FIGURES (nan where there is no object of that size). Raises
    UserError if the package is not installed.
    """
    coco, evaluator = _package()
    rows = [(i, row) for i, truth in enumerate(truths) for row in truth.tolist()]
    objects = [{"id": n, "image_id": i, "category_id": int(row[0]), "iscrowd": int(row[6]), "area": row[5],
                "bbox": [row[1], row[2], row[3] - row[1], row[4] - row[2]]}
               for n, (i, row) in enumerate(rows, 1)]  # fmt: skip
    detections = [{"image_id": i, "category_id": int(row[5]), "score": row[4],
                   "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]]}
                  for i, rows in enumerate(found) for row in rows.astype(np.float64).tolist()]  # fmt: skip
    true = coco({"images": [{"id": i} for i in range(len(truths))], "annotations": objects,
                 "categories": [{"id": c, "name": str(c)} for c in range(nc)]}, print_function=_silent)  # fmt: skip
    run = evaluator(true, true.loadRes(detections), "bbox", print_function=_silent)
    run.evaluate()
    run.accumulate()
    run.summarize()
    plain, difficult = class_counts(truths, nc)
    classes = np.flatnonzero(plain)
    precision = np.asarray(run.eval["precision"])[:, :, classes, 0, -1]  # thresholds, recalls, classes
    ap = np.stack((precision[0].mean(0), precision.mean((0, 1))), 1)
    stats = np.asarray(run.stats, float)[: len(FIGURES)]
    figures = dict(zip(FIGURES, np.where(stats < 0, np.nan, stats).tolist(), strict=True))
    return ProtocolScore(classes, ap, plain[classes], difficult[classes], ("AP50", "AP50-95"), figures)


def require_package() -> None:
    """Raise UserError if the package that COCO's metrics need is missing; to be called before the evaluation."""
    _package()


def _package() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as e:
        raise UserError(f"--protocol coco needs faster-coco-eval ({e}): pip install faster-coco-eval") from e
    return COCO, COCOeval_faster


def _silent(*_: object, **__: object) -> None:
    """Replace `print`, so that the package prints nothing."""
