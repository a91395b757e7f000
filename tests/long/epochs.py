"""Observe a long training from outside: memory, open files and the time per epoch must not grow.

    python tests/long/epochs.py --epochs 300 --plot runs/long_run.png

Reads Linux's /proc. The slopes are least-squares fits over the epochs from 3 on.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (2, 1)]

import numpy as np
from helpers import ROOT, write_yolo_set
from matplotlib.figure import Figure

from utils.training.logs import COLUMNS, TIMES

FIRST = 3  # first epoch from which all values should stay constant


@dataclass(frozen=True)
class Sample:
    """A measurement: epochs done, MiB of the main process, MiB of all worker processes, number of open files."""

    epoch: int
    main: float
    workers: float
    files: int


def memory(pid: int) -> float:
    """Return the anonymous memory of a process in MiB, which excludes shared libraries."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous:\s+(\d+)", text, re.M)[1]) / 1024


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(p) for p in listed]


def look(pid: int, csv_file: Path) -> Sample | None:
    """Return a sample, or None if the process has not started an epoch yet or is ending."""
    try:
        epoch = csv_file.read_text().count("\n") - 1
        below = children(pid)
        return Sample(epoch, memory(pid), sum(map(memory, below)), len(os.listdir(f"/proc/{pid}/fd")))
    except (OSError, TypeError):
        return None


def train(epochs: int, images: int, folder: Path, pause: float = 0.5) -> tuple[list[Sample], np.ndarray]:
    """Train, with a sample every `pause` seconds.

    Returns:
        the samples, and each epoch's seconds for images, steps and validation
    """
    data = write_yolo_set(folder / "set", images)
    command = [sys.executable, "train.py", "--data", data, "--epochs", epochs, "--batch-size", 16, "--imgsz", 64,
               "--workers", 1, "--device", "cpu", "--patience", 0, "--noplots", "--project",
               folder / "runs"]  # fmt: skip
    log = folder / "log.txt"
    samples: list[Sample] = []
    with open(log, "w") as f:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=f, stderr=f,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        while process.poll() is None:
            time.sleep(pause)
            if (sample := look(process.pid, folder / "runs/exp/results.csv")) and sample.epoch < epochs:
                samples.append(sample)
    if process.returncode:
        sys.exit(f"train.py ended with {process.returncode}: {log.read_text()[-2000:]}")
    with open(folder / "runs/exp/results.csv", newline="") as f:
        rows = list(csv.reader(f))
    if len(rows) != epochs + 1 or any(len(r) != len(COLUMNS) for r in rows):
        sys.exit(f"results.csv has {len(rows) - 1} rows instead of {epochs}")
    return samples, np.array([[float(v) for v in row[-TIMES:]] for row in rows[1:]])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the fitted line, per 100 units of x."""
    return float(np.polyfit(x, y, 1)[0] * 100)


def report(samples: list[Sample], seconds: np.ndarray, plot: str) -> dict[str, float]:
    """Print a table, draw a plot if a path is given, and return the slopes."""
    late = [s for s in samples if s.epoch >= FIRST]
    epochs = [s.epoch for s in late]
    lines = {"main process, MiB": [s.main for s in late], "loader processes, MiB": [s.workers for s in late],
             "open files": [float(s.files) for s in late]}  # fmt: skip
    times = seconds[FIRST:].sum(1)
    found = {what: slope(epochs, values) for what, values in lines.items()}
    found["time of an epoch, s"] = slope(np.arange(FIRST, len(seconds)), times)
    print("| | epoch 3 | last | slope per 100 epochs |\n| --- | ---: | ---: | ---: |")
    for what, values in [*lines.items(), ("time of an epoch, s", times)]:
        few = max(len(values) // 20, 1)
        print(f"| {what} | {np.median(values[:few]):.4g} | {np.median(values[-few:]):.4g} | {found[what]:+.3g} |")
    print(f"results.csv: {len(seconds)} rows of {len(seconds)}")
    if plot:
        figure = Figure(figsize=(9, 5), layout="constrained")
        top, bottom = figure.subplots(2, sharex=True)
        for what, values in list(lines.items())[:2]:
            top.plot(epochs, values, label=what)
        top.set(ylabel="MiB", ylim=(0, None))
        top.legend(fontsize=8)
        bottom.plot(seconds.sum(1), linewidth=0.8)
        bottom.set(xlabel="epoch", ylabel="seconds of an epoch", ylim=(0, None))
        Path(plot).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(plot, dpi=110)
    return found


def main() -> None:
    """Train in a temporary folder and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--plot", default="", help="file for the plot")
    opt = parser.parse_args()
    if opt.epochs < FIRST + 3:
        parser.error(f"--epochs {opt.epochs}: a slope from epoch {FIRST} on needs at least {FIRST + 3} epochs")
    with tempfile.TemporaryDirectory() as folder:
        report(*train(opt.epochs, opt.images, Path(folder)), opt.plot)


if __name__ == "__main__":
    main()
