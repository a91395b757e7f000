"""Draw the default data set of shapes, in VOC format.

    python my_tools/make_shapes.py                                  # the whole set, into ../datasets/shapes/VOCshapes
    python my_tools/make_shapes.py --samples 4 --out data/images    # a few larger images without annotations
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError
from utils.system.console import Parser, run_script
from utils.voc.shapes import IMAGES, OUT, SAMPLES_OUT, SIZE, make_samples, make_set


def run(out: str | Path = "", images: int = IMAGES, size: int = SIZE, seed: int = 0, samples: int = 0) -> Path:
    """Draw the VOC set, or with `samples` that many single pictures, and return the folder they are in.

    Raises UserError for values out of range and for a folder that holds something else.
    """
    for name, value, least in (("images", images, 10), ("size", size, 96), ("seed", seed, 0), ("samples", samples, 0)):
        if value < least:
            raise UserError(f"--{name} {value}: must be {least} or more")
    folder = Path(out or (SAMPLES_OUT if samples else OUT))
    if samples:
        make_samples(folder, samples, seed)
    else:
        make_set(folder, images, size, seed)
    return folder


def parse_opt(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description="draw the embedded data set of shapes in VOC format")
    parser.add_argument("--out", default="", help=f"folder to write (default {OUT}, with --samples {SAMPLES_OUT})")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of images in the set")
    parser.add_argument("--size", type=int, default=SIZE, help="longer side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another set")
    parser.add_argument("--samples", type=int, default=0, help="draw this many larger pictures instead of the set")
    return parser.parse_args(argv)


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, parse_opt())
