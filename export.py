"""Export a trained detector to other formats, and check each exported model against the original network.

    python export.py --weights runs/train/exp/weights/best.pt --include onnx openvino
    python val.py --weights runs/train/exp/weights/best.onnx --data VOC.yaml       # the exported model's own mAP
    python export.py --include ncnn --imgsz 320                                    # the newest run's best.pt
    python export.py --include openvino onnx --int8 --data VOC.yaml                # 8-bit integers

The files are written next to the weights: best.torchscript, best.onnx, best_openvino/, best_ncnn/, best.tflite; with
--int8: best_int8.onnx and best_int8_openvino/.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.errors import UserError, did_you_mean
from utils.settings.flags import Parser, options_from, read_first


@dataclass(frozen=True)
class Options:
    """The flags of export.py, with their names in code. Raises UserError for values that cannot be exported."""

    weights: str = ""
    include: Sequence[str] = ("torchscript",)
    imgsz: int | Sequence[int] | None = None
    batch_size: int = 1
    data: str = ""
    half: bool = False
    int8: bool = False
    dynamic: bool = False
    simplify: bool = False
    nms: bool = False
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    opset: int = 17

    def __post_init__(self) -> None:
        words = (self.include,) if isinstance(self.include, str) else self.include
        object.__setattr__(self, "include", tuple(kind for word in words for kind in word.split(",") if kind))
        for kind in self.include:
            if kind not in FORMATS:
                raise UserError(f"--include {kind}{did_you_mean(kind, FORMATS)}: one of {', '.join(FORMATS)}")
            for flag in ("half", "int8", "dynamic"):
                if getattr(self, flag) and not getattr(FORMATS[kind], flag):
                    raise UserError(f"--{flag} is for {', '.join(that_have(flag))}, not for {kind}: choose "
                                    "those with --include")  # fmt: skip
            if not FORMATS[kind].batches and self.batch_size > 1:
                raise UserError(f"--batch-size {self.batch_size}: {kind} models take one image at a time")
        if not self.include:
            raise UserError(f"--include: one or more of {', '.join(FORMATS)}")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: must be 1 or more")
        for flag in ("simplify", "nms"):
            if getattr(self, flag) and "onnx" not in self.include:
                raise UserError(f"--{flag} is for onnx; add it to --include")
        if self.int8 and self.half:
            raise UserError("--half and --int8: give only one of them")
        if self.int8 and not self.data:
            raise UserError("--int8 needs --data: training images to calibrate on, val images to measure mAP50 on")
        if self.int8 and self.simplify:
            raise UserError("--simplify: leave it out, --int8 simplifies the graph anyway")
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1 or not 1 <= self.max_det <= 65536:
            raise UserError("--conf-thres and --iou-thres must lie between 0 and 1, --max-det between 1 and 65536")
        if not 13 <= self.opset <= 20:
            raise UserError(f"--opset {self.opset}: must be from 13 to 20")


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, Options)
    data, model, output, speed, more = map(parser.group, ("data", "model", "output", "speed", "more"))
    data("--data", metavar="YAML", shown="the images of data/images",
         help="dataset yaml with the val images to check the files on; needed for --int8")  # fmt: skip
    data("--imgsz", "--img", "--img-size", nargs="+", type=int, metavar="PX", shown="as trained",
         help="image size in pixels: one number, or height and width")  # fmt: skip
    model("--weights", metavar="PT", shown="best.pt of the newest run", help="checkpoint, or the folder of a run")
    output("--include", nargs="+", metavar="FORMAT", help="one or more of torchscript onnx openvino ncnn tflite")
    output("--dynamic", action="store_true", help="any batch size, height and width: torchscript onnx openvino")
    output("--nms", action="store_true",
           help="onnx: include NMS; the output is then (m, 7): image, corners, confidence, class")  # fmt: skip
    output("--simplify", action="store_true", help="onnx: simplify the graph with onnxslim")
    speed("--batch-size", type=int, metavar="N", help="images per batch")
    speed("--half", action="store_true", help="store the weights in float16: torchscript onnx openvino ncnn")
    speed("--int8", action="store_true",
          help="quantize to 8 bits, losing at most 1 point of mAP50: onnx openvino; needs --data")  # fmt: skip
    more("--conf-thres", type=float, metavar="X", help="--nms: drop detections with a lower confidence")
    more("--iou-thres", type=float, metavar="X", help="--nms: IoU threshold")
    more("--max-det", type=int, metavar="N", help="--nms: maximum number of detections per image")
    more("--opset", type=int, metavar="N", help="onnx: version of the operator set")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import numpy as np
import torch

from models.export.check import check
from models.export.engines import INSIDE, first_line, kind_of, need
from models.export.exporters import FORMATS, Job
from models.export.facts import ExportFacts
from models.export.form import ExportForm
from models.export.quantize import Calibration, sensitive_first, with_sensitive_left
from models.inference.runtime import DEFAULT_IMGSZ, check_img_size, load_runtime, weights_file
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint
from models.yolo import DetectionModel
from utils.data.augment import letterbox
from utils.data.images import read_image
from utils.data.labels import index_split
from utils.files import ROOT, size_of
from utils.settings.dataset import load_data
from utils.settings.options import ValOptions
from utils.system.console import LOGGER, quoted, run_script, shown
from val import Split, check_classes, evaluate_at, load_split

CHECKED = 3  # images on which an exported model is checked
CALIBRATED = 128  # images of the train split to calibrate the quantization on
JUDGED = 500  # images of the val split on which int8 is compared with float
MOST_LOST = 0.01  # largest accepted loss of mAP50 in int8
LEAST_FOUND = 0.02  # smallest mAP50 in float for which the comparison is meaningful


def that_have(what: str) -> list[str]:
    """Return the formats whose attribute `what` of `Format` is true."""
    return [kind for kind, format_ in FORMATS.items() if getattr(format_, what)]


def run(**kwargs: Any) -> list[Path]:
    """Export with options named like the flags, such as run(weights="best.pt", include=["onnx"]); return the files.

    Raises UserError for bad input, and if the outputs of an exported model differ from the network's.
    """
    opt = options_from(Options, kwargs, "export.run")
    file = weights_file(opt.weights)
    if kind_of(file):
        raise UserError(f"--weights {file} is an exported model already; give the checkpoint")
    content = load_checkpoint(file)
    model = model_from_checkpoint(content, file).eval()
    stride = int(model.stride.max())
    imgsz = opt.imgsz if opt.imgsz is None or isinstance(opt.imgsz, int) else list(opt.imgsz)
    height, width = check_img_size(content.get("imgsz") or DEFAULT_IMGSZ if imgsz is None else imgsz, stride)
    precision = "float16" if opt.half else "float32"
    if model.yaml["ch"] != 3:
        raise UserError(f"{file} takes {model.yaml['ch']} input channels; only models with 3 can be exported")
    for kind in opt.include:
        check_target(final_of(file, kind, opt), kind)
        more = ["onnxslim"] * (opt.simplify and kind == "onnx") + ["nncf"] * (opt.int8 and kind == "openvino")
        for package in (*FORMATS[kind].packages, *more):
            need(package, f"--include {kind}")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{file.parent} is not writable: copy the weights to a folder of your own")
    facts = ExportFacts(dict(model.names), stride, (height, width), opt.batch_size, opt.dynamic, precision,
                        source=file.name, made_by={"torch": torch.__version__})  # fmt: skip
    judge = Judge(file, opt, facts) if opt.int8 else None
    pictures = samples(opt.data, (height, width))
    LOGGER.info(f"export: {file}, {height}x{width} px, {'int8' if opt.int8 else precision}; checked on {len(pictures)} "
                "images")  # fmt: skip
    made, failed = [], []
    for kind in opt.include:
        start = time.perf_counter()
        try:
            made.append(export_one(kind, model, facts, pictures, file, opt, judge))
        except UserError as e:  # the other formats may succeed
            failed.append(str(e))
            continue
        LOGGER.info(f"{kind}: {shown(made[-1])} ({size_of(made[-1]) / 2**20:.1f} MiB) in "
                    f"{time.perf_counter() - start:.1f} s")  # fmt: skip
    if failed:
        raise UserError("; ".join(failed))
    word = quoted(shown(made[-1]))
    data = opt.data or "..."
    LOGGER.info(f"next: python detect.py --weights {word}\n      python val.py --weights {word} --data {data}")
    return made


def final_of(weights: Path, kind: str, opt: Options) -> Path:
    """Return the path of an exported file or folder, next to the weights."""
    return weights.with_name(f"{weights.stem}{'_int8' * opt.int8}{FORMATS[kind].suffix}")


def export_one(
    kind: str, model: DetectionModel, facts: ExportFacts, pictures: np.ndarray, weights: Path, opt: Options,
    judge: Judge | None,
) -> Path:  # fmt: skip
    """Write one format next to the weights if its outputs match the network's. Raises UserError otherwise."""
    if opt.nms and kind == "onnx":
        facts = replace(facts, nms={"conf": opt.conf_thres, "iou": opt.iou_thres, "max_det": opt.max_det})
    final = final_of(weights, kind, opt)
    form = ExportForm(model, None if facts.dynamic else facts.imgsz)
    example = torch.from_numpy(pictures[:1]).repeat(facts.batch, 1, 1, 1)
    if facts.precision == "float16" and kind in ("torchscript", "onnx"):
        form, example = form.half_weights(), example.half()
    with tempfile.TemporaryDirectory(prefix=".export-", dir=final.parent) as folder:
        job = Job(form, example, Path(folder) / final.name, facts, opt.opset, opt.simplify)
        write(kind, job)
        off = check(job.out, model, facts, pictures)
        LOGGER.info(f"{kind}: boxes within {off[0]:.3g} px of the network's, scores within {off[1]:.2g}")
        made = judged_in_8_bits(kind, job, opt, judge) if judge else job.out
        put_in_place(made, final, Path(folder) / "old")
    return final


class Judge:
    """The data for int8: `images` (n, 3, h, w) uint8 of the train split to calibrate on, and the val split to measure
    mAP50 on. Raises UserError if --data has no such images."""  # fmt: skip

    def __init__(self, file: Path, opt: Options, facts: ExportFacts) -> None:
        self.config, self.opt, (height, self.size) = load_data(opt.data), ValOptions(noplots=True), facts.imgsz
        if height != self.size:
            raise UserError(f"--imgsz {height} {self.size}: --int8 measures mAP50 on square images; give one size")
        check_classes(file, facts.names, self.config)
        train = index_split(self.config, "train")
        self.images = np.stack([as_input(train.file(k), facts.imgsz) for k in spread(len(train), CALIBRATED)])
        split = load_split(self.config, self.opt)
        self.split = Split(self.config, split.index.take(spread(len(split.index), JUDGED)), split.annotations)
        if not len(self.split.index.values):
            raise UserError(f"--int8: no val image of {self.config.yaml_file} has a label, so mAP50 cannot be measured")

    def map50(self, file: Path) -> float:
        """Return the mAP50 of an exported model."""
        return evaluate_at(self.size, load_runtime(file, torch.device("cpu")), self.split, self.opt, None).summary[2]


def judged_in_8_bits(kind: str, job: Job, opt: Options, judge: Judge) -> Path:
    """Quantize an exported float model; layers are kept in float until the loss of mAP50 is small enough.

    Raises UserError if it stays too large.
    """
    exact, facts = judge.map50(job.out), replace(job.facts, precision="int8")
    if exact < LEAST_FOUND:
        raise UserError(f"--int8: mAP50 is {exact:.3f} in float on {judge.config.yaml_file}, too low to measure a "
                        "loss: give the --data it was trained on, or train it first")  # fmt: skip

    def build(left: Sequence[str]) -> Path:
        out = job.out.parent / f"but-{len(left)}" / job.out.name
        out.parent.mkdir()
        calibration = Calibration(judge.images, facts.batch, left)
        write(kind, job._replace(out=out, facts=facts, calibration=calibration))
        return out

    LOGGER.info(f"{kind}: calibrated on {len(judge.images)} training images")
    made, found, left = with_sensitive_left(build, judge.map50, exact - MOST_LOST,
                                            lambda: sensitive_first(job.form, judge.images[::16]))  # fmt: skip
    LOGGER.info(f"{kind}: mAP50 {found:.3f} in 8 bits, {exact:.3f} in float, on {len(judge.split.index)} val images; "
                f"layers left in float: {', '.join(left) or 'none'}")  # fmt: skip
    return made


def write(kind: str, job: Job) -> None:
    """Run a format's converter. If it fails, raises UserError with the first line of its error message."""
    try:
        FORMATS[kind].write(job)
    except (UserError, OSError):
        raise
    except Exception as e:  # each converter raises its own exception types
        raise UserError(f"--include {kind}: {first_line(e)}; not written") from e


def check_target(final: Path, kind: str) -> None:
    """Raise UserError if the final path is taken by anything but an earlier export, which may be replaced."""
    if not final.exists():
        return
    if final.is_dir() != FORMATS[kind].is_folder:
        what = "folder" if final.is_dir() else "file"
        raise UserError(f"{final} is in the way: a {what} that export.py did not write; move it away")
    ours = {f"{final.name}.xml", f"{final.name}.bin", "model.ncnn.param", "model.ncnn.bin", INSIDE}
    if final.is_dir() and not {f.name for f in final.iterdir()} <= ours:
        raise UserError(f"{final} contains files that export.py did not write; move them away")
    if final.is_file() and INSIDE.encode() not in final.read_bytes():
        raise UserError(f"{final} is in the way: export.py did not write it; move it away")


def put_in_place(staged: Path, final: Path, old: Path) -> None:
    """Rename a new file or folder to its final name; if that fails, the previous one is kept."""
    if not final.is_dir():
        os.replace(staged, final)
        return
    os.replace(final, old)  # a folder cannot be renamed to one that contains files
    try:
        os.replace(staged, final)
    except BaseException:
        if not final.exists():
            os.replace(old, final)
        raise


def samples(data: str, size: tuple[int, int]) -> np.ndarray:
    """Return images to check exports on, (n, 3, h, w) float32 RGB in [0, 1], of the val split or of data/images."""
    chosen = sorted((ROOT / "data/images").glob("*.jpg"))[:CHECKED]
    if data:
        config = load_data(data)
        index = index_split(config, "val")
        chosen = [Path(index.file(k)) for k in range(min(CHECKED, len(index)))]
    return np.stack([as_input(file, size) for file in chosen]).astype(np.float32) / 255


def as_input(file: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image file and letterbox it to the input of an exported network, (3, h, w) uint8 RGB."""
    return letterbox(read_image(file), size, auto=False)[0][..., ::-1].transpose(2, 0, 1)


def spread(count: int, most: int) -> np.ndarray:
    """Return the indices of at most `most` out of `count` items, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
