"""Attacks through names of files and classes, aimed at all output: console, CSV files, plots, HTML report."""

from __future__ import annotations

import csv
import html
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from exports import network
from helpers import write_yolo_set
from security.zoo import Attack

import detect
from models.weights.checkpoint import save_checkpoint, weights_content
from utils.draw.plots import plot_confusion, plot_labels
from utils.files import safe_name
from utils.report.html import _text
from utils.system.console import LOGGER

NAMES = {
    "a line break": "a\nerror: all is well",
    "terminal escape sequences": "a\x1b[2J\x1b]0;title\x07",
    "HTML": "<script>alert(1)</script>&lt;",
    "quotes and a shell command": "a'\"`$(touch ran)`",
    "percent format codes": "%s%n%(message)s%d",
    "a spreadsheet formula with =": "=cmd|' -C calc'!A0",
    "a spreadsheet formula with @": "@SUM(1+1)",
    "a right-to-left override character": "gpj.exe\u202ecat",
    "a matplotlib formula": "$\\frac{a}$",
}


def found_in(name: str, folder: Path) -> Any:
    """Run detect.py on an image of this name, with every kind of output."""
    content = weights_content(network(), 64)
    save_checkpoint(folder / "best.pt", content)
    (folder / "in").mkdir()
    write_yolo_set(folder / "set", 1)
    picture = f"{name.replace('/', '-')}.png"
    shutil.copy(folder / "set/images/train/000.png", folder / "in" / picture)
    (folder / "in/broken.png").write_bytes(b"")
    (folder / "in/broken.png").rename(folder / "in" / f"broken {picture}")
    out = detect.run(
        weights=str(folder / "best.pt"),
        source=str(folder / "in"),
        save_csv=True,
        save_txt=True,
        save_crop=True,
        device="cpu",
        project=str(folder / "runs"),
        imgsz=64,
    )
    with open(out / "predictions.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.reader(f))
    assert len(rows) > 1 and {len(r) for r in rows} == {3}
    assert {r[0] for r in rows[1:]} in ({picture}, {f"'{picture}"})
    assert not any(r[0].startswith(("=", "+", "-", "@")) for r in rows)
    assert (out / picture).is_file() and (out / "labels" / f"{picture[:-4]}.txt").is_file()


def logged(name: str, folder: Path) -> Any:
    LOGGER.warning(f"left out: {name}")


def drawn(name: str, folder: Path) -> Any:
    names = {0: name, 1: "b"}
    plot_labels(np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.5, 0.5, 0.2, 0.2]]), names, folder / "labels.jpg")
    plot_confusion(np.eye(3), names, folder / "confusion.png")


def reported(name: str, folder: Path) -> Any:
    text = _text(name)
    assert "<" not in text and '"' not in text and "\n" not in text and "\x1b" not in text
    assert "script" not in name or html.unescape(text).startswith("<script>")


def cropped(name: str, folder: Path) -> Any:
    """Create a folder of crops that is named after a class."""
    made = folder / safe_name(name) / "x"
    made.mkdir(parents=True)
    assert made.parent.parent == folder and made.resolve().is_relative_to(folder.resolve())


def _all(surface: str, feed: Callable, names: dict[str, str], outcome: str) -> list[Attack]:
    return [Attack(surface, what, partial(feed, name), "", outcome) for what, name in names.items()]


FOLDERS = {
    "`..`": "..",
    "an absolute path": "/etc/cron.d",
    "`../` inside the name": "a/../../b",
    "300 characters": "a" * 300,
    "only dots": "...",
}
ATTACKS = [
    *_all(
        "name of an image file",
        found_in,
        {k: v for k, v in NAMES.items() if "matplotlib formula" not in k},
        "printed with visible escapes, quoted in the CSV file",
    ),
    *_all("name in a warning", logged, NAMES, "printed on one line with visible escapes"),
    *_all("class name in a plot", drawn, NAMES, "drawn as plain text"),
    *_all("name in the HTML report", reported, NAMES, "shown as plain text"),
    *_all("class name as a folder name", cropped, FOLDERS, "a safe folder name is used"),
]
