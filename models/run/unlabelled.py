"""Images without labels (`unlabelled:` in the dataset yaml), which the teacher of a training labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from models.run.teacher import Teacher
from utils.boxes import scale_boxes, xyxy2xywh, xyxy2xywhn
from utils.data.augment import letterbox
from utils.data.images import ImageError, read_image
from utils.data.label_rows import LEAST_SIDE
from utils.data.labels import (
    LEAST_PIXELS,
    LabelIndex,
    fingerprint_of,
    label_path,
    list_images,
    read_cache,
    user_cache_of,
    write_cache,
)
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression
from utils.settings.dataset import DataConfig
from utils.system.background import one_torch_thread
from utils.system.console import LOGGER, progress
from utils.system.distributed import locked
from utils.system.granted import granted_cores

LEAST_CONFIDENCE = 0.4  # of a detection that counts as a label
AT_ONCE = 16  # decoded images in memory


def with_unlabelled(
    index: LabelIndex, data: DataConfig, teacher: Teacher | None, imgsz: int, others: Sequence[LabelIndex] = ()
) -> LabelIndex:
    """Add the images of `unlabelled:`, with the teacher's detections as labels, to those of the train split.

    Images that are in the train split or in `others`, the other splits, are not added. Raises UserError if the teacher
    does not know all classes: their objects would count as background.
    """
    if not data.unlabelled:
        return index
    if teacher is None:
        LOGGER.warning(f"{data.yaml_file.name}: the images of 'unlabelled:' are not used, as there is no --teacher")
        return index
    if not teacher.known.all():
        raise UserError(f"{data.yaml_file}: 'unlabelled:' needs a --teacher that knows all classes, as objects of the "
                        "others would be learnt as background")  # fmt: skip
    with locked(data.existing("unlabelled")[0].parent):
        more = teacher_labels(data, teacher, imgsz)
    used = set().union(*(i.files.tolist() for i in (index, *others)))
    own = np.array([file not in used for file in more.files.tolist()], bool)
    if not own.all():
        LOGGER.warning(f"unlabelled: {(~own).sum()} images are in a split of the dataset, and not used here")
    return joined(index, more.take(np.flatnonzero((np.diff(more.offsets) > 0) & own)))


def teacher_labels(data: DataConfig, teacher: Teacher, imgsz: int) -> LabelIndex:
    """Return the images of `unlabelled:` and what the teacher detects in them, from a cache if nothing has changed."""
    sources = data.existing("unlabelled")
    if missing := [str(p) for p in data.unlabelled if not p.exists()]:
        LOGGER.warning(f"{data.yaml_file.name}: unlabelled: {', '.join(missing)} does not exist")
    images = list_images(sources, data.roots)
    facts = f"{fingerprint_of(images, data.nc)} {teacher.digest} {teacher.precision.amp} {imgsz}"
    fingerprint = hashlib.sha256(facts.encode()).hexdigest()
    folder = sources[0] if sources[0].is_file() else label_path(images[0]).parent
    caches = [folder.with_suffix(".taught.npz"), *user_cache_of(fingerprint)]
    index = next(filter(None, (read_cache(c, fingerprint, images, data.nc) for c in caches)), None)
    if index is None:
        index = _label(images, teacher, imgsz)
        teacher.close()
        write_cache(caches, fingerprint, index)
    empty = int((np.diff(index.offsets) == 0).sum())
    LOGGER.info(f"unlabelled: {len(index)} images, {len(index.values)} objects found by the teacher, {empty} images "
                f"without objects are not used, {len(index.problems)} left out")  # fmt: skip
    for problem in index.problems[:5]:
        LOGGER.warning(f"left out: {problem}")
    return index


def joined(a: LabelIndex, b: LabelIndex) -> LabelIndex:
    """Return the images and labels of both."""
    return LabelIndex(*(np.concatenate((getattr(a, k), getattr(b, k))) for k in ("files", "shapes", "values")),
                      np.concatenate((a.offsets, b.offsets[1:] + a.offsets[-1])), a.problems, a.notes)  # fmt: skip


def _label(images: list[str], teacher: Teacher, imgsz: int) -> LabelIndex:
    files, shapes, labels, problems = [], [], [], []
    with ThreadPoolExecutor(min(granted_cores(), 8)) as pool:  # decoding leaves the interpreter lock
        read = (one for k in range(0, len(images), AT_ONCE) for one in pool.map(_read, images[k : k + AT_ONCE]))
        for image, im in zip(images, progress(read, "unlabelled", total=len(images)), strict=True):
            if isinstance(im, str):
                problems.append(im)
                continue
            files.append(image.encode(errors="surrogateescape"))
            shapes.append(im.shape[:2])
            labels.append(_detected(im, teacher, imgsz))
    empty = np.zeros((0, 5), np.float32)
    return LabelIndex(np.array(files, dtype=np.bytes_), np.array(shapes, np.int32).reshape(-1, 2),
                      np.concatenate([empty, *labels]), np.cumsum([0, *map(len, labels)]).astype(np.int64),
                      tuple(problems), ())  # fmt: skip


def _read(image: str) -> np.ndarray | str:
    """Return an image (h, w, 3) BGR, or why it cannot be used."""
    try:
        im = read_image(image)
    except ImageError as e:
        return f"{image}: {e}"
    if min(im.shape[:2]) < LEAST_PIXELS:
        return f"{image}: {im.shape[1]}x{im.shape[0]} px is too small; each side must be at least {LEAST_PIXELS} px"
    return im


def _detected(im: np.ndarray, teacher: Teacher, imgsz: int) -> np.ndarray:
    """Return what the teacher detects in an image as labels, (n, 5) class, cx, cy, w, h normalised."""
    boxed = letterbox(im, imgsz, auto=teacher.size is None, stride=max(teacher.strides))[0]
    x = torch.from_numpy(np.ascontiguousarray(boxed[..., ::-1].transpose(2, 0, 1)))[None].float() / 255
    with one_torch_thread():
        taught = teacher(x.to(teacher.precision.device))
        scores = taught.scores
        rows = torch.cat((xyxy2xywh(taught.boxes), torch.ones_like(scores[..., :1]), scores), 2)
        found = non_max_suppression(rows, LEAST_CONFIDENCE)[0].cpu()
    boxes = xyxy2xywhn(scale_boxes(boxed.shape, found[:, :4], im.shape), im.shape[1], im.shape[0])
    good = (boxes[:, 2:] >= LEAST_SIDE).all(1)
    return torch.cat((found[good, 5:], boxes[good]), 1).numpy().astype(np.float32)
