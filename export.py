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
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.checkpoint import load_checkpoint, model_from_checkpoint
from models.engines import LOWEST, first_line, kind_of, need
from models.export_form import ExportForm
from models.exported import ExportedRuntime
from models.exporters import FORMATS
from models.runtime import DEFAULT_IMGSZ, check_img_size, weights_file
from models.yolo import DetectionModel
from utils.augment import letterbox
from utils.config import check_keys, load_data
from utils.console import LOGGER, Parser, quoted, run_script, shown
from utils.errors import UserError, did_you_mean
from utils.export_facts import ExportFacts
from utils.files import ROOT
from utils.images import read_image
from utils.labels import load_labels
from utils.nms import non_max_suppression

OURS = (".xml", ".bin", ".param", ".json")  # files of formats that are folders
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
    nms: bool = False
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    opset: int = 17

    def __post_init__(self) -> None:
        if isinstance(self.include, str):
            object.__setattr__(self, "include", (self.include,))
        for kind in self.include:
            if kind not in FORMATS:
                raise UserError(f"--include {kind}{did_you_mean(kind, FORMATS)}: one of {', '.join(FORMATS)}")
            for flag in ("half", "dynamic"):
                if getattr(self, flag) and not getattr(FORMATS[kind], flag):
                    raise UserError(f"--{flag} is for {', '.join(that_have(flag))}; leave {kind} out of --include")
            if not FORMATS[kind].batches and self.batch_size > 1:
                raise UserError(f"--batch-size {self.batch_size}: {kind} looks at one image at a time")
        if not self.include:
            raise UserError(f"--include: one or more of {', '.join(FORMATS)}")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: 1 or more")
        for flag in ("simplify", "nms"):
            if getattr(self, flag) and "onnx" not in self.include:
                raise UserError(f"--{flag} is for onnx; add it to --include")
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1 or not 1 <= self.max_det <= 65536:
            raise UserError("--conf-thres and --iou-thres must lie between 0 and 1, --max-det from 1 to 65536")
        if not 13 <= self.opset <= 20:
            raise UserError(f"--opset {self.opset}: from 13 to 20")


def that_have(what: str) -> list[str]:
    """The formats with a property of `Format`."""
    return [kind for kind, format_ in FORMATS.items() if getattr(format_, what)]


def run(**kwargs: Any) -> list[Path]:
    """Export with options named as the flags, such as run(weights="best.pt", include=["onnx"]); returns the files.

    Raises UserError for bad input, and if a file does not give what the network gives.
    """
    check_keys(kwargs, [f.name for f in fields(Options)], "export.run")
    opt = Options(**kwargs)
    file = weights_file(opt.weights)
    if kind_of(file):
        raise UserError(f"--weights {file} is an exported model already; give the checkpoint")
    content = load_checkpoint(file)
    model = model_from_checkpoint(content, file).eval()
    stride = int(model.stride.max())
    imgsz = opt.imgsz if opt.imgsz is None or isinstance(opt.imgsz, int) else list(opt.imgsz)
    height, width = check_img_size(imgsz or content.get("imgsz") or DEFAULT_IMGSZ, stride)
    precision = "float16" if opt.half else "float32"
    if model.yaml["ch"] != 3:
        raise UserError(f"{file} takes {model.yaml['ch']} channels; only networks for pictures of 3 are exported")
    for kind in opt.include:
        check_target(file.with_name(f"{file.stem}{FORMATS[kind].suffix}"), kind)
        for package in (*FORMATS[kind].packages, *(("onnxslim",) if opt.simplify and kind == "onnx" else ())):
            need(package, f"--include {kind}")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{file.parent} cannot be written: copy the weights to a folder of your own")
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
    if opt.nms and kind == "onnx":
        facts = replace(facts, nms={"conf": opt.conf_thres, "iou": opt.iou_thres, "max_det": opt.max_det})
    final = weights.with_name(f"{weights.stem}{FORMATS[kind].suffix}")
    form = ExportForm(model, None if facts.dynamic else facts.imgsz)
    example = torch.from_numpy(pictures[:1]).repeat(facts.batch, 1, 1, 1)
    if facts.precision == "float16" and kind in ("torchscript", "onnx"):
        form, example = form.half_weights(), example.half()
    with tempfile.TemporaryDirectory(prefix=".export-", dir=final.parent) as folder:
        staged = Path(folder) / final.name
        write(kind, form, example, staged, facts, opt)
        off = check(staged, model, facts, pictures)
        LOGGER.info(f"{kind}: boxes within {off[0]:.3g} px of the network's, scores within {off[1]:.2g}")
        put_in_place(staged, final, Path(folder) / "old")
    return final


def write(kind: str, form: ExportForm, example: torch.Tensor, staged: Path, facts: ExportFacts, opt: Options) -> None:
    """Have a converter write a file. Raises UserError with the first line of what it says if it fails."""
    try:
        FORMATS[kind].write(form, example, staged, facts, opt.opset)
        if opt.simplify and kind == "onnx":
            simplify(staged)
    except (UserError, OSError):
        raise
    except Exception as e:  # each converter has errors of its own
        raise UserError(f"--include {kind}: {first_line(e)}; not written") from e


def check_target(final: Path, kind: str) -> None:
    """Raise UserError if what lies at a file's final place is not an older export, which may be replaced."""
    if not final.exists():
        return
    if final.is_dir() != FORMATS[kind].is_folder:
        what = "folder" if final.is_dir() else "file"
        raise UserError(f"{final} is in the way: a {what} that export.py did not make")
    if final.is_dir() and not all(f.suffix in OURS for f in final.iterdir()):
        raise UserError(f"{final} holds files that export.py did not make; move them away")


def put_in_place(staged: Path, final: Path, old: Path) -> None:
    """Rename what was written to its final name; what was there before stays if that fails."""
    if not final.is_dir():
        os.replace(staged, final)
        return
    os.replace(final, old)  # a folder cannot be renamed over one that has files
    try:
        os.replace(staged, final)
    except BaseException:
        if not final.exists():
            os.replace(old, final)
        raise


def check(path: Path, model: DetectionModel, facts: ExportFacts, pictures: np.ndarray) -> tuple[float, float]:
    """The largest differences of boxes (pixels) and scores between an exported model and its network.

    Dynamic ones are looked at in a second size and number too. Raises UserError if they differ by too much.
    """
    exported = ExportedRuntime(path, torch.device("cpu"))
    batches = [np.concatenate((pictures, pictures[..., ::-1]))]  # mirrored too, so that there are two at least
    if facts.dynamic:
        batches += [np.pad(pictures, ((0, 0), (0, 0), (0, facts.stride), (0, 0))),
                    np.pad(pictures[:1], ((0, 0), (0, 0), (0, 0), (0, facts.stride)))]  # fmt: skip
    worst = np.zeros(2)
    boxes_off, scores_off = tolerances(facts)
    for batch in batches:
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch))[0].numpy()
        found = exported.predict(torch.from_numpy(batch)).numpy()
        if facts.nms:
            found, expected = alike(found, expected, facts, path.name)
        if found.shape != expected.shape:
            raise UserError(f"{path.name} gives {found.shape}, the network {expected.shape}: not written")
        off = np.abs(found - expected)
        worst = np.maximum(worst, (off[..., :4].max(initial=0), off[..., 4:].max(initial=0)))
    if not worst[0] <= boxes_off or not worst[1] <= scores_off:  # NaN too
        raise UserError(f"{path.name} differs from the network: boxes by {worst[0]:.3g} px, scores by {worst[1]:.2g}; "
                        "not written")  # fmt: skip
    return float(worst[0]), float(worst[1])


def tolerances(facts: ExportFacts) -> tuple[float, float]:
    """How far boxes (pixels) and scores may be from the network's."""
    boxes, scores = TOLERANCES[facts.precision]
    return boxes * max(facts.imgsz), scores


def alike(
    found: np.ndarray, expected: np.ndarray, facts: ExportFacts, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Detections of both, (m, 6) each, in pairs. Raises UserError if more than a tenth have no partner.

    Of two boxes with next to the same score one may be kept here and the other there: on plain ground, by the thousand.
    """
    pairs, alone = [np.zeros((0, 2, 6), np.float32)], 0
    most, iou = int(facts.nms["max_det"]), facts.nms["iou"]
    boxes_off, scores_off = tolerances(facts)
    for a, b in zip(*(non_max_suppression(torch.from_numpy(x), LOWEST, iou, max_det=most)
                      for x in (found, expected)), strict=True):  # fmt: skip
        a, b = a.numpy(), b.numpy()
        if not len(a) or not len(b):
            alone += len(a) + len(b)
            continue
        off = (np.abs(a[:, None] - b[None]) / (*[boxes_off] * 4, scores_off, 0.5)).max(2)
        near = off <= 1
        known = near.any(1)
        pairs.append(np.stack((a[known], b[off.argmin(1)[known]]), 1))
        alone += int((~known).sum() + (~near.any(0)).sum())
    both = np.concatenate(pairs)
    if alone > max(4, 0.2 * len(both)):
        raise UserError(f"{name} finds other boxes than the network, {alone} of {2 * len(both) + alone} have no "
                        "partner; not written")  # fmt: skip
    return both[:, 0], both[:, 1]


def samples(data: str, size: tuple[int, int]) -> np.ndarray:
    """Pictures to check an exported model on, (n, 3, h, w) float32 RGB in [0, 1]: of the data's val split, or ours."""
    chosen = sorted((ROOT / "data/images").glob("*.jpg"))[:CHECKED]
    if data:
        config = load_data(data)
        index = load_labels(config.existing("val"), config.nc, "val: ")
        chosen = [Path(index.file(k)) for k in range(min(CHECKED, len(index)))]
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
        help=f"{' '.join(FORMATS)} (torchscript)")  # fmt: skip
    add("--imgsz", "--img", "--img-size", nargs="+", type=int, default=None, metavar="PX",
        help="pixels, one or h w (as trained)")  # fmt: skip
    add("--batch-size", type=int, default=1, help="images at a time (%(default)s)")
    add("--data", default="", help="data yaml whose val images the files are checked on (pictures of data/images)")
    add("--half", action="store_true", help=f"weights in float16: {' '.join(that_have('half'))}")
    add("--dynamic", action="store_true", help=f"any batch size, height and width: {' '.join(that_have('dynamic'))}")
    add("--simplify", action="store_true", help="ONNX: simplify the graph with onnxslim")
    add("--nms", action="store_true",
        help="ONNX: NMS in the graph, which then gives (m, 7): image, corners, confidence, class")  # fmt: skip
    add("--conf-thres", type=float, default=0.25, help="--nms: confidence from which boxes count (%(default)s)")
    add("--iou-thres", type=float, default=0.45, help="--nms: overlap above which boxes are dropped (%(default)s)")
    add("--max-det", type=int, default=300, help="--nms: detections per image at most (%(default)s)")
    add("--opset", type=int, default=17, help="ONNX: version of its operators (%(default)s)")
    return parser.parse_args()


def main(opt: argparse.Namespace) -> None:
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, parse_opt())
