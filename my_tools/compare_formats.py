"""Compare a trained model in several engines and number formats: file size, time of one image, accuracy.

    python my_tools/compare_formats.py --weights runs/train/exp --data VOC.yaml
    python my_tools/compare_formats.py --weights best.pt --data VOC.yaml --engines onnx openvino --imgsz 320

Writes table.csv, table.md and chart.png to runs/formats/exp, and the exported files next to them. All models run on
the same square inputs and are timed in turns.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError
from utils.files import ROOT
from utils.settings.flags import Parser, options_from, read_first

CHECKPOINT = "pytorch"
ENGINES = (CHECKPOINT, "torchscript", "onnx", "openvino", "ncnn", "tflite")


@dataclass(frozen=True)
class Options:
    """The flags, with their names in code. Raises UserError for invalid values. seconds: of timing."""

    weights: str = ""
    data: str = ""
    imgsz: int | None = None
    engines: Sequence[str] = (CHECKPOINT, "onnx", "openvino", "ncnn")
    seconds: float = 60.0
    project: str = str(ROOT / "runs/formats")
    name: str = "exp"
    exist_ok: bool = False

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("--data is missing: give the dataset that the model was trained on, such as VOC.yaml")
        for engine in self.engines:
            if engine not in ENGINES:
                raise UserError(f"--engines {engine}: one of {', '.join(ENGINES)}")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"--seconds {self.seconds:g} must be a number above 0")
        if self.imgsz is not None and self.imgsz < 1:
            raise UserError(f"--imgsz {self.imgsz} must be 1 or more")


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, Options)
    data, model, more = map(parser.group, ("data", "model", "more"))
    data("--data", metavar="YAML", shown="required",
         help="dataset yaml that the model was trained on, for calibration and accuracy")  # fmt: skip
    data("--imgsz", "--img", "--img-size", type=int, metavar="PX", shown="as trained", help="image size in pixels")
    model("--weights", metavar="PT", shown="best.pt of the newest run", help="checkpoint, or the folder of a run")
    model("--engines", nargs="+", metavar="ENGINE", help=f"one or more of {' '.join(ENGINES)}")
    parser.add_output("runs/formats")
    more("--seconds", type=float, metavar="S", help="seconds of timing")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import export
from models.export.engines import kind_of
from models.export.exported import ExportedRuntime
from models.export.exporters import FORMATS
from models.inference.runtime import DEFAULT_IMGSZ, AnyRuntime, Runtime, check_img_size, weights_file
from models.weights.checkpoint import load_checkpoint, weights_size
from models.weights.transfer import with_classes
from utils.files import atomic_write, increment_path, size_of
from utils.settings.dataset import load_data
from utils.settings.options import ValOptions
from utils.system.console import LOGGER, progress, quiet, run_script, shown
from utils.system.device import describe_device, select_device
from utils.system.precision import inference_precision
from utils.system.profiling import REST, time_in_turns
from val import evaluate_at, load_split

CHECKPOINT = "pytorch"
ENGINES = (CHECKPOINT, *FORMATS)
NAMES = {CHECKPOINT: "PyTorch", "torchscript": "TorchScript", "onnx": "ONNX Runtime", "openvino": "OpenVINO",
         "ncnn": "ncnn", "tflite": "TensorFlow Lite"}  # fmt: skip
WITHOUT_FLOAT16 = ("torchscript",)  # on a CPU, torch takes seconds per image in float16
WITH_BF16 = (CHECKPOINT, "openvino")  # engines that can compute in bfloat16 with the same weights
FEW = 20  # rounds of timing below which medians are unreliable
COLORS = {"float32": "#005094", "bf16": "#1fab7c", "float16": "#d18700", "int8": "#b66eaf"}


@dataclass
class Row:
    """One engine with one number format. mib: size of the file; ms: median time of one image; ratio: its time relative
    to the first row's, median over the rounds; map50, map: on the val split."""  # fmt: skip

    engine: str
    precision: str
    mib: float
    ms: float = 0.0
    ratio: float = 1.0
    map50: float = 0.0
    map: float = 0.0

    @property
    def label(self) -> str:
        """The name of the row in the chart and in messages."""
        return f"{NAMES[self.engine]} {self.precision}"


def run(**kwargs: Any) -> list[Row]:
    """Compare with options named like the flags, such as run(weights="best.pt", data="VOC.yaml").

    Raises UserError for bad input.
    """
    opt = options_from(Options, kwargs, "compare_formats.run")
    file, config, device = weights_file(opt.weights), load_data(opt.data), select_device("cpu")
    if kind_of(file):
        raise UserError(f"--weights {file} is an exported model already; give the checkpoint")
    content = load_checkpoint(file)
    model = with_classes(content, file, config.names, config.yaml_file.name)
    size = check_img_size(opt.imgsz or content.get("imgsz") or DEFAULT_IMGSZ, int(model.stride.max()))[0]
    split = load_split(config, ValOptions(data=opt.data))
    folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok)
    candidates: list[tuple[Row, AnyRuntime]] = []
    for precision in ("float32", "bf16"):
        amp = "bf16" if precision == "bf16" else "off"
        if CHECKPOINT in opt.engines and (amp == "off" or has_bf16()):
            runtime = Runtime(with_classes(content, file, config.names, ""), device, imgsz=size, amp=amp)
            runtime.size = [size, size]  # full squares, as for exported models
            candidates.append((Row(CHECKPOINT, precision, weights_size(model, size) / 2**20), runtime))
    for engine in opt.engines:
        if engine != CHECKPOINT:
            candidates += exported(engine, file, size, opt, folder)
    if not candidates:
        raise UserError("--engines: none of these is installed")
    for row, runtime in candidates:
        LOGGER.info(f"\n{row.label}")
        row.map50, row.map = map(float, evaluate_at(size, runtime, split, ValOptions(noplots=True), None).summary[2:4])
    rounds = measure(candidates, size, opt.seconds)
    if rounds < FEW:
        LOGGER.warning(f"only {rounds} rounds of timing: give more --seconds, and leave the machine otherwise idle")
    rows = [row for row, _ in candidates]
    title = f"{file.name}, {size} px; {config.yaml_file.stem}, {len(split.index)} val images; {rounds} rounds; "
    title += describe_device(device)
    write(rows, title, folder)
    LOGGER.info(f"\n{title}\n{markdown(rows)}\nresults in {shown(folder)}")
    return rows


def has_bf16() -> bool:
    """Return whether this CPU supports bfloat16, so that it is worth measuring."""
    return inference_precision("auto", torch.device("cpu")).dtype == torch.bfloat16


def exported(engine: str, file: Path, size: int, opt: Options, folder: Path) -> list[tuple[Row, AnyRuntime]]:
    """Export to an engine in every number format that works on this machine; log each, also if it is skipped."""
    kind, made = FORMATS[engine], []
    if missing := [p for p in kind.packages if importlib.util.find_spec(p) is None]:
        LOGGER.warning(f"{NAMES[engine]} is left out: {' and '.join(missing)} not installed")
        return []
    half = kind.half and engine not in WITHOUT_FLOAT16
    for precision in ("float32", *("float16",) * half, *("int8",) * kind.int8):
        flags = {"half": precision == "float16", "int8": precision == "int8"}
        LOGGER.info(f"exporting: {NAMES[engine]} {precision}")
        try:
            path = export_to(folder / precision, file, include=engine, imgsz=size, data=opt.data, **flags)
            shares = ("off", "bf16") if engine in WITH_BF16 and precision != "float16" and has_bf16() else ("off",)
            for amp in shares:
                name = {"off": precision, "bf16": "bf16" if precision == "float32" else f"{precision}+bf16"}[amp]
                runtime = ExportedRuntime(path, torch.device("cpu"), amp=amp)
                made.append((Row(engine, name, size_of(path) / 2**20), runtime))
        except UserError as e:
            LOGGER.warning(f"{NAMES[engine]} {precision} is left out: {e}")
    return made


def export_to(folder: Path, file: Path, **flags: Any) -> Path:
    """Export a checkpoint to its own folder; an export of an earlier run is replaced."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as staged:
        copy = Path(staged) / file.name
        shutil.copyfile(file, copy)
        with quiet():
            (path,) = export.run(weights=str(copy), **flags)
        final = folder / path.name
        export.check_target(final, flags["include"])
        export.put_in_place(path, final, Path(staged) / "old")
    return final


def measure(candidates: Sequence[tuple[Row, AnyRuntime]], size: int, seconds: float) -> int:
    """Time one image in all models in turns, from uint8 pixels to decoded boxes; return the number of rounds."""
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    calls = [partial(runtime.predict, image) for _, runtime in candidates]
    times = time_in_turns(calls, rounds=200, budget=seconds, each=partial(progress, desc="timing in turns"), rest=REST)
    for (row, _), ms, ratio in zip(candidates, np.median(times, 0) * 1e3, np.median(times / times[:, :1], 0),
                                   strict=True):  # fmt: skip
        row.ms, row.ratio = float(ms), float(ratio)
    return len(times)


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table."""
    lines = [f"| engine | numbers | MiB | one image, ms | part of {rows[0].label} | mAP50 | mAP50-95 |",
             f"| --- | --- {'| ---: ' * 5}|"]  # fmt: skip
    lines += [f"| {NAMES[r.engine]} | {r.precision} | {r.mib:.1f} | {r.ms:.1f} | {r.ratio:.2f} | {r.map50:.3f} | "
              f"{r.map:.3f} |" for r in rows]  # fmt: skip
    return "\n".join(lines)


def write(rows: Sequence[Row], title: str, folder: Path) -> None:
    """Write table.csv, table.md and chart.png."""
    with atomic_write(folder / "table.csv", "w") as f:
        writer = csv.DictWriter(f, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
    with atomic_write(folder / "table.md", "w") as f:
        f.write(f"{title}\n\n{markdown(rows)}\n")
    draw_chart(rows, title, folder / "chart.png")


def draw_chart(rows: Sequence[Row], title: str, file: Path) -> None:
    """Draw three bars for each row: time, file size, accuracy."""
    lost = [f"{rows[0].map50:.3f}"]
    for r in rows[1:]:
        points = round((r.map50 - rows[0].map50) * 100, 1) + 0.0  # no -0.0
        lost.append(f"{r.map50:.3f} ({points:+.1f} points)")
    panels = [("one image, ms (less is better)", "ms", [f"{r.ms:.1f}" for r in rows]),
              ("file, MiB (less is better)", "mib", [f"{r.mib:.1f}" for r in rows]),
              ("mAP50 (more is better)", "map50", lost)]  # fmt: skip
    figure = Figure(figsize=(11, 1.3 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (heading, key, texts) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        values = [getattr(r, key) for r in rows]
        axis.barh(range(len(rows)), values, 0.66, color=[COLORS[r.precision.partition("+")[0]] for r in rows])
        for y, (value, text) in enumerate(zip(values, texts, strict=True)):
            axis.text(value, y, f" {text}", va="center", fontsize=8)
        axis.set_xlim(0, 1.7 * max(max(values), 1e-9) if key == "map50" else 1.2 * max(values))
        axis.set_xlabel(heading, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axis.set_yticks(range(len(rows)), [r.label for r in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(title, fontsize=9)
    with atomic_write(file) as f:
        figure.savefig(f, dpi=130, format="png")


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
