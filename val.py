"""Evaluate a trained detector on a data set.

    python val.py --weights runs/train/exp/weights/best.pt --data VOC.yaml
    python val.py                                             # the newest run's best.pt on the default set
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from models.runtime import Runtime, check_img_size, load_runtime, warm_up
from my_tools.default_set import prepare_shapes
from utils.boxes import scale_boxes, xywhn2xyxy, xyxy2xywh, xyxy2xywhn
from utils.config import DataConfig, load_data
from utils.console import LOGGER, progress, run_script
from utils.dataset import DetectionDataset, create_loader
from utils.device import describe_device, select_device
from utils.draw import draw_batch
from utils.errors import UserError
from utils.files import ROOT, atomic_write, increment_path, newest
from utils.images import write_image
from utils.labels import load_labels
from utils.metrics import IOU_THRESHOLDS, ConfusionMatrix, Curves, ap_per_class, process_batch
from utils.nms import non_max_suppression
from utils.plots import plot_confusion, plot_curves

# uint8 images -> decoded boxes, and the raw maps if a loss is wanted
Forward = Callable[[Tensor], tuple[Tensor, list[Tensor] | None]]
HEADER = ("%22s" + "%11s" * 6) % ("Class", "Images", "Instances", "P", "R", "mAP50", "mAP50-95")
PICTURED_BATCHES = 3


@dataclass
class Settings:
    """How detections are made and scored, and what of them is written to `folder`."""

    conf_thres: float = 0.001
    iou_thres: float = 0.6
    max_det: int = 300
    single_cls: bool = False
    folder: Path | None = None
    plots: bool = False
    save_txt: bool = False
    save_conf: bool = False
    save_json: bool = False
    image_ids: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Results:
    """Figures of an evaluation; p, r, f1 and ap are per class, for `classes`, at the confidence of the best mean F1."""

    p: np.ndarray
    r: np.ndarray
    ap: np.ndarray
    classes: np.ndarray
    curves: Curves
    images: int
    images_per_class: np.ndarray
    objects: np.ndarray
    losses: tuple[float, float, float]
    speed: dict[str, float]  # milliseconds per image

    @property
    def summary(self) -> np.ndarray:
        """Mean P, R, mAP50, mAP50-95 over the classes that have labels (zeros without labels)."""
        if not len(self.classes):
            return np.zeros(4)
        return np.array([self.p.mean(), self.r.mean(), self.ap[:, 0].mean(), self.ap.mean()])


class Scorer:
    """Gathers matches of detections to labels over the batches of an evaluation."""

    def __init__(self, names: Mapping[int, str], settings: Settings) -> None:
        self.names, self.settings = names, settings
        self.iouv = torch.tensor(IOU_THRESHOLDS)
        self.confusion = ConfusionMatrix(len(names))
        self.stats: list[tuple[np.ndarray, ...]] = []
        self.images_per_class = np.zeros(len(names), int)
        self.json_rows: list[dict[str, Any]] = []
        self.images = 0

    def add_image(self, found: Tensor, labels: Tensor, shape: torch.Size, path: str, shapes: Any) -> None:
        """Score one image: found (m, 6) in pixels of the network's input `shape`, labels (k, 5) class, cxcywh in it."""
        (h0, w0), ratio_pad = shapes
        found = found.cpu().clone()
        if self.settings.single_cls:
            found[:, 5] = 0
        scale_boxes(tuple(shape), found[:, :4], (h0, w0), ratio_pad)
        true = labels.clone()
        true[:, 1:] = scale_boxes(tuple(shape), xywhn2xyxy(labels[:, 1:], shape[1], shape[0]), (h0, w0), ratio_pad)
        correct = process_batch(found, true, self.iouv)
        self.stats.append((correct.numpy(), found[:, 4].numpy(), found[:, 5].numpy(), true[:, 0].numpy()))
        self.images_per_class[np.unique(true[:, 0].numpy().astype(int))] += 1
        self.images += 1
        if self.settings.plots:
            self.confusion.process_batch(found, true)
        if self.settings.save_txt:
            self._save_txt(found, (h0, w0), Path(path))
        if self.settings.save_json:
            self._note_json(found, Path(path))

    def _save_txt(self, found: Tensor, shape: tuple[int, int], path: Path) -> None:
        lines = []
        for row, box in zip(found.tolist(), xyxy2xywhn(found[:, :4], shape[1], shape[0]).tolist(), strict=True):
            values = [*box, row[4]] if self.settings.save_conf else box
            lines.append(" ".join([f"{int(row[5])}", *(f"{v:.6g}" for v in values)]))
        with atomic_write(self.settings.folder / "labels" / f"{path.stem}.txt", "w") as f:
            f.write("".join(f"{line}\n" for line in lines))

    def _note_json(self, found: Tensor, path: Path) -> None:
        image_id = self.settings.image_ids.get(path.name, int(path.stem) if path.stem.isdigit() else path.stem)
        boxes = xyxy2xywh(found[:, :4])
        boxes[:, :2] -= boxes[:, 2:] / 2
        for row, box in zip(found.tolist(), boxes.tolist(), strict=True):
            self.json_rows.append({"image_id": image_id, "category_id": int(row[5]),
                                   "bbox": [round(v, 3) for v in box], "score": round(row[4], 5)})  # fmt: skip

    def results(self, losses: tuple[float, float, float], speed: dict[str, float]) -> Results:
        """The figures of all images added."""
        nothing = (np.zeros((0, len(IOU_THRESHOLDS))), np.zeros(0), np.zeros(0), np.zeros(0))
        tp, conf, pred_cls, true_cls = (np.concatenate(c) for c in zip(nothing, *self.stats, strict=True))
        _, _, p, r, _, ap, classes, curves = ap_per_class(tp, conf, pred_cls, true_cls)
        objects = np.bincount(true_cls.astype(int), minlength=len(self.names))
        return Results(p, r, ap, classes, curves, self.images, self.images_per_class, objects, losses, speed)


@torch.inference_mode()
def evaluate(
    forward: Forward, loader: DataLoader, names: Mapping[int, str], device: torch.device, settings: Settings,
    compute_loss: Callable | None = None,
) -> Results:  # fmt: skip
    """Run a detector over a loader and score it; the one evaluation loop of the project."""
    scorer = Scorer(names, settings)
    losses, seconds = torch.zeros(3, device=device), np.zeros(3)
    for number, (images, targets, paths, shapes) in enumerate(progress(loader, desc=HEADER)):
        start = time.perf_counter()
        images, targets = images.to(device, non_blocking=True), targets.to(device)
        uploaded = time.perf_counter()
        decoded, raw = forward(images)
        if compute_loss:
            losses += compute_loss(raw, targets)[1]
        decoded = decoded.float()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        predicted = time.perf_counter()
        detections = non_max_suppression(decoded, settings.conf_thres, settings.iou_thres, multi_label=True,
                                         agnostic=settings.single_cls, max_det=settings.max_det)  # fmt: skip
        seconds += np.diff([start, uploaded, predicted, time.perf_counter()])
        on_cpu = targets.cpu()
        for k, found in enumerate(detections):
            scorer.add_image(found, on_cpu[on_cpu[:, 0] == k, 1:], images.shape[2:], paths[k], shapes[k])
        if settings.plots and number < PICTURED_BATCHES:
            _picture_batch(number, images, on_cpu, detections, paths, names, settings.folder)
    milliseconds = seconds / max(scorer.images, 1) * 1e3
    speed = dict(zip(("pre-process", "inference", "NMS"), milliseconds.tolist(), strict=True))
    results = scorer.results(tuple((losses / max(len(loader), 1)).tolist()), speed)
    _write_outputs(scorer, results, names, settings)
    return results


def _picture_batch(
    number: int, images: Tensor, targets: Tensor, detections: list[Tensor], paths: tuple[str, ...],
    names: Mapping[int, str], folder: Path,
) -> None:  # fmt: skip
    rows = []
    for k, d in enumerate(detections):
        d = d.cpu()
        rows.append(torch.cat((torch.full((len(d), 1), float(k)), d[:, 5:6], xyxy2xywh(d[:, :4]), d[:, 4:5]), 1))
    write_image(folder / f"val_batch{number}_labels.jpg", draw_batch(images, targets.numpy(), paths, names))
    write_image(folder / f"val_batch{number}_pred.jpg", draw_batch(images, torch.cat(rows).numpy(), paths, names))


def _write_outputs(scorer: Scorer, results: Results, names: Mapping[int, str], settings: Settings) -> None:
    if settings.plots:
        plot_confusion(scorer.confusion.matrix, names, settings.folder / "confusion_matrix.png")
        plot_curves(results.curves, results.ap, results.classes, names, settings.folder)
    if settings.save_json:
        with atomic_write(settings.folder / "predictions.json", "w") as f:
            json.dump(scorer.json_rows, f)


def results_table(results: Results, names: Mapping[int, str], per_class: bool = False) -> str:
    """The figures as text, in YOLOv5's columns: all classes, then each class if asked."""
    line = "%22s" + "%11i" * 2 + "%11.3g" * 4
    rows = [HEADER, line % ("all", results.images, results.objects.sum(), *results.summary)]
    if per_class:
        for i, c in enumerate(results.classes):
            figures = (results.p[i], results.r[i], results.ap[i, 0], results.ap[i].mean())
            rows.append(line % (names[int(c)][:22], results.images_per_class[c], results.objects[c], *figures))
    return "\n".join(rows)


def annotation_ids(data: DataConfig, task: str) -> dict[str, int]:
    """File name -> image id from the COCO files that voc2yolo.py writes beside the images, where they are."""
    ids: dict[str, int] = {}
    for source in getattr(data, task):
        file = data.path / "annotations" / f"instances_{source.name}.json"
        if file.is_file():
            ids.update({im["file_name"]: im["id"] for im in json.loads(file.read_text(encoding="utf-8"))["images"]})
    if len(set(ids.values())) < len(ids):
        LOGGER.warning("--save-json: image ids repeat over the parts of this split; file names take their place")
        return {}
    return ids


def run(
    data: str = "shapes.yaml",
    weights: str = "",
    batch_size: int = 32,
    imgsz: int | None = None,
    conf_thres: float = 0.001,
    iou_thres: float = 0.6,
    max_det: int = 300,
    task: str = "val",
    device: str = "",
    workers: int = 8,
    single_cls: bool = False,
    augment: bool = False,
    verbose: bool = False,
    save_txt: bool = False,
    save_conf: bool = False,
    save_json: bool = False,
    half: bool = False,
    project: str = str(ROOT / "runs/val"),
    name: str = "exp",
    exist_ok: bool = False,
    noplots: bool = False,
) -> Results:
    """Evaluate weights on a split of a data set. Raises UserError for bad input."""
    if not 0 <= conf_thres <= 1 or not 0 <= iou_thres <= 1:
        raise UserError(f"--conf-thres {conf_thres} and --iou-thres {iou_thres} must lie between 0 and 1")
    if batch_size < 1 or max_det < 1 or workers < 0:
        raise UserError("--batch-size and --max-det must be 1 or more, --workers 0 or more")
    file = Path(weights) if weights else newest("train/*/weights/best.pt")
    if file is None:
        raise UserError("no --weights given and no trained model in runs/train; run train.py first")
    config = load_data(data)
    prepare_shapes(config.yaml_file)
    where = select_device(device)
    runtime = load_runtime(file, where, half)
    check_classes(runtime, config, file, single_cls)
    size = check_img_size(imgsz or runtime.imgsz, runtime.stride)
    if size[0] != size[1]:
        raise UserError("--imgsz: val.py takes one size")
    LOGGER.info(f"val: {file} on {config.yaml_file} ({task}), {size[0]} px; {describe_device(where)}")
    dataset = DetectionDataset(load_labels(config.existing(task), config.nc, f"{task}: "), size[0], batch_size,
                               rect=True, pad=0.5, stride=runtime.stride, single_cls=single_cls)  # fmt: skip
    folder = increment_path(Path(project) / name, exist_ok)
    if save_txt:
        (folder / "labels").mkdir(exist_ok=True)
    settings = Settings(conf_thres, iou_thres, max_det, single_cls, folder, not noplots, save_txt, save_conf, save_json,
                        annotation_ids(config, task) if save_json else {})  # fmt: skip
    names = {0: "object"} if single_cls else runtime.names
    warm_up(runtime, *size)
    results = evaluate(lambda images: (runtime.predict(images, augment), None),
                       create_loader(dataset, batch_size, workers, shuffle=False), names, where, settings)  # fmt: skip
    LOGGER.info(results_table(results, names, verbose or len(names) <= 30))
    speed = ", ".join(f"{v:.1f} ms {k}" for k, v in results.speed.items())
    LOGGER.info(f"speed per image at {size[0]} px: {speed}\nresults in {folder}")
    return results


def check_classes(runtime: Runtime, data: DataConfig, weights: Path, single_cls: bool) -> None:
    """Raise UserError if a model and a data set disagree on the number of classes; warn if on names."""
    if single_cls:
        return
    if len(runtime.names) != data.nc:
        raise UserError(f"{weights} knows {len(runtime.names)} classes, {data.yaml_file} lists {data.nc}: give the "
                        "--data it was trained on")  # fmt: skip
    if list(runtime.names.values()) != list(data.names.values()):
        LOGGER.warning(f"the class names of {weights} and {data.yaml_file} differ: {list(runtime.names.values())[:5]} "
                       f"and {list(data.names.values())[:5]}")  # fmt: skip


def parse_opt() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate a detector")
    add = parser.add_argument
    add("--data", default="shapes.yaml", help="data yaml, also looked for in data/")
    add("--weights", default="", help="checkpoint; the newest run's best.pt if left out")
    add("--batch-size", type=int, default=32)
    add("--imgsz", "--img", "--img-size", type=int, default=None, help="pixels; as trained if left out")
    add("--conf-thres", type=float, default=0.001, help="confidence below which boxes are dropped")
    add("--iou-thres", type=float, default=0.6, help="overlap above which NMS drops a box")
    add("--max-det", type=int, default=300, help="detections per image at most")
    add("--task", default="val", choices=("train", "val", "test"), help="which split")
    add("--device", default="", help="cpu, mps, or a GPU's number")
    add("--workers", type=int, default=8, help="loader processes at most")
    add("--single-cls", action="store_true", help="treat all classes as one")
    add("--augment", action="store_true", help="test-time augmentation")
    add("--verbose", action="store_true", help="a row per class also for more than 30 classes")
    add("--save-txt", action="store_true", help="write labels/*.txt")
    add("--save-conf", action="store_true", help="with confidences in them")
    add("--save-json", action="store_true", help="write predictions.json in COCO's format")
    add("--half", action="store_true", help="half precision, on a GPU")
    add("--project", default=str(ROOT / "runs/val"), help="results go to project/name")
    add("--name", default="exp")
    add("--exist-ok", action="store_true", help="use project/name even if it exists")
    add("--noplots", action="store_true", help="draw no pictures")
    return parser.parse_args()


def main(opt: argparse.Namespace) -> None:
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, parse_opt())
