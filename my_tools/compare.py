"""Compare detectors in a report for any browser: one table, intervals, charts, and images side by side.

    python my_tools/compare.py --weights runs/train/exp runs/train/exp2 --data VOC.yaml
    python my_tools/compare.py --weights a.pt b.pt --data VOC.yaml --source my_pictures --name mine
    python my_tools/compare.py --cfg yolov5_shufflenet.yaml yolov5n.yaml --imgsz 640    # untrained: size and speed
    python my_tools/compare.py --reproduce voc                # the article's experiment: train, then compare

Writes report.html (one file), report.md and table.csv to runs/compare/<name>.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, did_you_mean
from utils.files import ROOT
from utils.settings.flags import Parser, read_first
from utils.settings.options import AMP_CHOICES, OPTIMIZERS, SPLITS
from utils.settings.values import converted_flags, hints_of


@dataclass
class Options:
    """The flags of compare.py, with their names in code. Raises UserError for invalid values.

    conf_thres, iou_thres: for the images shown. draws: of the bootstrap. seconds: of timing, per batch size.
    """

    weights: Sequence[str] = ()
    cfg: Sequence[str] = ()
    labels: Sequence[str] = ()
    data: str | None = None
    source: str = ""
    imgsz: int | None = None
    batch_size: int | None = None
    task: str = "val"
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    pictures: int = 8
    draws: int = 1000
    seconds: float = 60.0
    device: str = ""
    workers: int | None = None
    half: bool = False
    reproduce: str = ""
    models: Sequence[str] = ()
    epochs: int | None = None
    hyp: str | None = None
    optimizer: str | None = None
    seed: int | None = None
    amp: str | None = None
    cache: str | None = None
    project: str = str(ROOT / "runs/compare")
    name: str = ""
    exist_ok: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "cfg", "labels", "models"):
            value = getattr(self, name)
            setattr(self, name, [str(value)] if isinstance(value, (str, Path)) else [str(v) for v in value])
        if self.task not in SPLITS:
            raise UserError(f"--task {self.task}{did_you_mean(self.task, SPLITS)}: one of {', '.join(SPLITS)}")
        if self.reproduce and self.reproduce not in EXPERIMENTS:
            raise UserError(f"--reproduce {self.reproduce}: one of {', '.join(EXPERIMENTS)}")
        if self.reproduce and (self.weights or self.cfg):
            raise UserError("--reproduce trains its own models: leave out --weights and --cfg (--models gives others)")
        if not self.reproduce:
            names = ("models", "epochs", "hyp", "optimizer", "seed", "amp", "cache")
            if only := [k for k in names if getattr(self, k) not in (None, [])]:
                raise UserError(f"--{only[0]} only applies to the training of --reproduce: leave it out")
        if not (self.weights or self.cfg or self.reproduce):
            raise UserError("nothing to compare: give --weights (files or run folders), --cfg or --reproduce voc")
        if self.source and not (self.weights or self.reproduce):
            raise UserError("--source needs trained models to run on its images: give --weights")
        if 0 < self.draws < LEAST_DRAWS:
            raise UserError(f"--draws {self.draws} are too few for an interval: {LEAST_DRAWS} or more, or 0 for none")
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1:
            raise UserError(f"--conf-thres {self.conf_thres} and --iou-thres {self.iou_thres} must lie between 0 and 1")
        for flag, value, least in (
            ("imgsz", self.imgsz, 1), ("batch-size", self.batch_size, 1), ("pictures", self.pictures, 0),
            ("draws", self.draws, 0), ("seconds", self.seconds, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise UserError(f"--{flag} is {value}, the least is {least}")


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, Options)
    data, model, output, speed, more = map(parser.group, ("data", "model", "output", "speed", "more"))
    data("--data", metavar="YAML", shown="shapes.yaml, or with --source none: images, size and time only",
         help="dataset yaml, also looked for in data/")  # fmt: skip
    data("--task", choices=("train", "val", "test"), help="the split to evaluate on")
    data("--source", shown="some of the split", help="images to show side by side: a file, folder or glob pattern")
    data("--imgsz", "--img", "--img-size", type=int, metavar="PX", shown="as each was trained",
         help="image size in pixels")  # fmt: skip
    model("--weights", nargs="+", metavar="PT", help="checkpoints, exported models, or folders of runs (their best.pt)")
    model("--cfg", nargs="+", metavar="YAML", help="untrained models, compared in everything but accuracy")
    model("--labels", nargs="+", metavar="NAME", shown="their file names",
          help="names of the models, those of --weights first")  # fmt: skip
    model("--conf-thres", type=float, metavar="X", help="smallest confidence of the boxes drawn")
    model("--iou-thres", type=float, metavar="X", help="IoU threshold of NMS on --source")
    parser.add_output("runs/compare", name="exp, or that of the experiment")
    output("--pictures", type=int, metavar="N", help="images of the split to show")
    parser.add_device()
    speed("--batch-size", type=int, metavar="N", shown="32; training: 16", help="images per batch")
    speed("--workers", type=int, metavar="N", shown="8", help="maximum number of worker processes that load images")
    speed("--half", action="store_true", help="float16, on a GPU")
    more("--draws", type=int, metavar="N", help="bootstrap samples for the intervals; 0: no intervals")
    more("--seconds", type=float, metavar="S", help="seconds of timing, for each of batch size 1 and 32")
    _add_training(parser)
    return parser.parse_args()


def _add_training(parser: Parser) -> None:
    """Add the flags of --reproduce. Their defaults are the article's or, with another --data, those of train.py."""
    optimisation = parser.group("optimisation")
    optimisation("--reproduce", nargs="?", const="voc", metavar="NAME", shown="off; without NAME: voc",
                 help="train the article's models one after another and compare them; run it again to continue")
    optimisation("--models", nargs="+", metavar="YAML", shown="the article's", help="--reproduce: models to train")
    optimisation("--epochs", type=int, metavar="N", shown="300", help="--reproduce: number of epochs")
    optimisation("--hyp", metavar="YAML", shown="hyp.scratch-low.yaml", help="--reproduce: hyper-parameters")
    optimisation("--optimizer", metavar="NAME", shown="SGD", help=f"--reproduce: one of {', '.join(OPTIMIZERS)}")
    optimisation("--seed", type=int, shown="0", help="--reproduce: seed")
    optimisation("--amp", choices=AMP_CHOICES, shown="auto", help="--reproduce: number format of the forward pass")
    optimisation("--cache", nargs="?", const="ram", metavar="WHERE", shown="off; without WHERE: ram",
                 help="--reproduce: keep decoded images in ram or on disk")  # fmt: skip


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import numpy as np
import torch

from my_tools.comparing.models import (
    Candidate,
    add_intervals,
    list_pictures,
    load_candidates,
    measure_accuracy,
    measure_latency,
    pictures_of_source,
    pictures_of_split,
    speakable,
)
from my_tools.comparing.reproduce import EXPERIMENTS, train_all
from utils.evaluation.bootstrap import LEAST_DRAWS, LEAST_IMAGES
from utils.evaluation.scoring import protocol_line
from utils.files import increment_path
from utils.report.comparison import COLUMNS, Comparison, Entry, Reference, table, unlike
from utils.report.html import write_report
from utils.settings.dataset import DataConfig, load_data
from utils.settings.options import ValOptions
from utils.system.console import LOGGER, run_script, shown
from utils.system.device import describe_device, select_device
from utils.voc.default_set import prepare_shapes
from val import load_split

SEED = 0  # of the bootstrap
ALIKE = ("data", "epochs", "imgsz", "batch_size", "hyp", "optimizer", "seed", "amp", "weights", "backbone_weights")
# flags that --reproduce passes on to train.py
TRAINING = ("epochs", "imgsz", "hyp", "optimizer", "batch_size", "seed", "amp", "device", "workers", "cache")
NOTE = "The article's metrics, after 300 epochs on PASCAL VOC; its other conditions are not fully known."
# from the article on ShuffleNetV2 in YOLOv5, by the stem of the model yaml
PUBLISHED: Mapping[str, Reference] = MappingProxyType({
    "yolov5_shufflenet": Reference("article: yolov5_shufflenet", {"precision": 0.56, "recall": 0.54, "map50": 0.54,
                                   "map": 0.28, "size_mib": 2.0, "epochs": 300}, NOTE),
    "yolov5_stem_shufflenet": Reference("article: yolov5_stem_shufflenet", {"precision": 0.72, "recall": 0.56,
                                        "map50": 0.62, "map": 0.37, "size_mib": 6.7, "epochs": 300}, NOTE),
})  # fmt: skip


def run(**kwargs: Any) -> Path:
    """Compare with options named like the flags, such as run(weights=["a.pt", "b.pt"]); return report.html's path.

    Raises UserError for bad input.
    """
    given = converted_flags(kwargs, hints_of(Options), "compare.run")
    opt = Options(**given)
    if opt.source:
        list_pictures(opt.source)  # report a wrong path before the slow work
    if opt.reproduce:
        check_before_training(opt)
        folder = increment_path(Path(opt.project) / (opt.name or opt.reproduce), exist_ok=True)  # to continue it
        flags = {"data": opt.data, **{k: getattr(opt, k) for k in TRAINING}}
        opt.weights = [str(run) for run in train_all(opt.reproduce, opt.models, flags, folder)]
        opt.data = opt.data or EXPERIMENTS[opt.reproduce].data
        opt.imgsz = None  # each model at its training size
    data = load_data(opt.data or "shapes.yaml") if opt.data or opt.weights and not opt.source else None
    if data and opt.weights:
        prepare_shapes(data.yaml_file)
    device = select_device(opt.device)
    candidates = load_candidates(opt.weights, opt.cfg, opt.labels, data, opt.imgsz, device, opt.half)
    if not opt.reproduce:
        folder = increment_path(Path(opt.project) / (opt.name or "exp"), opt.exist_ok)
    try:
        comparison = compare(candidates, data, opt, device, command_of(given))
        report = write_report(comparison, folder)
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that is not empty is kept
            folder.rmdir()
        raise
    LOGGER.info(f"\n{text_table(comparison.entries)}\n")
    for note in comparison.notes:
        LOGGER.warning(note)
    LOGGER.info(f"report   {shown(report)}")
    return report


def check_before_training(opt: Options) -> None:
    """Raise UserError for errors that would otherwise be found only after all models are trained."""
    data = load_data(opt.data or EXPERIMENTS[opt.reproduce].data)
    if not getattr(data, opt.task):
        raise UserError(f"{data.yaml_file}: there is no '{opt.task}:' entry for --task {opt.task}")
    count = len(opt.models or EXPERIMENTS[opt.reproduce].models)
    if opt.labels and len(opt.labels) != count:
        raise UserError(f"--labels: {len(opt.labels)} for {count} models; give one per model")


def compare(
    candidates: Sequence[Candidate], data: DataConfig | None, opt: Options, device: torch.device, command: str
) -> Comparison:
    """Measure the models and collect the content of the report."""
    entries = [c.entry for c in candidates]
    trained = [c for c in candidates if c.trained]
    names = data.names if trained and data else {}
    result = Comparison(title_of(entries), entries, names, command=command)
    if opt.source:
        result.pictures = pictures_of_source(candidates, opt.source, opt.conf_thres, opt.iou_thres)
    split = None
    if trained and data:
        val_options = ValOptions(data=str(data.yaml_file), task=opt.task, noplots=True,
                                 batch_size=opt.batch_size or ValOptions.batch_size,
                                 workers=ValOptions.workers if opt.workers is None else opt.workers)  # fmt: skip
        split = load_split(data, val_options)
        measure_accuracy(candidates, split, val_options)
        result.differences = add_intervals(entries, opt.draws, SEED)
        if not opt.source:
            result.pictures = pictures_of_split(candidates, opt.pictures, opt.conf_thres)
        if list(names.values()) == list(load_data("VOC.yaml").names.values()):
            result.references = [PUBLISHED[s] for s in dict.fromkeys(Path(e.cfg).stem for e in entries)
                                 if s in PUBLISHED]  # fmt: skip
    measure_latency(candidates, opt.seconds)
    result.facts = facts_of(entries, data if split else None, opt, device)
    result.notes = notes_of(entries)
    return result


def title_of(entries: Sequence[Entry]) -> str:
    """Return the title: `a against b`, or `a, b, c and 5 more`."""
    labels = [e.label for e in entries]
    if len(labels) == 2:
        return " against ".join(labels)
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def facts_of(
    entries: Sequence[Entry], data: DataConfig | None, opt: Options, device: torch.device
) -> list[tuple[str, str]]:
    """Return the conditions of the measurement as (name, value) pairs."""
    facts = []
    scored = next((e for e in entries if e.results), None)
    if data and scored:
        facts += [("data", f"{data.yaml_file.name}, {opt.task} split"), ("accuracy", protocol_line(scored.results)),
                  ("pictures", f"confidence from {opt.conf_thres:g}; a hit has an IoU of 0.5 or more with its label")]
        if scored.map:
            facts.append(("intervals", f"95 %, bootstrap over images, {opt.draws} draws, seed {SEED}"))
    if rounds := ", ".join(f"{len(t)} rounds of batch {b}" for b, t in entries[0].latency.items()):
        precision = "float16" if opt.half and device.type != "cpu" else "float32"
        precision += " (exported models as noted)" * any(e.parameters is None for e in entries)
        facts += [("device", describe_device(device)),
                  ("latency", f"{precision}, batch norm fused; from uint8 images in main memory to decoded boxes, "
                              f"without NMS; per image; all models in turns, {rounds}")]  # fmt: skip
    return facts


def notes_of(entries: Sequence[Entry]) -> list[str]:
    """Return the caveats of the table: conditions that differ, trainings that had not converged."""
    notes = [f"Trained differently, {line}." for line in unlike(entries, ALIKE)]
    notes += [f"{e.label}: {e.remark}." for e in entries if e.remark]
    sizes = {e.imgsz for e in entries}
    if len(sizes) > 1:
        each = ", ".join(f"{e.label} {e.imgsz}" for e in entries)
        step = max((max(e.strides) for e in entries if e.strides), default=32)
        notes.append(f"Tested at different sizes (px): {each}. --imgsz with a multiple of {step} sets one for all.")
    images = {e.results.images for e in entries if e.results}
    if images and min(images) < LEAST_IMAGES:
        notes.append(f"{min(images)} images are too few for intervals ({LEAST_IMAGES} needed): small differences "
                     "are not meaningful.")  # fmt: skip
    rising = [e.label for e in entries if still_rising(e)]
    if rising:
        notes.append(f"Best in the last epoch, so more epochs may help: {', '.join(rising)}.")
    notes += [f"{e.label} detects at strides {'/'.join(map(str, e.strides))}: it can hardly detect objects under about "
              f"{min(e.strides)} px." for e in entries if e.strides and min(e.strides) >= 32]  # fmt: skip
    return notes


def still_rising(entry: Entry) -> bool:
    """Return whether the best mAP50-95 of a training is that of its last epoch."""
    curve = entry.training.curves.get("metrics/mAP_0.5:0.95", np.zeros(0)) if entry.training else np.zeros(0)
    return len(curve) > 1 and int(curve.argmax()) == len(curve) - 1


def text_table(entries: Sequence[Entry]) -> str:
    """Format the table for the terminal, without empty columns."""
    rows, columns = table(entries), [c for c in COLUMNS if c.key != "strides"]
    columns = [c for c in columns if any(row[c.key] is not None for row in rows)]
    cells = [[c.heading for c in columns], *([c.text(row[c.key]) for c in columns] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    lines = []
    for first, *others in cells:
        padded = [text.rjust(w) for text, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def command_of(flags: Mapping[str, Any]) -> str:
    """Return the command line of the options that differ from their defaults; undecodable bytes are escaped."""
    default = {f.name: f.default for f in fields(Options)}
    words = ["python", "my_tools/compare.py"]
    for key, value in flags.items():
        if value in (default[key], None) or value in ([], ()):
            continue
        words.append(f"--{key.replace('_', '-')}")
        values = value if isinstance(value, (list, tuple)) else [] if value is True else [value]
        words += [shlex.quote(speakable(v)) for v in values]
    return " ".join(words)


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
