"""What tests share: golden files, small drawn data sets, running a script as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import yaml

from utils.system import console

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name, allow_pickle=False) as z:
        return dict(z)


def shared(name: str) -> Path:
    """A file of the reference data beside the checkout; the test is skipped where it is not there."""
    path = ROOT.parent / "shared" / name
    if not path.exists():
        pytest.skip(f"needs shared/{name}, which lies beside the checkout where the project is developed")
    return path


def write_yolo_set(folder: Path, images: int = 12, size: tuple[int, int] = (96, 128), seed: int = 0) -> Path:
    """Grey pictures with one or two squares (class 0 red, class 1 blue) and their labels; returns the data yaml."""
    rng = np.random.default_rng(seed)
    height, width = size
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        for k in range(images):
            im = np.full((height, width, 3), 128, np.uint8)
            lines = []
            for cls in range(1 + k % 2):
                side = int(rng.integers(24, 40))
                x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
                im[y : y + side, x : x + side] = ((0, 0, 220), (220, 0, 0))[cls]
                lines.append(f"{cls} {(x + side / 2) / width} {(y + side / 2) / height} {side / width} {side / height}")
            cv2.imwrite(str(folder / "images" / split / f"{k:03d}.png"), im)
            (folder / "labels" / split / f"{k:03d}.txt").write_text("\n".join(lines) + "\n")
    file = folder / "squares.yaml"
    content = {"path": str(folder), "train": "images/train", "val": "images/val", "names": ["red", "blue"]}
    file.write_text(yaml.safe_dump(content))
    return file


def run_script(*args: object, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run `python args...` in the project's folder, as a user would, on as many threads as the tests use."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def run_main(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *words: object) -> int:
    """What `python module.py words...` does, in this process, which saves the start of another; its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
    try:
        console.run_script(module.main, module.parse_opt())
    except SystemExit as e:
        return int(e.code or 0)
    return 0
