"""Load the models of a comparison and measure their size, speed, accuracy and detections in single images."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.export.engines import kind_of
from models.export.exported import ExportedRuntime
from models.inference.hub import AutoShape
from models.inference.runtime import (
    DEFAULT_IMGSZ,
    AnyRuntime,
    Runtime,
    check_channels,
    check_img_size,
    weights_file,
)
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint, weights_size
from models.weights.transfer import with_classes
from models.yolo import DetectionModel, coarse_stride_warning
from utils.boxes import xywhn2xyxy
from utils.data.images import ImageError, read_image
from utils.data.label_rows import parse_labels
from utils.data.labels import label_path
from utils.data.sources import list_media
from utils.errors import UserError
from utils.evaluation.bootstrap import LEAST_IMAGES, Interval, by_class, interval_of, resample
from utils.evaluation.scoring import results_of
from utils.files import IMAGE_SUFFIXES, distinct, size_of
from utils.report.comparison import Difference, Entry, PictureRow, TrainingRecord
from utils.report.pictures import draw_verdict, encode
from utils.settings.config import is_whole, load_model_cfg
from utils.settings.dataset import DataConfig
from utils.settings.options import ValOptions
from utils.system.console import LOGGER, progress
from utils.system.opencv import cv2
from utils.system.profiling import REST, count_gflops, time_in_turns
from val import Split, collect, prepared, side_of

BATCHES = (1, 32)  # batch sizes for latency
METRICS = ("mAP50", "mAP50-95")
MOST_PICTURES = 40  # of --source; the report has each one once per model


@dataclass
class Candidate:
    """A model to compare, with its results so far."""

    entry: Entry
    runtime: AnyRuntime
    trained: bool

    @property
    def label(self) -> str:
        """The model's name in the comparison."""
        return self.entry.label


def speakable(path: object) -> str:
    """Return a path as valid text: bytes that are not UTF-8 are escaped."""
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")


def labels_for(files: Sequence[Path], cfgs: Sequence[str]) -> list[str]:
    """Return unique names of the models: the run's name for its best.pt, otherwise the file's name.

    Exported models in a run get the run's name and the file's name.
    """
    names = []
    for file in files:
        runs = file.resolve().parents
        if kind_of(file):
            names.append(f"{runs[1].name} {file.name}" if runs[0].name == "weights" else file.name)
            continue
        in_run = file.stem in ("best", "last") and len(runs) > 1
        run = runs[1 if runs[0].name == "weights" else 0].name if in_run else ""
        names.append((run if file.stem == "best" else f"{run} {file.stem}") if in_run else file.stem)
    return distinct([speakable(name) for name in (*names, *(Path(cfg).stem for cfg in cfgs))])


def load_candidates(
    weights: Sequence[str], cfgs: Sequence[str], labels: Sequence[str], data: DataConfig | None, imgsz: int | None,
    device: torch.device, half: bool,
) -> list[Candidate]:  # fmt: skip
    """Load checkpoints, exported models and untrained model yaml files. Raises UserError for what cannot be compared.

    labels: names of weights, then of cfgs; if empty, names are made from the files. data: the dataset for evaluation.
    imgsz: pixels; None for the size that each model was trained at.
    """
    files = [weights_file(w) for w in weights]
    names = list(labels) or labels_for(files, cfgs)
    if len(names) != len(files) + len(cfgs):
        raise UserError(f"--labels: {len(names)} labels for {len(files) + len(cfgs)} models; give one for each")
    if len(set(names)) < len(names):
        raise UserError("--labels: two labels are the same")
    candidates = []
    for label, file in zip(names, files, strict=False):
        if kind_of(file):
            candidates.append(_exported(label, file, data, imgsz, device, half))
            continue
        content = load_checkpoint(file)
        model = (with_classes(content, file, data.names, data.yaml_file.name) if data
                 else model_from_checkpoint(content, file))  # fmt: skip
        size = imgsz or content.get("imgsz") or DEFAULT_IMGSZ
        candidates.append(_candidate(label, str(file), model, size, device, half, training_record(file, content)))
        if (own := len(content["names"])) != len(model.names):
            candidates[-1].entry.remark = f"only the {len(model.names)} classes of this dataset, of its {own}"
    for label, cfg in zip(names[len(files) :], cfgs, strict=True):
        # the same number of classes for all heads, so that model sizes can be compared
        nc = data.nc if data else len(candidates[0].runtime.names) if candidates else None
        model = DetectionModel(cfg, nc=nc)
        if data:
            model.names = dict(data.names)
        candidates.append(_candidate(label, cfg, model, imgsz or DEFAULT_IMGSZ, device, half, None, trained=False))
        if nc and (own := load_model_cfg(cfg)["nc"]) != nc:
            candidates[-1].entry.remark = f"built with {nc} classes, like the others; its yaml has {own}"
    return candidates


def _exported(
    label: str, file: Path, data: DataConfig | None, imgsz: int | None, device: torch.device, half: bool
) -> Candidate:
    runtime = ExportedRuntime(file, device, half)
    if data and list(runtime.names.values()) != list(data.names.values()):
        raise UserError(f"{file} has other classes, or in another order, than {data.yaml_file}: give its checkpoint, "
                        "whose classes are matched by name, or give the --data it was trained on")  # fmt: skip
    entry = Entry(label, speakable(file), "", None, size_of(file), None, side_of(runtime, imgsz), ())
    entry.remark = runtime.reason + "; pads images to the full size, the others only to the stride" * bool(runtime.size)
    entry.remark += "; NMS is part of its graph and its time, with one class per box" * bool(runtime.facts.nms)
    return Candidate(entry, runtime, trained=True)


def _candidate(
    label: str, source: str, model: DetectionModel, imgsz: int, device: torch.device, half: bool,
    training: TrainingRecord | None, trained: bool = True,
) -> Candidate:  # fmt: skip
    size = check_img_size(imgsz, int(model.stride.max()))[0]
    cfg = str(model.yaml.get("yaml_file") or "")
    entry = Entry(label, speakable(source), cfg, sum(p.numel() for p in model.parameters()), weights_size(model, size),
                  count_gflops(model, size), size, tuple(int(s) for s in model.stride), training=training)  # fmt: skip
    if warning := coarse_stride_warning(model):
        LOGGER.warning(f"{label}: {warning}")
    check_channels(model.yaml, source)
    return Candidate(entry, Runtime(model.eval(), device, half, size), trained)


def training_record(weights: Path, content: Mapping[str, Any]) -> TrainingRecord | None:
    """Read the record of a training from a checkpoint and its run's folder; None if there is no record.

    content: of the checkpoint. For an epoch's file (epoch3.pt) the record ends with that epoch; for best.pt and last.pt
    it covers the whole run.
    """
    done = content.get("epoch")
    if not is_whole(done) or not content.get("options"):
        return None
    facts = {"options": content["options"], "hyp": content.get("hyp", {})}
    file = weights.resolve().parents[1] / "results.csv"
    if weights.resolve().parent.name != "weights" or not file.is_file():
        return TrainingRecord(done + 1, **facts)
    try:
        with open(file, encoding="utf-8", newline="") as f:
            rows = list(csv.reader(f))
        header, values = [name.strip() for name in rows[0]], np.array([[float(v) for v in row] for row in rows[1:]])
        curves = {name: values[:, k] for k, name in enumerate(header)}
    except (OSError, ValueError, IndexError) as e:
        LOGGER.warning(f"{file} cannot be read ({e}): {weights} is shown without its training time and curves")
        return TrainingRecord(done + 1, **facts)
    if weights.stem not in ("best", "last"):
        curves = {name: column[: done + 1] for name, column in curves.items()}
    seconds = sum(float(curves[k].sum()) for k in ("time/data", "time/step", "time/val") if k in curves)
    return TrainingRecord(len(next(iter(curves.values()))), seconds, curves, **facts)


def measure_latency(candidates: Sequence[Candidate], budget: float) -> None:
    """Measure the seconds of forward passes on noise at each of BATCHES, with all models taking turns.

    budget: seconds per batch size after which no new round starts; 0 disables timing. Batch sizes that do not fit into
    memory are skipped.
    """
    if not budget:
        return
    generator = torch.Generator().manual_seed(0)

    def rounds_shown(rounds: range, batch: int) -> Iterator[int]:
        bar = progress(rounds, desc=f"timing in turns, batch {batch}")
        try:
            yield from bar
        finally:
            bar.total = bar.n  # shown as complete if the time is up before all rounds
            bar.close()

    for batch in BATCHES:
        images = [torch.randint(0, 256, (batch, 3, c.entry.imgsz, c.entry.imgsz), dtype=torch.uint8,
                                generator=generator) for c in candidates]  # fmt: skip
        calls = [lambda c=c, x=x: c.runtime.predict(x) for c, x in zip(candidates, images, strict=True)]
        try:
            times = time_in_turns(calls, rounds=200, budget=budget, each=partial(rounds_shown, batch=batch), rest=REST)
        except (RuntimeError, MemoryError) as e:
            if isinstance(e, RuntimeError) and "memory" not in str(e):
                raise
            LOGGER.warning(f"batch {batch} does not fit into memory: it is not timed")
            continue
        for c, seconds in zip(candidates, times.T, strict=True):
            c.entry.latency = {**c.entry.latency, batch: seconds}
        LOGGER.info(f"{len(times)} rounds: " + ", ".join(
            f"{c.label} {np.median(t) * 1e3 / batch:.1f} ms" for c, t in zip(candidates, times.T, strict=True)))


def measure_accuracy(candidates: Sequence[Candidate], split: Split, opt: ValOptions) -> None:
    """Evaluate the trained models on a split as val.py does, and keep each image's detections."""
    for c in candidates:
        if c.trained:
            LOGGER.info(f"\n{c.label}: {c.entry.imgsz} px")
            arguments = prepared(c.entry.imgsz, c.runtime, split, opt, None)
            part = collect(*arguments)
            c.entry.results, c.entry.records = results_of(part, c.runtime.names, arguments[-1]), part.images


def add_intervals(entries: Sequence[Entry], draws: int, seed: int = 0) -> list[Difference]:
    """Compute bootstrap intervals of mAP50 and mAP50-95 for each model and each pair of models; returns the pairs.

    With fewer than LEAST_IMAGES images, none are computed.
    """
    scored = [k for k, e in enumerate(entries) if e.records is not None]
    if not scored or not draws or len(entries[scored[0]].records) < LEAST_IMAGES:
        return []
    models = []
    for k in scored:
        records = entries[k].records
        models.append(by_class([r.correct for r in records], [r.found[:, 4] for r in records],
                               [r.found[:, 5] for r in records], [r.true[:, 0] for r in records]))  # fmt: skip
    figures = resample(models, draws, seed, each=lambda numbers: progress(numbers, desc="intervals"))
    for i, k in enumerate(scored):
        entries[k].map50, entries[k].map = (interval_of(figures[:, i, m]) for m in range(2))
    differences = []
    for i, first in enumerate(scored):
        for j, second in enumerate(scored):
            if i < j:
                for m, metric in enumerate(METRICS):
                    spread: Interval = interval_of(figures[:, i, m] - figures[:, j, m])
                    differences.append(Difference(first, second, metric, spread))
    return differences


def pictures_of_split(candidates: Sequence[Candidate], count: int, conf: float) -> list[PictureRow]:
    """Draw images of the evaluated split with each trained model's detections.

    Half of the images are evenly spaced over the dataset, the others are those on which the models differ most.
    """
    shown = [c for c in candidates if c.entry.records]
    if not shown or not count:
        return []
    records = [c.entry.records for c in shown]
    total, even = len(records[0]), (count + 1) // 2
    scores = np.array([[score_of(r.found, r.correct, len(r.true), conf) for r in rows] for rows in records])
    spread = np.ptp(scores, 0)
    differing = [int(i) for i in np.argsort(-spread, kind="stable")[: count - even] if spread[i] > 0]
    chosen = {i: "the models differ most here" for i in differing}
    for i in np.linspace(0, total - 1, min(count - len(differing), total)).round():
        chosen.setdefault(int(i), "evenly chosen")
    chosen = dict(sorted(chosen.items(), key=lambda item: (item[1], item[0])))
    rows = []
    for i, reason in chosen.items():
        path = Path(records[0][i].path)
        try:
            image = read_image(path)
        except ImageError as e:
            LOGGER.warning(f"{path}: {e}; left out of the images")
            continue
        tiles = [encode(draw_verdict(image, r[i].found, r[i].true, c.runtime.names, conf, c.label))
                 for c, r in zip(shown, records, strict=True)]  # fmt: skip
        rows.append(PictureRow(f"{path.name} ({reason})", tiles))
    return rows


def score_of(found: np.ndarray, correct: np.ndarray, labels: int, conf: float) -> float:
    """Return the F1 score of an image at IoU 0.5 and confidence `conf`; 1 without any labels and detections."""
    sure = found[:, 4] >= conf
    hits, total = int(correct[sure, 0].sum()), int(sure.sum()) + labels
    return 2 * hits / total if total else 1.0


def list_pictures(source: str) -> list[str]:
    """Return the image files of `--source`, at most MOST_PICTURES. Raises UserError if there are none."""
    files = [f for f in list_media(source) if Path(f).suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UserError(f"--source {source}: no images found; videos are not compared")
    if len(files) > MOST_PICTURES:
        LOGGER.warning(f"--source {source}: only the first {MOST_PICTURES} of {len(files)} images are shown")
    return files[:MOST_PICTURES]


def pictures_of_source(candidates: Sequence[Candidate], source: str, conf: float, iou: float) -> list[PictureRow]:
    """Draw the images of `--source` with each trained model's detections, marked right or wrong if there are labels.

    Raises UserError if none of the images can be read.
    """
    shown, files = [c for c in candidates if c.trained], list_pictures(source)
    rows = []
    for file in progress(files, desc="images"):
        try:
            image = read_image(file)
        except ImageError as e:
            LOGGER.warning(f"{file}: {e}; skipped")
            continue
        true = labels_beside(Path(file), image.shape[:2], len(shown[0].runtime.names))
        tiles = []
        for c in shown:
            detector = AutoShape(c.runtime, c.entry.imgsz)
            detector.conf, detector.iou = conf, iou
            found = detector(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).xyxy[0].cpu().numpy()
            tiles.append(encode(draw_verdict(image, found, true, c.runtime.names, conf, c.label)))
        rows.append(PictureRow(Path(file).name, tiles))
    if not rows:
        raise UserError(f"--source {source}: none of its images can be read")
    return rows


def labels_beside(image: Path, shape: tuple[int, int], nc: int) -> np.ndarray | None:
    """Return an image's labels, (k, 5) class, corners in pixels; None if it has no readable label file."""
    file = label_path(image)
    if file == image or not file.is_file():
        return None
    try:
        labels = parse_labels(file.read_text(encoding="utf-8-sig"), nc)
    except (OSError, ValueError) as e:
        LOGGER.warning(f"{file}: {e}; {image.name} is shown without labels")
        return None
    labels[:, 1:] = xywhn2xyxy(labels[:, 1:], shape[1], shape[0])
    return labels
