"""Measure the start-up cost of a dataset with very many label files: first start, second start, one changed label.

    python tests/long/many_labels.py --images 100000
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (2, 1)]

import cv2
import numpy as np

from utils.data.labels import LabelIndex, load_labels

PICTURES = 100  # number of distinct images; the others are hard links to these


def make_set(folder: Path, images: int) -> None:
    """Create small images in folders of 1,000, each with a label file of one to nine objects."""
    rng = np.random.default_rng(0)
    first = []
    for k in range(images):
        image = folder / f"images/{k // 1000:03d}/{k:07d}.jpg"
        label = folder / f"labels/{k // 1000:03d}/{k:07d}.txt"
        if k % 1000 == 0:
            image.parent.mkdir(parents=True)
            label.parent.mkdir(parents=True)
        if k < PICTURES:
            cv2.imwrite(str(image), rng.integers(0, 255, (48, 64, 3), np.uint8))
            first.append(image)
        else:
            os.link(first[k % PICTURES], image)
        boxes = rng.uniform(0.2, 0.4, (1 + k % 9, 4))
        label.write_text("".join(f"{k % 20} {' '.join(f'{v:.6f}' for v in box)}\n" for box in boxes))


def resident() -> float:
    """Return the resident memory of this process in MiB; 0 where /proc is not available."""
    try:
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:
        return 0.0


def timed(call: Callable[[], LabelIndex]) -> tuple[LabelIndex, float, float]:
    """Return the result of a call, its seconds, and by how many MiB the process has grown."""
    before, start = resident(), time.perf_counter()
    found = call()
    return found, time.perf_counter() - start, resident() - before


def measure(folder: Path, images: int) -> list[tuple[str, float, float]]:
    """Return (description, seconds, MiB growth) of each start. Raises AssertionError if a change is not noticed."""
    def load() -> LabelIndex:
        return load_labels((folder / "images",), 20)

    rows = []
    first, *cost = timed(load)
    rows.append(("first start: every image decoded, every label checked", *cost))
    second, *cost = timed(load)
    rows.append(("second start: from the cache", *cost))
    assert np.array_equal(first.values, second.values) and len(first) == images
    changed = folder / "labels" / Path(first.file(images // 2)).relative_to(folder / "images").with_suffix(".txt")
    changed.write_text(changed.read_text() + "7 0.5 0.5 0.25 0.25\n")
    third, *cost = timed(load)
    rows.append(("start after one label file has changed: all files are read again", *cost))
    assert len(third.values) == len(first.values) + 1 and third.labels(images // 2)[-1, 0] == 7
    arrays = sum(a.nbytes for a in (third.files, third.shapes, third.values, third.offsets)) / 2**20
    rows.append((f"the arrays of {len(third.values):,} objects, which loader processes share", 0.0, arrays))
    return rows


def main() -> None:
    """Measure in a temporary folder and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    opt = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_set(Path(folder), opt.images)
        print("| | seconds | MiB more |\n| --- | ---: | ---: |")
        for what, seconds, size in measure(Path(folder), opt.images):
            print(f"| {what} | {seconds:.1f} | {size:.0f} |")


if __name__ == "__main__":
    main()
