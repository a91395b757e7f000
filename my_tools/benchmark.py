"""Measure the speed of training, evaluation and inference, as ratios to baselines that are timed in turns with them.

    python my_tools/benchmark.py                                    # the default dataset, a few minutes
    python my_tools/benchmark.py --cases train loader --data VOC.yaml --rounds 9
    python my_tools/benchmark.py --cases gpu                        # training and inference on a GPU

Writes table.csv, models.md (a row per model; gpu.md for the case gpu) and chart.png to runs/benchmark/exp. A ratio is
the median over all rounds, given with its quartiles.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if any("gpu" in word for word in sys.argv[1:]):  # this case can do without some of the packages imported below
    from my_tools.benchmarking.gpu_packages import stand_in

    stand_in()

from utils.settings.flags import Parser
from utils.settings.options import AMP_CHOICES
from utils.settings.values import from_code

USUAL_CASES = ("train", "loader", "val", "infer", "detect", "scale")
CASE_NAMES = (*USUAL_CASES, "contention", "gpu")


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    data, model, speed, more = map(parser.group, ("data", "model", "speed", "more"))
    data("--data", default="shapes.yaml", metavar="YAML", help="dataset yaml, also looked for in data/")
    data("--imgsz", "--img", "--img-size", type=int, metavar="PX", shown="320; gpu: 640",
         help="image size in pixels; infer and detect use 640")  # fmt: skip
    model("--cfg", nargs="+", metavar="YAML", help="model yamls",
          shown="yolov5_shufflenet.yaml yolov5s.yaml; gpu: also yolov5l_slimneck.yaml")  # fmt: skip
    model("--weights", default="", metavar="PT", shown="an untrained model", help="trained model for val and detect")
    parser.add_output("runs/benchmark")
    parser.add_device()
    speed("--batch-size", "--batch", type=int, metavar="N", shown="16; gpu: 64", help="images per training step")
    speed("--workers", type=int, metavar="N", shown="8; gpu: one per core",
          help="maximum number of worker processes that load images")  # fmt: skip
    speed("--amp", default="auto", choices=AMP_CHOICES, help="number format of training")
    more("--cases", nargs="+", default=list(USUAL_CASES), choices=CASE_NAMES, shown=" ".join(USUAL_CASES),
         help=f"what to measure: {', '.join(CASE_NAMES)}")  # fmt: skip
    more("--rounds", type=int, default=5, metavar="N", help="rounds of timing; short cases get more")
    more("--budget", type=int, default=420, metavar="SECONDS", help="time for the case gpu")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = parse_opt()  # before the slow import of torch: --help and flag errors appear at once

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.inference.runtime import check_channels
from models.weights.checkpoint import find_weights, load_checkpoint
from my_tools.benchmarking import gpu
from my_tools.benchmarking.cases import (
    AS_DETECTED,
    END_TO_END,
    INFERRED,
    Conditions,
    Row,
    evaluation,
    inference,
    load_trained,
    loading,
    training,
)
from my_tools.benchmarking.contention import contention
from my_tools.benchmarking.engines import RUN_AS
from my_tools.benchmarking.files import detecting, scaling
from utils.errors import UserError, did_you_mean
from utils.files import MODEL_FOLDERS, ROOT, atomic_write, find_file, increment_path
from utils.settings.config import load_model_cfg
from utils.settings.dataset import load_data
from utils.system.console import LOGGER, run_script, shown
from utils.system.device import describe_device, select_device
from utils.voc.default_set import prepare_shapes

CASES: Mapping[str, Callable[[Conditions], list[Row]]] = MappingProxyType(
    dict(zip(CASE_NAMES, (training, loading, evaluation, inference, detecting, scaling, contention),
             strict=False)))  # fmt: skip
DEFAULTS = MappingProxyType({"cfg": ("yolov5_shufflenet.yaml", "yolov5s.yaml"), "imgsz": 320, "batch_size": 16,
                             "workers": 8})  # fmt: skip
LOOKED_AT = (AS_DETECTED, *RUN_AS)  # ways to run one image that have a column in models.md
HEADER = "%-8s %-48s %9s   %-34s %9s   %-22s %s"


def table(rows: Sequence[Row]) -> str:
    """Format the rows as text."""
    lines = [HEADER % ("case", "what", "ms", "against", "ms", "ratio (quartiles)", "target")]
    for r in rows:
        ratio = f"{r.ratio:.2f} ({r.low:.2f} to {r.high:.2f})" + (" times as fast" if r.fast else "")
        lines.append(HEADER % (r.case, r.what, f"{r.ms:.2f}", r.yardstick, f"{r.yardstick_ms:.2f}", ratio, aim(r)))
    return "\n".join(lines)


def aim(row: Row) -> str:
    """Return a row's target and whether it is met, as text."""
    if row.target is None:
        return ""
    return f"{'>=' if row.fast else '<='} {row.target:g}: {'met' if row.met else 'missed'}"


def by_model(rows: Sequence[Row]) -> str:
    """Return Markdown tables with a row per model: the time of one image, and the images per second in training."""
    measured: dict[str, dict[str, Row]] = {}
    for row in rows:
        name, _, what = row.what.partition(", ")
        if what in (END_TO_END, *LOOKED_AT):
            measured.setdefault(name, {})[what] = row
    columns = [what for what in LOOKED_AT if any(what in of for of in measured.values())]
    one = ["| model | eager float32, ms | " + " | ".join(f"{what}, ms (part)" for what in columns) + " |",
           f"| --- {'| ---: ' * (1 + len(columns))}|"]  # fmt: skip
    many = ["| model | training, plain step, images/s | train.py, images/s | times as fast |",
            f"| --- {'| ---: ' * 3}|"]  # fmt: skip
    for name, of in measured.items():
        if AS_DETECTED in of:
            cells = [f"{of[what].ms:.1f} ({of[what].ratio:.2f})" if what in of else "-" for what in columns]
            one.append(f"| {name} | {of[AS_DETECTED].yardstick_ms:.1f} | {' | '.join(cells)} |")
        if END_TO_END in of:
            r = of[END_TO_END]
            many.append(f"| {name} | {1e3 / r.yardstick_ms:.1f} | {1e3 / r.ms:.1f} | {r.ratio:.2f} |")
    return "\n\n".join("\n".join(lines) for lines in (one, many) if len(lines) > 2)


def draw_chart(rows: Sequence[Row], title: str, file: Path) -> None:
    """Draw a bar per row, with quartiles and target, in two panels: one where more is better, one where less is."""
    kinds = [([r for r in rows if r.fast], "times as fast as the yardstick (more is better)"),
             ([r for r in rows if not r.fast], "part of the yardstick's time (less is better)")]  # fmt: skip
    kinds = [kind for kind in kinds if kind[0]]
    figure = Figure(figsize=(10, 1.2 + 0.34 * len(rows) + 0.8 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=[len(kind[0]) + 1 for kind in kinds])[:, 0]
    for axis, (group, label) in zip(axes, kinds, strict=True):
        for y, r in enumerate(group):
            color = {None: "#8a929b", True: "#1fab7c", False: "#bf3900"}[r.met]
            spread = [[r.ratio - r.low], [r.high - r.ratio]]
            axis.barh(y, r.ratio, color=color, height=0.62, xerr=spread, error_kw={"ecolor": "#1b1f24", "lw": 1})
            axis.text(r.high, y, f" {r.ratio:.2f}", va="center", fontsize=8, weight="bold")
            if r.target is not None:
                axis.plot([r.target] * 2, [y - 0.42, y + 0.42], color="#1b1f24", lw=2)
                axis.text(1.01, y, aim(r), va="center", fontsize=8, color=color, transform=axis.get_yaxis_transform())
        axis.axvline(1, color="#59626d", lw=0.8, ls=":")
        axis.set_yticks(range(len(group)), [f"{r.case}: {r.what}\nagainst {r.yardstick}" for r in group], fontsize=7)
        axis.set_ylim(len(group) - 0.4, -0.6)
        axis.set_xlim(0, 1.1 * max(max(r.high, r.target or 0, 1) for r in group))
        axis.set_xlabel(label, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}\nbars: medians of the rounds, with quartiles; vertical lines: targets", fontsize=9)
    with atomic_write(file) as f:
        figure.savefig(f, dpi=130, format="png")


@from_code("benchmark.run")
def run(
    cases: Sequence[str] = USUAL_CASES, cfg: Sequence[str] | None = None, weights: str = "", data: str = "shapes.yaml",
    imgsz: int | None = None, batch_size: int | None = None, rounds: int = 5, device: str = "",
    workers: int | None = None, amp: str = "auto", budget: int = gpu.BUDGET,
    project: str = str(ROOT / "runs/benchmark"), name: str = "exp", exist_ok: bool = False,
) -> list[Row]:  # fmt: skip
    """Measure, write table.csv, models.md and chart.png, and return the rows. Raises UserError for bad input."""
    alone = tuple(cases) == ("gpu",)
    cfg, imgsz, batch_size, workers = (
        value if value is not None else (gpu.DEFAULTS if alone else DEFAULTS)[flag] for flag, value in
        (("cfg", cfg), ("imgsz", imgsz), ("batch_size", batch_size), ("workers", workers)))  # fmt: skip
    if min(imgsz, batch_size, rounds, budget) < 1 or workers < 0:
        raise UserError("--imgsz, --batch-size, --budget and --rounds must be 1 or more, --workers 0 or more")
    for case in cases:
        if case not in CASE_NAMES:
            raise UserError(f"--cases {case}{did_you_mean(case, CASE_NAMES)}: one of {', '.join(CASE_NAMES)}")
    where = select_device(device)
    if "gpu" in cases:
        gpu.check_device(device, where)
    config = load_data(data)
    if not alone:
        prepare_shapes(config.yaml_file)
    file = find_weights(weights) if weights else None
    conditions = Conditions(config, [str(find_file(c, MODEL_FOLDERS, "--cfg")) for c in cfg], file, imgsz, batch_size,
                            rounds, where, workers, amp)  # fmt: skip
    for c in conditions.cfgs:
        check_channels(load_model_cfg(c), c)
    if file:  # report a bad file now, not after minutes
        load_trained(conditions) if "val" in cases else load_checkpoint(file)
    title = f"{describe_device(where)}; {config.yaml_file.stem}, {imgsz} px, training in batches of {batch_size}"
    title += f"; infer and detect at {INFERRED} px" * any(case in cases for case in ("infer", "detect"))
    LOGGER.info(title)
    rows: list[Row] = []
    folder = None
    for case in cases:
        if case == "gpu":
            folder = folder or increment_path(Path(project) / name, exist_ok)
            rows += gpu.measure(conditions, folder, budget, partial(write_more, tuple(rows), title, folder))
            continue
        LOGGER.info(f"\n{case}: {rounds} rounds")
        new = CASES[case](conditions)
        LOGGER.info(table(new))
        rows += new
        folder = folder or increment_path(Path(project) / name, exist_ok)
        write(rows, title, folder)
    LOGGER.info("\n\n".join(filter(None, ("", table(rows), by_model(rows), f"results in {shown(folder)}"))))
    return rows


def write_more(before: Sequence[Row], title: str, folder: Path, rows: Sequence[Row]) -> None:
    """Write the results of the cases `before` and the rows of a case that is not finished."""
    if before or rows:
        write([*before, *rows], title, folder)


def write(rows: Sequence[Row], title: str, folder: Path) -> None:
    """Write the results measured so far."""
    with atomic_write(folder / "table.csv", "w") as f:
        writer = csv.DictWriter(f, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
    if summary := by_model(rows):
        with atomic_write(folder / "models.md", "w") as f:
            f.write(f"{title}\n\n{summary}\n")
    draw_chart(rows, title, folder / "chart.png")


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
