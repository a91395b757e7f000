"""Evaluate a trained detector on a dataset.

    python val.py --weights runs/train/exp/weights/best.pt --data VOC.yaml
    python val.py                                             # the newest run's best.pt on the default dataset
    python val.py --data VOC.yaml --protocol voc07            # PASCAL VOC's own AP
    python val.py --task study --weights a.pt b.pt            # accuracy and speed over image sizes
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from utils.settings.flags import Parser, options_from, read_first
from utils.settings.options import AMP_CHOICES, PROTOCOLS, SPLITS, TASKS, ValOptions


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, ValOptions)
    data, model, output, speed, more = map(parser.group, ("data", "model", "output", "speed", "more"))
    data("--data", metavar="YAML", help="dataset yaml, also looked for in data/")
    data("--task", choices=TASKS, help="the split to evaluate; speed: time all weights; study: accuracy and speed of "
         "all weights at all sizes, as text and plot")  # fmt: skip
    data("--imgsz", "--img", "--img-size", type=int, nargs="+", metavar="PX", shown="as trained; study: 256 to 1536",
         help="image size in pixels; several for --task study")
    data("--single-cls", action="store_true", help="treat all classes as one")
    model("--weights", nargs="+", metavar="PT", shown="best.pt of the newest run",
          help="checkpoint or exported model; several for --task speed and study")  # fmt: skip
    model("--conf-thres", type=float, metavar="X", shown=f"{ValOptions.conf_thres}; --task speed: 0.25",
          help="drop detections with a lower confidence")  # fmt: skip
    model("--iou-thres", type=float, metavar="X", shown=f"{ValOptions.iou_thres}; --task speed: 0.45",
          help="IoU threshold of NMS")  # fmt: skip
    model("--max-det", type=int, metavar="N", help="maximum number of detections per image")
    model("--augment", action="store_true", help="test-time augmentation")
    parser.add_output("runs/val")
    output("--save-txt", action="store_true", help="write the detections to labels/*.txt")
    output("--save-conf", action="store_true", help="include confidences in labels/*.txt")
    output("--save-hybrid", action="store_true",
           help="write the labels together with the detections of confidence 0.25 and more")  # fmt: skip
    output("--save-json", action="store_true", help="write predictions.json in COCO's format")
    output("--verbose", action="store_true", help="print a row for each class even if there are more than 30")
    output("--noplots", action="store_true", help="draw no plots")
    parser.add_device()
    speed("--batch-size", type=int, metavar="N", help="images per batch")
    speed("--workers", type=int, metavar="N", help="maximum number of worker processes that load images")
    speed("--half", action="store_true", help="float16, on a GPU")
    speed("--amp", choices=AMP_CHOICES, help="number format of the network; off is float32")
    more("--protocol", choices=list(PROTOCOLS),
         help=f"{'; '.join(f'{name}: {text}' for name, text in PROTOCOLS.items())}. All but yolov5 ignore difficult "
         "objects")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from models.inference.runtime import AnyRuntime, input_size, load_runtime, warm_up, weights_file
from utils.boxes import xyxy2xywh
from utils.data.dataset import Batch, DetectionDataset
from utils.data.images import write_image
from utils.data.labels import LabelIndex, index_split
from utils.data.loader import batches_of, create_loader
from utils.draw.boxes import draw_batch
from utils.draw.mistakes import mistakes_picture
from utils.draw.plots import plot_confusion, plot_curves, plot_study
from utils.errors import UserError
from utils.evaluation.coco import Annotated, require_package, usable_annotations
from utils.evaluation.hybrid import nms_with_labels
from utils.evaluation.nms import non_max_suppression
from utils.evaluation.scoring import (
    HEADER,
    ImageRecord,
    Part,
    Results,
    Scorer,
    Settings,
    confusion_of,
    json_rows,
    merge,
    record_of,
    results_of,
    results_table,
    speed_line,
)
from utils.files import atomic_write, distinct, increment_path
from utils.settings.dataset import DataConfig, load_data, warn_of_names
from utils.system.background import calls_at_a_time, share_of, side_by_side
from utils.system.console import LOGGER, progress, run_script
from utils.system.device import describe_device, select_device
from utils.voc.default_set import prepare_shapes

# uint8 images -> decoded boxes, and the raw feature maps if a loss is computed
Forward = Callable[[Tensor], tuple[Tensor, list[Tensor] | None]]
Gather = Callable[[Any], list[Any]]
PICTURED_BATCHES = 3
PIECE = 8  # images per forward pass on a CPU
STUDY_SIZES = tuple(range(256, 1537, 128))


def only_this_process(part: Any) -> list[Any]:
    """Return the Parts of all processes if there is only this one."""
    return [part]


def evaluate(
    forward: Forward, loader: DataLoader, names: Mapping[int, str], device: torch.device, settings: Settings,
    compute_loss: Callable | None = None, gather: Gather = only_this_process,
) -> Results:  # fmt: skip
    """Evaluate a detector on a data loader and write the files that `settings` selects; arguments as for `collect`."""
    part = collect(forward, loader, names, device, settings, compute_loss, gather)
    results = results_of(part, names, settings)
    if settings.writes:
        _write_outputs(part, results, names, settings)
    return results


class Seen(NamedTuple):
    """An evaluated batch: images on the device, the rest on the CPU; detections and records per image."""

    images: Tensor
    targets: Tensor
    shapes: tuple
    detections: list[Tensor]
    records: list[ImageRecord]
    loss: Tensor | None
    seconds: np.ndarray


def collect(
    forward: Forward, loader: DataLoader, names: Mapping[int, str], device: torch.device, settings: Settings,
    compute_loss: Callable | None = None, gather: Gather = only_this_process,
) -> Part:  # fmt: skip
    """Run a detector on a data loader and record the detections of each image; the project's only evaluation loop.

    On a CPU a few batches run in parallel, so `forward` and `compute_loss` must be thread-safe. With several processes,
    each has a loader for its share of the images; `gather` then takes the Part of this process and returns, on every
    process, the list of all Parts (like torch.distributed.all_gather_object), so all processes return the same.
    compute_loss(raw, targets)[1]: the three components of a batch's loss.
    """
    stop, threads = threading.Event(), torch.get_num_threads()

    @torch.inference_mode()
    def look(batch: Batch) -> Seen:
        images, targets, paths, shapes = batch
        start = time.perf_counter()
        images = images.to(device, non_blocking=True)
        uploaded = time.perf_counter()
        decoded, raw = in_pieces(forward, images, stop) if device.type == "cpu" else forward(images)
        loss = compute_loss(raw, targets)[1] if compute_loss else None
        decoded = decoded.float()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        predicted = time.perf_counter()
        detections = [found.cpu() for found in detect_boxes(decoded, targets, images.shape[2:], settings)]
        seconds = np.diff([start, uploaded, predicted, time.perf_counter()]) * share_of(threads)
        records = [record_of(images.shape[2:], found, targets[targets[:, 0] == k, 1:], paths[k], shapes[k],
                             settings.single_cls) for k, found in enumerate(detections)]  # fmt: skip
        return Seen(images, targets, shapes, detections, records, loss, seconds)

    scorer, seconds = Scorer(names, settings), np.zeros(3)
    losses: list[tuple[str, Tensor]] = []
    with closing(side_by_side(look, batches_of(loader), calls_at_a_time(device), len(loader), stop)) as batches:
        for number, seen in enumerate(progress(batches, desc=HEADER, total=len(loader))):
            images, targets, shapes, detections, records, loss, spent = seen
            seconds += spent
            if loss is not None:
                losses.append((records[0].path, loss))
            for k, (found, record) in enumerate(zip(detections, records, strict=True)):
                scorer.add_image(images[k], found, targets[targets[:, 0] == k, 1:], record, shapes[k])
            if settings.plots and settings.writes and number < PICTURED_BATCHES:
                paths = tuple(record.path for record in records)
                _picture_batch(number, images, targets, detections, paths, names, settings.folder)
    values = torch.stack([v for _, v in losses]).tolist() if losses else []
    by_batch = [(path, v) for (path, _), v in zip(losses, values, strict=True)]
    return merge(gather(Part(scorer.images, by_batch, seconds, scorer.mistakes.kept)))


def in_pieces(forward: Forward, images: Tensor, stop: threading.Event) -> tuple[Tensor, list[Tensor] | None]:
    """Run `forward` on a few images at a time: less memory, same speed. Raises CancelledError once `stop` is set."""
    pieces = []
    for piece in images.split(PIECE):
        if stop.is_set():
            raise CancelledError
        pieces.append(forward(piece))
    if len(pieces) == 1:
        return pieces[0]
    decoded, raw = zip(*pieces, strict=True)
    return torch.cat(decoded), None if raw[0] is None else [torch.cat(maps) for maps in zip(*raw, strict=True)]


def detect_boxes(decoded: Tensor, targets: Tensor, shape: Sequence[int], settings: Settings) -> list[Tensor]:
    """Return the detections of each image after NMS, (m, 6) in pixels of the network's input `shape` (h, w)."""
    conf, iou, most = settings.conf_thres, settings.iou_thres, settings.max_det
    if settings.save_hybrid:
        return nms_with_labels(decoded, targets, shape, conf, iou, most, agnostic=settings.single_cls)
    return non_max_suppression(decoded, conf, iou, multi_label=True, agnostic=settings.single_cls, max_det=most)


def _picture_batch(
    number: int, images: Tensor, targets: Tensor, detections: list[Tensor], paths: tuple[str, ...],
    names: Mapping[int, str], folder: Path,
) -> None:  # fmt: skip
    rows = []
    for k, d in enumerate(detections):
        rows.append(torch.cat((torch.full((len(d), 1), float(k)), d[:, 5:6], xyxy2xywh(d[:, :4]), d[:, 4:5]), 1))
    write_image(folder / f"val_batch{number}_labels.jpg", draw_batch(images, targets.numpy(), paths, names))
    write_image(folder / f"val_batch{number}_pred.jpg", draw_batch(images, torch.cat(rows).numpy(), paths, names))


def _write_outputs(part: Part, results: Results, names: Mapping[int, str], settings: Settings) -> None:
    if settings.plots:
        plot_confusion(confusion_of(part, len(names)), names, settings.folder / "confusion_matrix.png")
        plot_curves(results.curves, results.ap, results.classes, names, settings.folder)
        write_image(settings.folder / "errors.jpg", mistakes_picture(part.mistakes))
    if settings.save_json:
        with atomic_write(settings.folder / "predictions.json", "w") as f:
            json.dump(json_rows(part, settings), f)


@dataclass(frozen=True)
class Split:
    """The images of a split, their labels, and their annotations from COCO files."""

    config: DataConfig
    index: LabelIndex
    annotations: Mapping[str, Annotated]


def run(**kwargs: Any) -> Results | list[Results]:
    """Evaluate with options named like the flags, such as run(data="VOC.yaml", weights="best.pt").

    Returns the results on the split; for the tasks speed and study, a list with those of each weights file (and size).
    Raises UserError for bad input.
    """
    opt = options_from(ValOptions, kwargs, "val.run")
    if opt.protocol == "coco":
        require_package()
    files = [weights_file(file) for file in opt.files or [""]]
    config = load_data(opt.data)
    prepare_shapes(config.yaml_file)
    device = select_device(opt.device)
    runtimes = [load_checked(file, config, opt, device) for file in files]
    split = load_split(config, opt)
    if opt.task == "speed":
        return speed(files, runtimes, split, opt)
    folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok)
    if opt.task == "study":
        return study(files, runtimes, split, opt, folder)
    if opt.save_txt:
        (folder / "labels").mkdir(exist_ok=True)
    size, names = side_of(runtimes[0], opt.sizes[0] if opt.sizes else None), names_of(runtimes[0], opt)
    LOGGER.info(f"{opt.task}: {files[0]} on {config.yaml_file}, {size} px; {describe_device(device)}, "
                f"{runtimes[0].reason}")
    results = evaluate_at(size, runtimes[0], split, opt, folder)
    LOGGER.info(results_table(results, names, opt.verbose or len(names) <= 30))
    if opt.save_hybrid:
        LOGGER.warning("--save-hybrid: the detections include the labels, so the metrics above are meaningless")
    LOGGER.info(f"speed per image at {size} px: {speed_line(results)}\nresults in {folder}")
    return results


def speed(files: list[Path], runtimes: list[AnyRuntime], split: Split, opt: ValOptions) -> list[Results]:
    """Time each weights file with the default thresholds of detect.py."""
    opt, results = replace(opt, conf_thres=0.25, iou_thres=0.45, noplots=True), []
    where = describe_device(runtimes[0].device)
    LOGGER.info(f"speed on {split.config.yaml_file}, batches of {opt.batch_size}; {where}")
    for file, runtime in zip(files, runtimes, strict=True):
        size = side_of(runtime, opt.sizes[0] if opt.sizes else None)
        results.append(evaluate_at(size, runtime, split, opt, None))
        LOGGER.info(f"{file}: {speed_line(results[-1])} per image at {size} px")
    return results


def study(files: list[Path], runtimes: list[AnyRuntime], split: Split, opt: ValOptions, folder: Path) -> list[Results]:
    """Evaluate each weights file at each image size; write study_<data>_<weights>.txt and study.png to `folder`.

    Columns of the text: size in pixels, P, R, mAP50, mAP50-95, milliseconds per image of pre-process, inference, NMS.
    """
    opt, results, curves = replace(opt, noplots=True), [], {}
    for file, label, runtime in zip(files, labels_of(files), runtimes, strict=True):
        rows = []
        for size in opt.sizes or ([runtime.imgsz] if runtime.size else STUDY_SIZES):
            size = side_of(runtime, size)
            LOGGER.info(f"study: {file}, {size} px")
            results.append(evaluate_at(size, runtime, split, opt, folder))
            rows.append([size, *results[-1].summary, *results[-1].speed.values()])
            LOGGER.info("\n".join(results_table(results[-1], names_of(runtime, opt)).splitlines()[:2]))
            LOGGER.info(f"{speed_line(results[-1])} per image")
        with atomic_write(folder / f"study_{split.config.yaml_file.stem}_{label}.txt", "w") as f:
            f.writelines(" ".join([f"{row[0]:4d}", *(f"{v:10.4g}" for v in row[1:])]) + "\n" for row in rows)
        curves[label] = np.array(rows)
    plot_study(curves, folder / "study.png")
    LOGGER.info(f"results in {folder}")
    return results


def labels_of(files: list[Path]) -> list[str]:
    """Return a distinct label for each file: its stem or, if several share it, best_onnx, exp_best, exp_best_2, ..."""
    stems, names = [file.stem for file in files], [file.name for file in files]
    labels = []
    for f in files:
        alike = f"{f.resolve().parents[1].name}_{f.stem}" if names.count(f.name) > 1 else f.name.replace(".", "_")
        labels.append(f.stem if stems.count(f.stem) == 1 else alike)
    return distinct(labels)


def evaluate_at(size: int, runtime: AnyRuntime, split: Split, opt: ValOptions, folder: Path | None) -> Results:
    """Evaluate one model at one image size; files are written to `folder`."""
    return evaluate(*prepared(size, runtime, split, opt, folder))


def prepared(
    size: int, runtime: AnyRuntime, split: Split, opt: ValOptions, folder: Path | None
) -> tuple[Forward, DataLoader, Mapping[int, str], torch.device, Settings]:
    """Warm a model up for one image size and return the first five arguments of `evaluate` and `collect`."""
    dataset = DetectionDataset(split.index, size, opt.batch_size, rect=runtime.size is None, pad=0.5,
                               stride=runtime.stride, single_cls=opt.single_cls)  # fmt: skip
    pinned = runtime.device.type == "cuda"
    loader = create_loader(dataset, opt.batch_size, opt.workers, shuffle=False, pin_memory=pinned)
    shared = ("conf_thres", "iou_thres", "max_det", "single_cls", "save_txt", "save_conf", "save_json", "save_hybrid",
              "protocol")  # fmt: skip
    settings = Settings(**{name: getattr(opt, name) for name in shared}, folder=folder, plots=not opt.noplots,
                        annotations=split.annotations, files=split.index.files)  # fmt: skip
    warm_up(runtime, size, size)
    return (lambda images: (runtime.predict(images, opt.augment), None), loader, names_of(runtime, opt),
            runtime.device, settings)  # fmt: skip


def load_split(config: DataConfig, opt: ValOptions) -> Split:
    """Index the images of the task's split and read its COCO files. Raises UserError for bad ones.

    The yolov5 protocol does not need COCO files, so with it a bad one only gives a warning.
    """
    name = opt.task if opt.task in SPLITS else "val"
    index = index_split(config, name)
    annotations = usable_annotations(config, name, index, needed=opt.protocol != "yolov5")
    missing = sum(index.file(i) not in annotations for i in range(len(index)))
    if missing and opt.protocol != "yolov5":
        LOGGER.warning(f"--protocol {opt.protocol}: no difficult object is known in {missing} of {len(index)} images: "
                       f"{config.path / 'annotations'} has no COCO file with them, so none is ignored")  # fmt: skip
    return Split(config, index, annotations)


def side_of(runtime: AnyRuntime, imgsz: int | None) -> int:
    """Return the side of the square input: --imgsz, or as trained or exported. Raises UserError if it is not square."""
    height, width = input_size(runtime, imgsz)
    if height != width:
        raise UserError(f"this model was exported for {height}x{width} px, but val.py needs a square input; export it "
                        "with --dynamic or a single --imgsz")  # fmt: skip
    return height


def names_of(runtime: AnyRuntime, opt: ValOptions) -> dict[int, str]:
    """Return the class names by index."""
    return {0: "object"} if opt.single_cls else runtime.names


def load_checked(weights: Path, data: DataConfig, opt: ValOptions, device: torch.device) -> AnyRuntime:
    """Load a model. Raises UserError if its number of classes is not the dataset's; warns if the names differ."""
    runtime = load_runtime(weights, device, opt.half, opt.amp)
    if runtime.model is None:  # report its limits before any evaluation starts
        for size in opt.sizes or [None]:
            side_of(runtime, size)
        if opt.augment:
            raise UserError(f"--augment needs a checkpoint, but {weights} is an exported model")
    if not opt.single_cls:
        check_classes(weights, runtime.names, data)
    return runtime


def check_classes(weights: Path, names: Mapping[int, str], data: DataConfig) -> None:
    """Raise UserError if a model has another number of classes than the dataset; warn if the names differ."""
    if len(names) != data.nc:
        raise UserError(f"{weights} knows {len(names)} classes, but {data.yaml_file} lists {data.nc}: give the "
                        "--data it was trained on; my_tools/compare.py matches classes by name")  # fmt: skip
    warn_of_names(weights, names, data)


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
