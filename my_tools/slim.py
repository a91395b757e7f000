"""Slim a trained detector: replace convolutions by lighter ones, initialized from the trained weights.

    python my_tools/slim.py --weights best.pt --to slimneck --data VOC.yaml                 # GSConv in the neck
    python my_tools/slim.py --weights best.pt --to slimconv --layers all --data VOC.yaml    # grouped, then 1x1 conv

With --data the new layers are fitted to the outputs of the original layers on some training images (labels are not
used), and the accuracy is measured before and after. Fine-tune the result with train.py; with the original as its
--teacher it learns what that one finds.
"""

from __future__ import annotations

import argparse
import copy
import csv
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, did_you_mean
from utils.files import ROOT
from utils.settings.flags import Parser, options_from, read_first


@dataclass
class Options:
    """The flags, with their names in code. Raises UserError for values out of range."""

    weights: str = ""
    to: str = ""
    layers: str = "neck"
    data: str = ""
    imgsz: int | None = None
    group_size: int = 1
    batches: int = 16
    batch_size: int = 16
    steps: int = 100
    max_error: float | None = None
    seed: int = 0
    device: str = ""
    workers: int = 8
    project: str = str(ROOT / "runs/slim")
    name: str = "exp"
    exist_ok: bool = False

    def __post_init__(self) -> None:
        self.layers = str(self.layers)
        if not self.weights:
            raise UserError("--weights is missing: give the checkpoint of a trained model")
        self.weights = str(find_weights(self.weights))
        if self.exist_ok and Path(self.weights).resolve() == (self.folder / "weights/slim.pt").resolve():
            raise UserError(f"--exist-ok: {self.weights} would be written over itself; give another --name")
        if self.to not in KINDS:
            raise UserError(f"--to {self.to}: one of {', '.join(KINDS)}{did_you_mean(self.to, KINDS)}")
        if min(self.group_size, self.batches, self.batch_size) < 1 or min(self.steps, self.workers, self.seed) < 0:
            raise UserError("--group-size, --batches and --batch-size must be 1 or more, --steps, --workers and --seed "
                            "0 or more")  # fmt: skip
        if self.max_error is not None and not self.max_error > 0:
            raise UserError(f"--max-error {self.max_error} must be above 0; 0.25 keeps the original of layers that "
                            "lose more than a quarter")  # fmt: skip
        if self.imgsz is not None and self.imgsz < 1:
            raise UserError(f"--imgsz {self.imgsz}: must be 1 or more pixels")

    @property
    def folder(self) -> Path:
        """The folder of the results, if it does not exist yet or may be reused."""
        return Path(self.project) / self.name


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, Options)
    data, model, optimisation, speed, more = map(parser.group, ("data", "model", "optimisation", "speed", "more"))
    data("--data", metavar="YAML", help="dataset yaml to fit and to evaluate on, also looked for in data/")
    data("--imgsz", "--img", "--img-size", type=int, metavar="PX", shown="as trained", help="image size in pixels")
    model("--weights", metavar="PT", shown="required", help="checkpoint of a trained model, or the folder of a run")
    model("--to", metavar="KIND", shown="required",
          help="slimneck: Conv -> GSConv, C3 -> VoVGSCSP; slimconv: Conv -> SlimNeck, C3 -> C3Slim")  # fmt: skip
    model("--layers", metavar="LAYERS", help="layers to replace: neck, all, or numbers such as 10-23 or 10,13,17-20")
    model("--group-size", type=int, metavar="N",
          help="slimconv: channels per group of the grouped convolution; more fit better but cost more")  # fmt: skip
    model("--max-error", type=float, metavar="X", help="keep layers whose replacement loses more than this share")
    optimisation("--batches", type=int, metavar="N", help="number of batches of training images to fit to")
    optimisation("--batch-size", type=int, metavar="N", help="images per batch")
    optimisation("--steps", type=int, metavar="N",
                 help="steps of Adam on all new layers jointly, after each was fitted separately")  # fmt: skip
    parser.add_output("runs/slim")
    parser.add_device()
    speed("--workers", type=int, metavar="N", help="maximum number of worker processes that load images")
    more("--seed", type=int, help="seed for choosing the images")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import numpy as np
import torch
from torch import Tensor

import val
from models.inference.runtime import DEFAULT_IMGSZ, Runtime, check_img_size
from models.slimming.reconstruct import Fit, SideBySide, fit_layer, held_bytes, parts, polish
from models.slimming.surgery import KINDS, Swap, parse_layers, plan_swaps, slim_config, transplant, unexplained_kernel
from models.weights.checkpoint import (
    find_weights,
    load_checkpoint,
    model_from_checkpoint,
    save_checkpoint,
    weights_content,
    weights_size,
)
from models.weights.transfer import with_classes
from models.yolo import DetectionModel
from utils.data.dataset import DetectionDataset
from utils.data.labels import index_split
from utils.data.loader import batches_of, close_loader, create_loader
from utils.files import atomic_write, increment_path
from utils.settings.config import save_yaml
from utils.settings.dataset import DataConfig, load_data
from utils.settings.options import ValOptions
from utils.system.console import LOGGER, quoted, run_script, shown
from utils.system.device import describe_device, seed_everything, select_device
from utils.system.profiling import count_gflops, time_in_turns
from utils.voc.default_set import prepare_shapes

HELD = 4 * 2**30  # limit of stored feature maps in bytes; batches that exceed it are not used
MEDIAN = 3  # index of the median time in `costs`
POOR = 0.25  # share of the output lost above which a layer counts as badly fitted


@dataclass(frozen=True)
class Figure:
    """A row of the comparison; digits: number of decimals."""

    name: str
    before: float
    after: float
    digits: int = 0


def run(**kwargs: Any) -> Path:
    """Slim a model with options named like the flags; return the folder with weights/slim.pt, model.yaml and tables.

    Raises UserError for bad input.
    """
    opt = options_from(Options, kwargs, "slim.run")
    device = select_device(opt.device)
    seed_everything(opt.seed)
    content = load_checkpoint(opt.weights)
    data = load_data(opt.data) if opt.data else None
    original = (with_classes(content, opt.weights, data.names, data.yaml_file.name) if data
                else model_from_checkpoint(content, opt.weights))  # fmt: skip
    original = original.to(device).requires_grad_(False)
    size = check_img_size(opt.imgsz or content.get("imgsz") or DEFAULT_IMGSZ, int(original.stride.max()))[0]
    swaps, left = plan_swaps(original, opt.to, parse_layers(opt.layers, original.yaml), opt.group_size)
    if left:
        named = (f"{i} {original.model[i].type} ({why})" for i, why in left.items())
        LOGGER.info(f"left as they are: {'; '.join(named)}")
    if data:
        prepare_shapes(data.yaml_file)
        options = ValOptions(data=opt.data, weights=opt.weights, imgsz=size, device=opt.device, workers=opt.workers,
                              noplots=True)  # fmt: skip
        split = val.load_split(data, options)
    else:
        LOGGER.warning("without --data the new layers are fitted to the old kernels alone: accuracy will be poor until "
                       "the model is fine-tuned; --data fits them to the outputs of the original")  # fmt: skip
    existed = opt.exist_ok and opt.folder.exists()
    folder = increment_path(opt.folder, opt.exist_ok)
    try:
        make_folder(folder / "weights")
        if data:
            slim, fits = fitted(original, swaps, sample(data, original, swaps, size, opt), opt)
        else:
            slim, fits = started(original, swaps, opt)
        slim_content = weights_content(slim, size, options=vars(opt))
        slim = model_from_checkpoint(slim_content).to(device)  # with the weights as saved, in half precision
        figures = costs(original, slim, size, device)
        if data:
            figures += accuracy(original, slim, size, split, options, device)
        LOGGER.info(comparison(figures, size, device))
        if figures[MEDIAN].after > figures[MEDIAN].before:
            LOGGER.warning("the slim model is not faster here: fewer operations do not always take less time; time it "
                           "on the target machine")  # fmt: skip
        write_all(folder, slim_content, layer_rows(original, fits, left), figures)
    except BaseException:
        if not existed:  # an existing folder may contain the user's files
            shutil.rmtree(folder, ignore_errors=True)
        raise
    tell(folder, fits, opt, size)
    return folder


def make_folder(path: Path) -> None:
    """Make a folder unless it exists. Raises UserError if there is a file of that name."""
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(f"{shown(path)} is a file, where the checkpoint's folder has to be: move it away") from None


def sample(data: DataConfig, model: DetectionModel, swaps: Sequence[Swap], size: int, opt: Options) -> list[Tensor]:
    """Return batches of letterboxed training images (b, 3, size, size) uint8; only the seed determines their order."""
    index = index_split(data, "train")
    per_image = held_bytes(model, [s.index for s in swaps], size)
    wanted, most = min(opt.batches, -(-len(index) // opt.batch_size)), HELD // (per_image * opt.batch_size)
    if most < wanted:
        LOGGER.warning(f"{max(most, 1)} of {wanted} batches are used: {opt.batch_size} images of {size} px take "
                       f"{per_image * opt.batch_size / 2**30:.1f} GiB in the layers to replace; a smaller --batch-size "
                       "or --imgsz allows more")  # fmt: skip
    dataset = DetectionDataset(index, size, opt.batch_size, seed=opt.seed)
    loader = create_loader(dataset, opt.batch_size, opt.workers, shuffle=True)
    try:
        return [images for _, (images, *_) in zip(range(max(min(most, wanted), 1)), batches_of(loader), strict=False)]
    finally:
        close_loader(loader)


def started(original: DetectionModel, swaps: Sequence[Swap], opt: Options) -> tuple[DetectionModel, list[Fit]]:
    """Build the light model from the kernels alone; return it and how much of the kernels each layer loses."""
    LOGGER.info(table_header("of the kernels"))
    slim, fits = transplant(original, swaps), []
    for swap in swaps:
        new = slim.model[swap.index]
        share = unexplained_kernel(new, original.model[swap.index])
        fits.append(Fit(swap, new.np, share, share, opt.max_error is None or share <= opt.max_error))
        LOGGER.info(table_row(original, fits[-1]))
    kept = [f.swap for f in fits if f.kept]
    check_some(kept, fits)
    return transplant(original, kept), fits


def fitted(
    original: DetectionModel, swaps: Sequence[Swap], batches: Sequence[Tensor], opt: Options
) -> tuple[DetectionModel, list[Fit]]:
    """Fit the light model to the outputs of the original on batches of images; return it and the fit of each layer."""
    device = next(original.parameters()).device
    if device.type == "mps":  # MPS has no float64
        original = copy.deepcopy(original).to("cpu")
    fitting, measuring = (sum(map(len, batches[part])) for part in parts(len(batches)))
    LOGGER.info(f"fitting to {fitting} training images, measured on {measuring}"
                + (" apart from these" if len(batches) > 1 else ""))  # fmt: skip
    if len(batches) == 1:
        LOGGER.warning("the same batch is used to fit and to measure, so the losses below are too low: give more "
                       "--batches or a smaller --batch-size")  # fmt: skip
    LOGGER.info(table_header("of the output"))
    slim = transplant(original, swaps).requires_grad_(False)
    walk, fits = SideBySide(slim, original, swaps[0].index, batches), []
    for swap in swaps:
        fits.append(fit_layer(walk, swap, opt.max_error))
        LOGGER.info(table_row(original, fits[-1]))
    kept = [f.swap for f in fits if f.kept]
    check_some(kept, fits)
    if opt.steps:
        before, after = polish(walk, [s.index for s in kept], opt.steps)
        LOGGER.info(f"all together, {opt.steps} steps: {before:.3f} -> {after:.3f} unexplained at the head's inputs"
                    + ("" if after < before else ", so these steps were undone"))  # fmt: skip
    result = DetectionModel(slim_config(original, kept), ch=original.yaml.get("ch", 3))
    result.names = dict(original.names)
    result.load_state_dict(slim.state_dict())
    return result.to(device).eval(), fits


def check_some(kept: Sequence[Swap], fits: Sequence[Fit]) -> None:
    """Raise UserError if no layer is to be replaced."""
    if not kept:
        raise UserError(f"every layer is above --max-error, the best with {min(f.lost for f in fits):.3f}: "
                        "nothing is replaced")  # fmt: skip


# --- results ---------------------------------------------------------------------------------------------------------


def costs(original: DetectionModel, slim: DetectionModel, size: int, device: torch.device) -> list[Figure]:
    """Return the size and speed of both models; they are timed in turns on one image, with fused batch norms."""
    models = (original, slim)
    runtimes = [Runtime(copy.deepcopy(m), device, imgsz=size) for m in models]
    image = torch.zeros(1, original.yaml.get("ch", 3), size, size, dtype=torch.uint8)
    times = time_in_turns([lambda r=r: r.predict(image) for r in runtimes], budget=30) * 1e3
    return [
        Figure("parameters", *(sum(p.numel() for p in m.parameters()) for m in models)),
        Figure(f"GFLOPs at {size} px", *(count_gflops(m, size) for m in models), digits=2),
        Figure("file, MiB", *(weights_size(m, size) / 2**20 for m in models), digits=2),
        Figure("ms per image, median", *np.median(times, 0).tolist(), digits=1),
        Figure("ms per image, p95", *np.quantile(times, 0.95, 0).tolist(), digits=1),
    ]


def accuracy(
    original: DetectionModel, slim: DetectionModel, size: int, split: val.Split, options: ValOptions,
    device: torch.device,
) -> list[Figure]:  # fmt: skip
    """Return P, R, mAP50 and mAP50-95 of both models on the val split, as val.py computes them."""
    summaries = [val.evaluate_at(size, Runtime(copy.deepcopy(m), device, imgsz=size), split, options, None).summary
                 for m in (original, slim)]  # fmt: skip
    names = ("P", "R", "mAP50", "mAP50-95")
    return [Figure(name, float(a), float(b), 3) for name, a, b in zip(names, *summaries, strict=True)]


def comparison(figures: Sequence[Figure], size: int, device: torch.device) -> str:
    """Format the figures before and after as text."""
    lines = [f"\n{'':<22}{'before':>14}{'after':>14}"]
    for f in figures:
        change = f"{f.after / f.before - 1:+12.0%}" if f.before and f.digits < 3 else f"{f.after - f.before:+12.3f}"
        lines.append(f"{f.name:<22}{f.before:>14,.{f.digits}f}{f.after:>14,.{f.digits}f}{change}")
    return "\n".join([*lines, f"timed at {size} px, batch 1, float32, in turns; {describe_device(device)}"])


def table_header(what: str) -> str:
    """Return the header of the table of layers; what: the quantity that the last column is a share of."""
    return f"\n{'layer':>6}  {'from':<8}{'to':<10}{'parameters':>12}{'after':>12}{'unexplained':>13}{'lost':>8} {what}"


def table_row(original: DetectionModel, fit: Fit) -> str:
    """Return the row of one layer in that table."""
    swap, old = fit.swap, original.model[fit.swap.index].np
    left = "" if fit.kept else "  left as it was"
    return (f"{swap.index:>6}  {swap.old:<8}{swap.new:<10}{old:>12,}{fit.parameters:>12,}{fit.unexplained:>13.3f}"
            f"{fit.lost:>8.3f}{left}")  # fmt: skip


def layer_rows(original: DetectionModel, fits: Sequence[Fit], left: Mapping[int, str]) -> list[list[Any]]:
    """Return the rows of layers.csv, by layer; the last column has the reason if a layer is not replaced."""
    rows = [[f.swap.index, f.swap.old, f.swap.new, original.model[f.swap.index].np, f.parameters,
             f"{f.unexplained:.4f}", f"{f.lost:.4f}", "" if f.kept else "above --max-error"] for f in fits]  # fmt: skip
    rows += [[i, original.model[i].type, "", original.model[i].np, "", "", "", reason] for i, reason in left.items()]
    return sorted(rows)


def write_all(folder: Path, content: dict[str, Any], layers: list[list[Any]], figures: Sequence[Figure]) -> None:
    """Write the files of the results, the checkpoint last; each is written atomically."""
    tables = {
        "layers.csv": ["layer from to parameters_before parameters_after unexplained lost left".split(), *layers],
        "before_after.csv": [["figure", "before", "after"], *([f.name, f.before, f.after] for f in figures)],
    }
    for name, rows in tables.items():
        with atomic_write(folder / name, "w", newline="") as f:
            csv.writer(f).writerows(rows)
    save_yaml(folder / "model.yaml", {k: v for k, v in content["yaml"].items() if k not in ("ch", "yaml_file")})
    save_checkpoint(folder / "weights" / "slim.pt", content)


def tell(folder: Path, fits: Sequence[Fit], opt: Options, size: int) -> None:
    """Print where the files are, which layers fit badly, and the next command."""
    if bad := [str(f.swap.index) for f in fits if f.kept and f.lost > POOR]:
        LOGGER.warning(f"layers {', '.join(bad)} lose more than {POOR}; --max-error {POOR} leaves such layers "
                       "unchanged")  # fmt: skip
    weights = folder / "weights" / "slim.pt"
    LOGGER.info(f"weights   {shown(weights)}  ({weights.stat().st_size / 2**20:.1f} MiB)\n"
                f"results   {shown(folder)}\n"
                f"next      python train.py --weights {quoted(shown(weights))} --data "
                f"{quoted(opt.data or 'DATA.yaml')} --imgsz {size} --epochs 20 "
                f"--teacher {quoted(shown(Path(opt.weights)))}")  # fmt: skip


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
