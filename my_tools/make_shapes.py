"""Draw the default dataset of shapes in VOC format.

    python my_tools/make_shapes.py                                  # the whole dataset, in ../datasets/shapes/VOCshapes
    python my_tools/make_shapes.py --samples 4 --out data/images    # a few larger images without annotations
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.settings.flags import Parser, read_first
from utils.settings.values import from_code

IMAGES, SIZE = 800, 160


def parse_opt(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    data, output = parser.group("data"), parser.group("output")
    data("--images", type=int, default=IMAGES, metavar="N", help="images in the dataset")
    data("--size", type=int, default=SIZE, metavar="PX", help="longer side of an image in pixels")
    data("--seed", type=int, default=0, help="seed; each one gives a different dataset")
    data("--samples", type=int, default=0, metavar="N", help="draw N larger sample images instead of the dataset")
    output("--out", default="", metavar="FOLDER", shown="../datasets/shapes/VOCshapes; with --samples data/images",
           help="folder to write to")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow imports: --help and flag errors appear at once

from utils.errors import UserError
from utils.system.console import run_script
from utils.voc.shapes import OUT, SAMPLES_OUT, make_samples, make_set


@from_code("make_shapes.run")
def run(out: str | Path = "", images: int = IMAGES, size: int = SIZE, seed: int = 0, samples: int = 0) -> Path:
    """Draw the dataset or, with `samples`, that many single images, and return the folder with them.

    Raises UserError for values out of range and for a folder that contains other files.
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
