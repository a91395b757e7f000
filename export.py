"""Export a trained detector to other engines, and check each file against the network it came from.

    python export.py --weights runs/train/exp/weights/best.pt --include onnx openvino
    python val.py --weights runs/train/exp/weights/best.onnx --data VOC.yaml       # the exported model's own mAP
    python export.py --include ncnn --imgsz 320                                    # the newest run's best.pt

Files go beside the weights: best.torchscript, best.onnx, best_openvino/, best_ncnn/, best.tflite.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.checkpoint import find_weights, load_checkpoint, model_from_checkpoint
from models.engines import kind_of, need
from models.export_form import ExportForm
from models.exported import ExportedRuntime
from models.exporters import EXPORTERS
from models.runtime import DEFAULT_IMGSZ, check_img_size
from models.yolo import DetectionModel
from utils.augment import letterbox
from utils.config import check_keys, load_data
from utils.console import LOGGER, Parser, quoted, run_script, shown
from utils.errors import UserError, did_you_mean
from utils.export_facts import ExportFacts
from utils.files import ROOT, newest
from utils.images import read_image
from utils.labels import load_labels

SUFFIXES = {"torchscript": ".torchscript", "onnx": ".onnx", "openvino": "_openvino", "ncnn": "_ncnn",
            "tflite": ".tflite"}  # fmt: skip
HALF = ("torchscript", "onnx", "openvino", "ncnn")  # formats that --half is for
DYNAMIC = ("torchscript", "onnx", "openvino")
CHECKED = 3  # pictures that a file is checked on
# how far boxes (parts of the image's side) and scores may be from the network's
TOLERANCES = {"float32": (2e-4, 1e-3), "float16": (1e-2, 5e-2)}


@dataclass(frozen=True)
class Options:
    """The flags of export.py by their names in code. Raises UserError for what cannot be exported."""

    weights: str = ""
    include: Sequence[str] = ("torchscript",)
    imgsz: int | Sequence[int] | None = None
    batch_size: int = 1
    data: str = ""
    half: bool = False
    dynamic: bool = False
    simplify: bool = False
    opset: int = 17

    def __post_init__(self) -> None:
        for kind in self.include:
            if kind not in EXPORTERS:
                raise UserError(f"--include {kind}{did_you_mean(kind, EXPORTERS)}: one of {', '.join(EXPORTERS)}")
            for flag, kinds in (("half", HALF), ("dynamic", DYNAMIC)):
                if getattr(self, flag) and kind not in kinds:
                    raise UserError(f"--{flag} is for {', '.join(kinds)}; leave {kind} out of --include")
            if kind in ("ncnn",) and self.batch_size > 1:
                raise UserError(f"--batch-size {self.batch_size}: {kind} looks at one image at a time")
        if not self.include:
            raise UserError(f"--include: one or more of {', '.join(EXPORTERS)}")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: 1 or more")
        if self.simplify and "onnx" not in self.include:
            raise UserError("--simplify is for onnx; add it to --include")
        if not 12 <= self.opset <= 20:
            raise UserError(f"--opset {self.opset}: from 12 to 20")


def run(**kwargs: Any) -> list[Path]:
    """Export with options named as the flags, such as run(weights="best.pt", include=["onnx"]); returns the files.

    Raises UserError for bad input, and if a file does not give what the network gives.
    """
    check_keys(kwargs, [f.name for f in fields(Options)], "export.run")
    opt = Options(**kwargs)
    file = find_weights(opt.weights) if opt.weights else newest("train/*/weights/best.pt")
    if file is None:
        raise UserError("no --weights given and no trained model in runs/train; run train.py first")
    if kind_of(file):
        raise UserError(f"--weights {file} is an exported model already; give the checkpoint")
    content = load_checkpoint(file)
    model = model_from_checkpoint(content, file).eval()
    stride = int(model.stride.max())
    imgsz = opt.imgsz if opt.imgsz is None or isinstance(opt.imgsz, int) else list(opt.imgsz)
    height, width = check_img_size(imgsz or content.get("imgsz") or DEFAULT_IMGSZ, stride)
    precision = "float16" if opt.half else "float32"
    facts = ExportFacts(dict(model.names), stride, (height, width), opt.batch_size, opt.dynamic, precision,
                        source=file.name, made_by={"torch": torch.__version__})  # fmt: skip
    pictures = samples(opt.data, (height, width))
    LOGGER.info(f"export: {file}, {height}x{width} px, {facts.precision}; checked on {len(pictures)} pictures")
    made = []
    for kind in opt.include:
        start = time.perf_counter()
        made.append(export_one(kind, model, facts, pictures, file, opt))
        LOGGER.info(f"{kind}: {shown(made[-1])} ({size_of(made[-1]) / 2**20:.1f} MiB) in "
                    f"{time.perf_counter() - start:.1f} s")  # fmt: skip
    word = quoted(shown(made[-1]))
    LOGGER.info(f"next: python detect.py --weights {word}\n      python val.py --weights {word} --data ...")
    return made


def export_one(
    kind: str, model: DetectionModel, facts: ExportFacts, pictures: np.ndarray, weights: Path, opt: Options
) -> Path:
    """Write one format beside the weights, if what it gives is what the network gives. Raises UserError otherwise."""
    final = weights.with_name(f"{weights.stem}{SUFFIXES[kind]}")
    form = ExportForm(model, None if facts.dynamic else facts.imgsz)
    example = torch.from_numpy(pictures[:1]).repeat(facts.batch, 1, 1, 1)
    if facts.precision == "float16" and kind in ("torchscript", "onnx"):
        form, example = form.half_weights(), example.half()
    with tempfile.TemporaryDirectory(prefix=".export-", dir=final.parent) as folder:
        staged = Path(folder) / final.name
        EXPORTERS[kind](form, example, staged, facts, opt.opset)
        if opt.simplify and kind == "onnx":
            simplify(staged)
        off = check(staged, model, facts, pictures)
        LOGGER.info(f"{kind}: boxes within {off[0]:.3g} px of the network's, scores within {off[1]:.2g}")
        if final.is_dir():  # a folder cannot be renamed over one that has files
            old = Path(folder) / "old"
            os.replace(final, old)
        os.replace(staged, final)
    return final


def check(path: Path, model: DetectionModel, facts: ExportFacts, pictures: np.ndarray) -> tuple[float, float]:
    """The largest differences of boxes (pixels) and scores between an exported model and its network.

    Dynamic ones are looked at in a second size and number too. Raises UserError if they differ by too much.
    """
    exported = ExportedRuntime(path, torch.device("cpu"))
    batches = [pictures[:1].repeat(facts.batch, 0), pictures]
    if facts.dynamic:
        low = facts.stride * max(facts.imgsz[0] // facts.stride - 1, 1)
        batches.append(np.ascontiguousarray(pictures[:2, :, :low]))
    worst = np.zeros(2)
    boxes_off, scores_off = TOLERANCES[facts.precision]
    for batch in batches:
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch))[0].numpy()
        found = exported.predict(torch.from_numpy(batch)).numpy()
        if found.shape != expected.shape:
            raise UserError(f"{path.name} gives {found.shape}, the network {expected.shape}: not written")
        off = np.abs(found - expected)
        worst = np.maximum(worst, (off[..., :4].max(), off[..., 4:].max()))
    if not worst[0] <= boxes_off * max(facts.imgsz) or not worst[1] <= scores_off:  # NaN too
        raise UserError(f"{path.name} differs from the network: boxes by {worst[0]:.3g} px, scores by {worst[1]:.2g}; "
                        "not written")  # fmt: skip
    return float(worst[0]), float(worst[1])


def samples(data: str, size: tuple[int, int]) -> np.ndarray:
    """Pictures to check an exported model on, (n, 3, h, w) float32 RGB in [0, 1]: of the data's val split, or ours."""
    files = load_labels(load_data(data).existing("val"), load_data(data).nc, "val: ").files if data else []
    chosen = [str(f) for f in files[:CHECKED]] or sorted(map(str, (ROOT / "data/images").glob("*.jpg")))[:CHECKED]
    pictures = [letterbox(read_image(file), size, auto=False)[0][..., ::-1].transpose(2, 0, 1) for file in chosen]
    return np.stack(pictures).astype(np.float32) / 255


def simplify(file: Path) -> None:
    """Fold what is constant in an ONNX graph, and the like."""
    onnxslim, onnx = need("onnxslim", "--simplify"), need("onnx", "--simplify")
    onnx.save(onnxslim.slim(str(file)), str(file))


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    return sum(f.stat().st_size for f in path.iterdir()) if path.is_dir() else path.stat().st_size


def parse_opt() -> argparse.Namespace:
    parser = Parser(description="Export a detector to other engines. In brackets: the defaults")
    add = parser.add_argument
    add("--weights", default="", help="checkpoint, or a run's folder (the newest run's best.pt)")
    add("--include", nargs="+", default=["torchscript"], metavar="FORMAT",
        help=f"{' '.join(EXPORTERS)} (torchscript)")  # fmt: skip
    add("--imgsz", "--img", "--img-size", nargs="+", type=int, default=None, metavar="PX",
        help="pixels, one or h w (as trained)")  # fmt: skip
    add("--batch-size", type=int, default=1, help="images at a time (%(default)s)")
    add("--data", default="", help="data yaml whose val images the files are checked on (pictures of data/images)")
    add("--half", action="store_true", help=f"weights in float16: {' '.join(HALF)}")
    add("--dynamic", action="store_true", help=f"any batch size, height and width: {' '.join(DYNAMIC)}")
    add("--simplify", action="store_true", help="ONNX: simplify the graph with onnxslim")
    add("--opset", type=int, default=17, help="ONNX: version of its operators (%(default)s)")
    return parser.parse_args()


def main(opt: argparse.Namespace) -> None:
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, parse_opt())
