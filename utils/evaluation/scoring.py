"""Computation of the metrics of an evaluation from detections and labels, in one process or several.

Each process stores a record per image. All records are gathered and sorted by path before any metric is computed, so
that the results do not depend on how the images were distributed over processes and batches.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.boxes import scale_boxes, xywhn2xyxy, xyxy2xywhn
from utils.data.naming import stems_of
from utils.evaluation.coco import Annotated, score_coco
from utils.evaluation.metrics import IOU_THRESHOLDS, ConfusionMatrix, Curves, ap_per_class, process_batch
from utils.evaluation.mistakes import Mistake, Mistakes, worst
from utils.evaluation.protocols import SIZES, ProtocolScore, class_counts, score_voc, size_ap
from utils.files import atomic_write
from utils.settings.options import PROTOCOLS
from utils.system.console import LOGGER

HEADER = ("%22s" + "%11s" * 6) % ("Class", "Images", "Instances", "P", "R", "mAP50", "mAP50-95")


@dataclass
class Settings:
    """How detections are computed and scored, and which files are written to `folder`.

    annotations: image path -> exact boxes from a COCO file. files: the paths of all images, as bytes; with them, images
    of the same name get separate files labels/*.txt. writes: whether this process writes the files that cover all
    images; of several processes only one does, while each writes labels/*.txt for its own images. by_size: whether
    COCO's AP by object size is computed, which takes about a millisecond per image.
    """

    conf_thres: float = 0.001
    iou_thres: float = 0.6
    max_det: int = 300
    single_cls: bool = False
    folder: Path | None = None
    plots: bool = False
    save_txt: bool = False
    save_conf: bool = False
    save_json: bool = False
    save_hybrid: bool = False
    protocol: str = "yolov5"
    annotations: Mapping[str, Annotated] = field(default_factory=dict)
    files: Sequence[bytes] | np.ndarray = ()
    writes: bool = True
    by_size: bool = True


@dataclass
class Results:
    """Metrics of an evaluation.

    p, r and ap are YOLOv5's metrics per class, for `classes`, p and r at the confidence of the best mean F1; `score`
    holds the metrics of another protocol. size_ap: COCO's AP50-95 of all, small, medium and large objects (4,), nan
    where there are no such objects. difficult: number of difficult objects, None if no annotation file gives it.
    """

    p: np.ndarray
    r: np.ndarray
    ap: np.ndarray
    classes: np.ndarray
    curves: Curves
    images: int
    images_per_class: np.ndarray
    objects: np.ndarray
    losses: tuple[float, float, float]
    speed: dict[str, float]  # milliseconds per image, with all of PyTorch's threads
    size_ap: np.ndarray
    size_objects: np.ndarray
    difficult: int | None = None
    protocol: str = "yolov5"
    score: ProtocolScore | None = None

    @property
    def summary(self) -> np.ndarray:
        """Mean P, R, mAP50, mAP50-95 over the classes that have labels; zeros if there are no labels."""
        if not len(self.classes):
            return np.zeros(4)
        return np.array([self.p.mean(), self.r.mean(), self.ap[:, 0].mean(), self.ap.mean()])


class ImageRecord(NamedTuple):
    """The detections and labels of one image, in pixels of the original image.

    found: (m, 6) float32 corners, confidence, class; true: (k, 5) float32 class, corners; correct: (m, 10) bool, true
    positives at each of IOU_THRESHOLDS.
    """  # fmt: skip

    path: str
    found: np.ndarray
    true: np.ndarray
    correct: np.ndarray


class Part(NamedTuple):
    """The records of one process.

    losses: for each batch the path of its first image and three values; seconds: (3,) total times of pre-processing,
    inference and NMS.
    """

    images: list[ImageRecord]
    losses: list[tuple[str, list[float]]]
    seconds: np.ndarray
    mistakes: list[Mistake]


class Scorer:
    """Collects the records and the worst mistakes of this process, and writes its label files if asked to."""

    def __init__(self, names: Mapping[int, str], settings: Settings) -> None:
        self.settings = settings
        self.images: list[ImageRecord] = []
        self.mistakes = Mistakes(names)
        self._stems: dict[str, str] = {}  # image path -> name of its label file without suffix
        if settings.save_txt:
            self._stems, renamed = stems_of(os.fsdecode(bytes(file)) for file in settings.files)
            if renamed and settings.writes:
                LOGGER.info(f"labels/*.txt: {renamed}")

    def add_image(self, image: Tensor, found: Tensor, labels: Tensor, record: ImageRecord, shapes: Any) -> None:
        """Add one image and its record; the other arguments as for `record_of`."""
        if self.settings.plots:
            found, true = in_pixels(image.shape[1:], found, labels, self.settings.single_cls)
            self.mistakes.add(image, found, true, self._ignored(record.path, shapes[1]), record.path)
        self.images.append(record)
        if self.settings.save_txt:
            stem = self._stems.get(record.path, Path(record.path).stem)
            self._save_txt(record.found, shapes[0], self.settings.folder / "labels" / f"{stem}.txt")

    def _ignored(self, path: str, ratio_pad: Any) -> np.ndarray:
        """Return the difficult objects of an image, (k, 5) class, corners in pixels of the network's input."""
        if path not in self.settings.annotations:
            return np.zeros((0, 5))
        (ratio_h, ratio_w), (pad_w, pad_h) = ratio_pad
        objects = truth_of(path, np.zeros((0, 5)), self.settings)
        rows = objects[objects[:, 6] > 0, :5]
        rows[:, 1:] = rows[:, 1:] * (ratio_w, ratio_h, ratio_w, ratio_h) + (pad_w, pad_h, pad_w, pad_h)
        return rows

    def _save_txt(self, found: np.ndarray, shape: tuple[int, int], file: Path) -> None:
        lines = []
        for row, box in zip(found.tolist(), xyxy2xywhn(found[:, :4], shape[1], shape[0]).tolist(), strict=True):
            values = [*box, row[4]] if self.settings.save_conf else box
            lines.append(" ".join([f"{int(row[5])}", *(f"{v:.6g}" for v in values)]))
        with atomic_write(file, "w", durable=False) as f:
            f.write("".join(f"{line}\n" for line in lines))


def record_of(
    shape: Sequence[int], found: Tensor, labels: Tensor, path: str, shapes: Any, single_cls: bool = False
) -> ImageRecord:
    """Return the record of an image.

    shape: (h, w) of the network's input; found: (m, 6) in pixels of that input; labels: (k, 5) class, cx, cy, w, h
    normalised; shapes: as the data loader returns them.
    """
    size, ratio_pad = shapes
    found, true = in_pixels(shape, found, labels, single_cls)
    scale_boxes(shape, found[:, :4], size, ratio_pad)
    scale_boxes(shape, true[:, 1:], size, ratio_pad)
    correct = process_batch(torch.from_numpy(found), torch.from_numpy(true), torch.tensor(IOU_THRESHOLDS))
    return ImageRecord(path, found, true, correct.numpy())


def in_pixels(
    shape: Sequence[int], found: Tensor, labels: Tensor, single_cls: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of detections (m, 6) and labels (k, 5) class, corners, both in pixels of the network's input."""
    found, true = found.cpu().numpy().copy(), labels.cpu().numpy().copy()
    if single_cls:
        found[:, 5] = 0
    true[:, 1:] = xywhn2xyxy(true[:, 1:], shape[1], shape[0])
    return found, true


def truth_of(path: str, true: np.ndarray, settings: Settings) -> np.ndarray:
    """Return the ground truth (k, 7) of an image, in the form described in `utils.evaluation.protocols`.

    It is taken from the image's COCO file, or from its labels `true`, (k, 5) class, corners in pixels, if there is no
    such file; labels are never difficult.
    """
    if path in settings.annotations:
        objects = settings.annotations[path].objects.copy()
        objects[:, 0] *= not settings.single_cls
        return objects
    rows = true.astype(np.float64)
    return np.column_stack((rows, (rows[:, 3:] - rows[:, 1:3]).prod(1), np.zeros(len(rows))))


def merge(parts: Sequence[Part]) -> Part:
    """Merge the Parts of all processes into one, sorted by path; an image that two processes evaluated counts once."""
    images = {record.path: record for part in parts for record in part.images}
    losses = dict(loss for part in parts for loss in part.losses)
    seen = max(sum(len(part.images) for part in parts), 1)
    seconds = sum((part.seconds for part in parts), np.zeros(3)) / seen * len(images)
    return Part([images[path] for path in sorted(images)], sorted(losses.items()), seconds,
                worst({(m.kind, m.path, m.number): m for part in parts for m in part.mistakes}.values()))  # fmt: skip


def results_of(part: Part, names: Mapping[int, str], settings: Settings) -> Results:
    """Compute the metrics from merged records."""
    nothing = [np.zeros((0, len(IOU_THRESHOLDS)), bool), np.zeros(0), np.zeros(0), np.zeros(0)]
    rows = [(i.correct, i.found[:, 4], i.found[:, 5], i.true[:, 0]) for i in part.images]
    tp, conf, pred_cls, true_cls = (np.concatenate(c) for c in zip(nothing, *rows, strict=True))
    _, _, p, r, _, ap, classes, curves = ap_per_class(tp, conf, pred_cls, true_cls)
    objects = np.bincount(true_cls.astype(int), minlength=len(names))
    per_class = np.zeros(len(names), int)
    for image in part.images:
        rows = image.true if settings.protocol == "yolov5" else truth_of(image.path, image.true, settings)
        per_class[np.unique(rows[:, 0].astype(int))] += 1
    losses = np.array([values for _, values in part.losses]).reshape(-1, 3).sum(0) / max(len(part.losses), 1)
    milliseconds = (part.seconds / max(len(part.images), 1) * 1e3).tolist()
    speed = dict(zip(("pre-process", "inference", "NMS"), milliseconds, strict=True))
    score, sizes, difficult = _by_protocol(part, len(names), settings)
    return Results(p, r, ap, classes, curves, len(part.images), per_class, objects, tuple(losses.tolist()), speed,
                   *sizes, difficult, settings.protocol, score)  # fmt: skip


def _by_protocol(
    part: Part, nc: int, settings: Settings
) -> tuple[ProtocolScore | None, tuple[np.ndarray, np.ndarray], int | None]:
    """Return the protocol's own score, AP and number of objects by size, and the number of difficult objects."""
    found = [image.found for image in part.images]
    exact = [truth_of(image.path, image.true, settings) for image in part.images]
    known = any(image.path in settings.annotations for image in part.images)
    difficult = int(class_counts(exact, nc)[1].sum()) if known else None
    # YOLOv5's protocol takes its ground truth from the label files
    objects = exact if settings.protocol != "yolov5" else [truth_of("", i.true, settings) for i in part.images]
    none = np.full(len(SIZES), np.nan), np.zeros(len(SIZES), int)
    sizes = size_ap(found, objects, nc) if settings.by_size else none
    if settings.protocol == "yolov5":
        return None, sizes, difficult
    if settings.protocol == "coco":
        return score_coco(found, exact, nc), sizes, difficult
    return score_voc(found, exact, nc, settings.protocol == "voc07"), sizes, difficult


def confusion_of(part: Part, nc: int) -> np.ndarray:
    """Compute the confusion matrix (nc + 1, nc + 1) from merged records."""
    confusion = ConfusionMatrix(nc)
    for image in part.images:
        confusion.process_batch(torch.from_numpy(image.found), torch.from_numpy(image.true))
    return confusion.matrix


def json_rows(part: Part, settings: Settings) -> list[dict[str, Any]]:
    """Return the detections of merged records in COCO's results format.

    Image and category ids are taken from the COCO file. For images that are in no COCO file, and for all images if the
    ids of several files clash, the image id is the file name without suffix, as an int if it is a number, and the
    category id is the class index.
    """
    known = {i.path: settings.annotations[i.path] for i in part.images if i.path in settings.annotations}
    known = known if len({a.image_id for a in known.values()}) == len(known) else {}
    rows = []
    for image in part.images:
        stem = Path(image.path).stem
        image_id: int | str = int(stem) if stem.isascii() and stem.isdigit() else stem
        categories: Mapping[int, int] = {}
        if image.path in known:
            image_id, categories = known[image.path].image_id, known[image.path].categories
        for x1, y1, x2, y2, confidence, cls in image.found.tolist():
            box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
            category = categories.get(int(cls), int(cls))
            rows.append({"image_id": image_id, "category_id": category, "bbox": box, "score": round(confidence, 5)})
    return rows


def results_table(results: Results, names: Mapping[int, str], per_class: bool = False) -> str:
    """Format the metrics as text: a row for all classes, a row per class if asked, AP by object size, the protocol.

    The columns are those of the protocol.
    """
    rows = _protocol_rows(results, names) if results.score else _yolov5_rows(results, names)
    if not per_class:
        rows = rows[:2]
    sizes = zip(SIZES, results.size_ap, results.size_objects, strict=True)
    by_size = ", ".join(f"{name} {'-' if np.isnan(ap) else f'{ap:.3g}'} ({count} objects)" for name, ap, count in sizes)
    return "\n".join([*rows, f"AP50-95 by COCO's rule: {by_size}", protocol_line(results)])


def _yolov5_rows(results: Results, names: Mapping[int, str]) -> list[str]:
    line = "%22s" + "%11i" * 2 + "%11.3g" * 4
    rows = [HEADER, line % ("all", results.images, results.objects.sum(), *results.summary)]
    for i, c in enumerate(results.classes):
        figures = (results.p[i], results.r[i], results.ap[i, 0], results.ap[i].mean())
        rows.append(line % (names[int(c)][:22], results.images_per_class[c], results.objects[c], *figures))
    return rows


def _protocol_rows(results: Results, names: Mapping[int, str]) -> list[str]:
    score = results.score
    line = "%22s" + "%11i" * 3 + "%11.3g" * len(score.columns)
    means = score.ap.mean(0) if len(score.ap) else np.zeros(len(score.columns))
    heads = ("Class", "Images", "Instances", "Difficult", *(f"m{c}" for c in score.columns))
    rows = [("%22s" + "%11s" * (len(heads) - 1)) % heads,
            line % ("all", results.images, score.objects.sum(), results.difficult or 0, *means)]  # fmt: skip
    for c, objects, difficult, ap in zip(score.classes, score.objects, score.difficult, score.ap, strict=True):
        rows.append(line % (names[int(c)][:22], results.images_per_class[c], objects, difficult, *ap))
    return rows


def protocol_line(results: Results) -> str:
    """Return the protocol, the numbers of images, objects and difficult objects, and COCO's twelve metrics, as text."""
    objects = int(results.score.objects.sum() if results.score else results.objects.sum())
    if results.difficult is None:
        hard = "it is not known which objects are difficult"
    elif not results.difficult:
        hard = "none of them difficult"
    elif results.score:
        hard = f"and {results.difficult} difficult ones, ignored"
    else:
        hard = f"and {results.difficult} difficult ones, whose detections count as false positives"
    text = f"protocol {results.protocol} ({PROTOCOLS[results.protocol]}): {results.images} images, {objects} objects"
    text = f"{text}, {hard}"
    if results.protocol == "coco" and results.score:
        text += "\n" + "  ".join(f"{name} {value:.3f}" for name, value in results.score.figures.items())
    return text


def speed_line(results: Results) -> str:
    """Return the milliseconds per image of each step, as text."""
    return ", ".join(f"{v:.1f} ms {k}" for k, v in results.speed.items())
