"""Convert Pascal VOC, or any data set in its format, to YOLO labels and COCO annotations.

    python my_tools/voc2yolo.py                                         # the VOC zips in ../datasets/VOC/images
    python my_tools/voc2yolo.py --download --years 2007                 # fetch what is missing first
    python my_tools/voc2yolo.py --source BCCD.zip --name bccd           # a set of your own, its classes from the xml
    python my_tools/voc2yolo.py --source my_set --names cat dog --split 0.7 0.2 0.1

Writes images/<split>, labels/<split> and annotations/instances_<split>.json below --out. Sources are only read; what
is there already and right is left alone, so an interrupted run is completed by running it again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.settings.flags import Parser
from utils.voc.options import LINKS, Options


def parse_opt(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    data, output, more = map(parser.group, ("data", "output", "more"))
    data("--source", nargs="+", metavar="PATH", shown="VOC in ../datasets/VOC/images", help="zips or folders")
    data("--download", action="store_true", help="download the official VOC zips that are missing")
    data("--years", nargs="+", type=int, default=[2007, 2012], metavar="YEAR", help="years of VOC to convert")
    data("--names", nargs="+", metavar="CLASS", shown="those in the xml files, sorted", help="classes, in order")
    data("--split", nargs="+", type=float, default=[0.8, 0.2], metavar="X",
         help="shares of train, val and perhaps test, for a dataset without ImageSets")  # fmt: skip
    data("--seed", type=int, default=0, help="seed of that split")
    output("--out", metavar="FOLDER", shown="../datasets/VOC, or ../datasets/<name>", help="folder to write to")
    output("--name", shown="that of its folder", help="name of a dataset of your own")
    more("--box", default="exact", metavar="KIND",
         help="exact: VOC's definition of a box; legacy: the formula of YOLOv5's script")  # fmt: skip
    more("--link", default="hard", metavar="KIND", help=f"how images of a folder are taken over: {', '.join(LINKS)}")
    return parser.parse_args(args)


if __name__ == "__main__":
    OPT = parse_opt()  # --help and misspelt flags are answered before OpenCV is imported

from utils.settings.config import check_keys
from utils.system.console import run_script
from utils.voc.convert import Summary, convert


def run(**kwargs: object) -> Summary:
    """Convert as `Options` tells and return what was done; raises UserError if nothing can be converted."""
    check_keys(kwargs, [f.name for f in fields(Options)], "voc2yolo.run")
    return convert(Options(**kwargs))  # type: ignore[arg-type]


def main(opt: argparse.Namespace) -> None:
    """Run the command."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
