"""A run's results table on disk: `results.csv`, with YOLOv5's columns."""

from __future__ import annotations

import csv
from pathlib import Path

from utils.errors import UserError
from utils.files import atomic_write

COLUMNS = (
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss",
    "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2",
)  # fmt: skip


class ResultsLog:
    """The rows of results.csv; every added row rewrites the file, so that it is never seen half written."""

    def __init__(self, path: Path, rows: list[list[float]] | None = None) -> None:
        self.path = path
        self.rows = rows or []

    def add(self, row: list[float]) -> None:
        """Add one epoch's row, in the order of COLUMNS. Raises UserError if the disk does not take it."""
        self.rows.append([int(row[0]), *(float(f"{v:.5g}") for v in row[1:])])
        try:
            with atomic_write(self.path, "w", newline="") as f:
                writer = csv.writer(f)
                writer.writerow(COLUMNS)
                writer.writerows(self.rows)
        except OSError as e:
            raise UserError(f"{self.path}: cannot be written ({e.strerror})") from e
