"""Prove on this machine that a run which is killed and resumed ends exactly like one that is not.

    python my_tools/check_resume.py                # the default set, small, three kills
    python my_tools/check_resume.py --kills 100 --epochs 6

Trains once undisturbed. Then trains with the same options, kills the process (SIGKILL: nothing can be cleaned up) at
random moments, reads every file that is then in its folder, resumes it, and so on. At the end it compares: every tensor
of best.pt and last.pt bit by bit, and every figure of results.csv but the times.
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

from utils.settings.flags import Parser
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
    speed("--workers", type=int, default=2, metavar="N", help="worker processes that load images, at most")
    speed("--amp", default="auto", choices=AMP_CHOICES, help="number format of the forward pass")
    more("--kills", type=int, default=3, metavar="N", help="how often to kill the training")
    more("--seed", type=int, default=0, help="seed of the random moments")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = parse_opt()  # --help and misspelt flags are answered before torch is imported

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
    """The command of a run to be compared."""
    words = ["--data", opt.data, "--cfg", opt.cfg, "--epochs", opt.epochs, "--imgsz", opt.imgsz, "--batch-size",
             opt.batch_size, "--workers", opt.workers, "--amp", opt.amp, "--device", "cpu", "--noplots",
             "--project", project, "--name", name, "--exist-ok"]  # fmt: skip
    return [sys.executable, str(ROOT / "train.py"), *map(str, words)]


def run_killed_after(command: list[str], seconds: float | None, log: Path) -> bool:
    """Run a command, kill it after so many seconds, with its children; returns whether it ended before by itself.

    Raises UserError if it failed.
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
        raise UserError(f"training ended with exit code {code}; its last words are in {log}")
    return True


def differences(folder_a: Path, folder_b: Path) -> list[str]:
    """What differs between two finished runs: names of tensors, rows of results.csv."""
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
    """The places at which two nested values differ, bit by bit; times are left out."""
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
    """The files of a killed run that do not hold what they should; what was being written has another name."""
    found = []
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".part"):
        try:
            if file.suffix == ".pt":
                load_checkpoint(file, training=file.name == "last.pt")
            elif file.suffix == ".yaml":
                load_yaml(file)
            elif file.suffix == ".csv" and any(len(row) != len(COLUMNS) - TIMES for row in read_figures(file)):
                raise UserError(f"{file}: has rows cut off")
        except UserError as e:
            found.append(str(e))
    return found


def read_figures(file: Path) -> list[list[str]]:
    """The rows of a results.csv without the columns of times."""
    with open(file, encoding="utf-8", newline="") as f:
        return [row[:-TIMES] for row in csv.reader(f)]


def time_of_epochs(file: Path) -> float:
    """The seconds that all epochs of a results.csv took."""
    with open(file, encoding="utf-8", newline="") as f:
        return sum(float(v) for row in list(csv.reader(f))[1:] for v in row[-TIMES:])


def run(opt: argparse.Namespace) -> Path:
    """Compare an undisturbed run with others, killed `opt.kills` times in all. Raises UserError if they differ."""
    project = increment_path(ROOT / "runs" / "check_resume" / "exp")
    log = project / "training.log"
    prepare_shapes(find_file(opt.data, ("data",), "--data"))  # or the first run would be taken to need that long
    LOGGER.info(f"an undisturbed run (its output goes to {log})")
    start = time.perf_counter()
    run_killed_after(train_command(opt, project, "whole"), None, log)
    whole = time.perf_counter() - start
    work = time_of_epochs(project / "whole" / "results.csv")
    LOGGER.info(f"  {whole:.1f} s, {work:.1f} s of them training")
    rng, kills, runs = random.Random(opt.seed), 0, 0
    while kills < opt.kills:
        runs += 1
        # some while it starts, most while it trains
        times = [rng.uniform(0.7 * (whole - work), whole - 0.5 * work) for _ in range(opt.kills - kills)]
        kills += kill_and_resume(opt, project, f"killed{runs}", times)
        if found := differences(project / "whole", project / f"killed{runs}"):
            raise UserError(f"{len(found)} differences, the first: {found[0]}; the runs are in {project}")
        LOGGER.info(f"  bit-identical, {kills} kills so far")
    LOGGER.info(f"{kills} kills of {runs} runs: no file unreadable after any, and at the end best.pt, last.pt and "
                f"results.csv bit-identical; the runs are in {project}")  # fmt: skip
    return project


def kill_and_resume(opt: argparse.Namespace, project: Path, name: str, times: list[float]) -> int:
    """Train to the end with a process killed after each of these seconds, or fewer; returns how many were killed."""
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
            ended = bool(content and content["finished"])  # killed while the process was taking itself apart
            where = f"last.pt goes on at epoch {content['epoch']}" if content else "before the first checkpoint"
            LOGGER.info(f"  {name}: killed after {seconds:.1f} s: {where}")
    return kills


def main(opt: argparse.Namespace) -> None:
    if not hasattr(os, "killpg"):
        raise UserError("check_resume.py kills processes as POSIX systems do; it does not run here")
    if opt.kills < 1:
        raise UserError(f"--kills {opt.kills}: at least 1")
    run(opt)


if __name__ == "__main__":
    run_script(main, OPT)
