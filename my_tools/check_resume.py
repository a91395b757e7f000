"""Check that a training that is killed and resumed ends with exactly the same results as an undisturbed one.

    python my_tools/check_resume.py                # the default dataset, small, three kills
    python my_tools/check_resume.py --kills 100 --epochs 6

First trains undisturbed. Then trains with the same options, kills the process at a random time (SIGKILL: no cleanup is
possible), reads every file in its folder, resumes the run, and repeats this. Finally compares every tensor of best.pt
and last.pt bit by bit, and every value of results.csv except the times.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.settings.flags import Parser, read_first
from utils.settings.options import AMP_CHOICES


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    data, model, optimisation, speed, more = map(parser.group, ("data", "model", "optimisation", "speed", "more"))
    data("--data", default="shapes.yaml", metavar="YAML", help="dataset yaml, also looked for in data/")
    data("--imgsz", type=int, default=64, metavar="PX", help="image size in pixels")
    model("--cfg", default="yolov5_shufflenet.yaml", metavar="YAML", help="model yaml")
    optimisation("--epochs", type=int, default=3, metavar="N", help="number of epochs")
    optimisation("--batch-size", type=int, default=32, metavar="N", help="images per step")
    speed("--workers", type=int, default=2, metavar="N", help="maximum number of worker processes that load images")
    speed("--amp", default="auto", choices=AMP_CHOICES, help="number format of the forward pass")
    more("--kills", type=int, default=3, metavar="N", help="how often to kill the training")
    more("--seed", type=int, default=0, help="seed of the random times")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import torch
from torch import Tensor

from models.weights.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.files import ROOT, find_file, increment_path
from utils.settings.config import load_yaml
from utils.system.console import LOGGER, run_script
from utils.training.logs import COLUMNS, TIMES
from utils.voc.default_set import prepare_shapes


def train_command(opt: argparse.Namespace, project: Path, name: str) -> list[str]:
    """Return the command that starts a run to be compared."""
    words = ["--data", opt.data, "--cfg", opt.cfg, "--epochs", opt.epochs, "--imgsz", opt.imgsz, "--batch-size",
             opt.batch_size, "--workers", opt.workers, "--amp", opt.amp, "--device", "cpu", "--noplots",
             "--project", project, "--name", name, "--exist-ok"]  # fmt: skip
    return [sys.executable, str(ROOT / "train.py"), *map(str, words)]


def run_killed_after(command: list[str], seconds: float | None, log: Path) -> bool:
    """Run a command; if it takes longer than `seconds`, kill it with its children. Return whether it ended by itself.

    seconds: None means no limit. Raises UserError if the command fails.
    """
    with open(log, "a", encoding="utf-8") as f:
        process = subprocess.Popen(command, stdout=f, stderr=f, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise UserError(f"the training failed with exit code {code}; its output is in {log}")
    return True


def differences(folder_a: Path, folder_b: Path) -> list[str]:
    """Return what differs between two finished runs: names of tensors, rows of results.csv."""
    found = []
    for file in ("best.pt", "last.pt"):
        a, b = (load_checkpoint(folder / "weights" / file) for folder in (folder_a, folder_b))
        parts = ["model"] if file == "best.pt" else ["model", "training"]
        for part in parts:
            found += [f"{file}: {key}" for key in unequal(a[part], b[part], part)]
    rows_a, rows_b = (read_figures(folder / "results.csv") for folder in (folder_a, folder_b))
    if len(rows_a) != len(rows_b):
        found.append(f"results.csv: {len(rows_a)} and {len(rows_b)} rows")
    found += [f"results.csv: row {i}" for i, (x, y) in enumerate(zip(rows_a, rows_b, strict=False)) if x != y]
    return found


def unequal(a: Any, b: Any, where: str) -> list[str]:
    """Return the paths at which two nested values differ, compared bit by bit; times are ignored."""
    if isinstance(a, Tensor):
        return [] if isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        lacking = [f"{where}.{k}" for k in a.keys() ^ b.keys()]
        shared = [k for k in a if k in b and k not in ("seconds", "rows")]
        return lacking + [d for k in shared for d in unequal(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in unequal(x, y, f"{where}.{i}")]
    return [] if a == b else [where]


def unreadable(folder: Path) -> list[str]:
    """Return an error message for each invalid file of a killed run; unfinished files have the suffix .part."""
    found = []
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".part"):
        try:
            if file.suffix == ".pt":
                load_checkpoint(file, training=file.name == "last.pt")
            elif file.suffix == ".yaml":
                load_yaml(file)
            elif file.suffix == ".csv" and any(len(row) != len(COLUMNS) - TIMES for row in read_figures(file)):
                raise UserError(f"{file}: has truncated rows")
        except UserError as e:
            found.append(str(e))
    return found


def read_figures(file: Path) -> list[list[str]]:
    """Return the rows of a results.csv without the time columns."""
    with open(file, encoding="utf-8", newline="") as f:
        return [row[:-TIMES] for row in csv.reader(f)]


def time_of_epochs(file: Path) -> float:
    """Return the total time in seconds of all epochs in a results.csv."""
    with open(file, encoding="utf-8", newline="") as f:
        return sum(float(v) for row in list(csv.reader(f))[1:] for v in row[-TIMES:])


def run(opt: argparse.Namespace) -> Path:
    """Compare an undisturbed run with runs killed `opt.kills` times in all. Raises UserError if they differ."""
    project = increment_path(ROOT / "runs" / "check_resume" / "exp")
    log = project / "training.log"
    prepare_shapes(find_file(opt.data, ("data",), "--data"))  # not part of the time of the first run
    LOGGER.info(f"an undisturbed run (its output goes to {log})")
    start = time.perf_counter()
    run_killed_after(train_command(opt, project, "whole"), None, log)
    whole = time.perf_counter() - start
    work = time_of_epochs(project / "whole" / "results.csv")
    LOGGER.info(f"  {whole:.1f} s, of which {work:.1f} s training")
    rng, kills, runs = random.Random(opt.seed), 0, 0
    while kills < opt.kills:
        runs += 1
        # a few kills during the start, most during the training
        times = [rng.uniform(0.7 * (whole - work), whole - 0.5 * work) for _ in range(opt.kills - kills)]
        kills += kill_and_resume(opt, project, f"killed{runs}", times)
        if found := differences(project / "whole", project / f"killed{runs}"):
            raise UserError(f"{len(found)} differences, the first: {found[0]}; the runs are in {project}")
        LOGGER.info(f"  bit-identical, {kills} kills so far")
    LOGGER.info(f"{kills} kills in {runs} runs: every file was readable after each, and at the end best.pt, last.pt "
                f"and results.csv were bit-identical; the runs are in {project}")  # fmt: skip
    return project


def kill_and_resume(opt: argparse.Namespace, project: Path, name: str, times: list[float]) -> int:
    """Train to the end, killing a process after each of `times` in seconds; return the number of kills made."""
    last, kills, ended = project / name / "weights" / "last.pt", 0, False
    while not ended:
        resume = [sys.executable, str(ROOT / "train.py"), "--resume", str(last)]
        command = resume if last.exists() else train_command(opt, project, name)
        seconds = times[kills] if kills < len(times) else None
        ended = run_killed_after(command, seconds, project / "training.log")
        if not ended:
            kills += 1
            if bad := unreadable(project / name):
                raise UserError(f"after {kills} kills: {bad[0]}; the run is in {project}")
            content = load_checkpoint(last)["training"] if last.exists() else None
            ended = bool(content and content["finished"])  # killed while exiting, after the last save
            where = f"last.pt continues at epoch {content['epoch']}" if content else "before the first checkpoint"
            LOGGER.info(f"  {name}: killed after {seconds:.1f} s: {where}")
    return kills


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    if not hasattr(os, "killpg"):
        raise UserError("check_resume.py needs the process groups of POSIX systems; it does not run here")
    if opt.kills < 1:
        raise UserError(f"--kills {opt.kills}: must be 1 or more")
    run(opt)


if __name__ == "__main__":
    run_script(main, OPT)
