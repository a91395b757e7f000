"""The results table of a run, `results.csv`: YOLOv5's columns, and the seconds spent in each epoch.

With an anchor-free head, the columns `obj_loss` hold its distribution focal loss.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import atomic_write

COLUMNS = (
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss",
    "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2",
    "time/data", "time/step", "time/val",
)  # fmt: skip
TIMES = 3  # number of last columns, the only ones that differ between two runs with the same seed


def progress_header(parts: Sequence[str]) -> str:
    """Return the heading of the progress bars, with the names of the parts of the loss."""
    names = ("Epoch", "GPU_mem", *(f"{part}_loss" for part in parts), "Instances", "Size")
    return ("\n" + "%11s" * len(names)) % names


def results_row(epoch: int, values: Sequence[float]) -> list[float]:
    """Return the row of an epoch, in the order of COLUMNS, rounded to five significant digits."""
    return [epoch, *(float(f"{v:.5g}") for v in values)]


def write_results(path: Path, rows: Sequence[Sequence[float]]) -> None:
    """Write results.csv atomically. Raises UserError if the file cannot be written."""
    try:
        with atomic_write(path, "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e
