"""Draw the default data set of shapes, in VOC format.

    python my_tools/make_shapes.py                                  # the whole set, into ../datasets/shapes/VOCshapes
    python my_tools/make_shapes.py --samples 4 --out data/images    # a few larger images without annotations
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.settings.flags import Parser

IMAGES, SIZE = 800, 160


def parse_opt(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    data, output = parser.group("data"), parser.group("output")
    data("--images", type=int, default=IMAGES, metavar="N", help="images in the dataset")
    data("--size", type=int, default=SIZE, metavar="PX", help="longer side of an image in pixels")
    data("--seed", type=int, default=0, help="another seed draws another dataset")
    data("--samples", type=int, default=0, metavar="N", help="draw N larger sample images instead of the dataset")
    output("--out", default="", metavar="FOLDER", shown="../datasets/shapes/VOCshapes; with --samples data/images",
           help="folder to write to")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    OPT = parse_opt()  # --help and misspelt flags are answered before OpenCV is imported

from utils.errors import UserError
from utils.system.console import run_script
from utils.voc.shapes import OUT, SAMPLES_OUT, make_samples, make_set


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


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
