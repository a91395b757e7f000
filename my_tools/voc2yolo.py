"""Convert Pascal VOC, or any dataset in its format, to YOLO labels and COCO annotations.

    python my_tools/voc2yolo.py                                         # the VOC zips in ../datasets/VOC/images
    python my_tools/voc2yolo.py --download --years 2007                 # download missing zips first
    python my_tools/voc2yolo.py --source BCCD.zip --name bccd           # your own dataset, classes from the xml files
    python my_tools/voc2yolo.py --source my_set --names cat dog --split 0.7 0.2 0.1

Writes images/<split>, labels/<split> and annotations/instances_<split>.json below --out. The sources are not
changed. Existing correct files are kept: to complete an interrupted conversion, run the command again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.settings.flags import Parser, options_from, read_first
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
         help="shares of train, val and perhaps test, for a dataset that names no splits")  # fmt: skip
    data("--seed", type=int, default=0, help="seed of that split")
    output("--out", metavar="FOLDER", shown="../datasets/VOC, or ../datasets/<name>", help="folder to write to")
    output("--name", shown="that of its folder", help="name of a dataset of your own")
    more("--box", default="auto", metavar="KIND",
         help="exact: pixels count from 1, as in VOC; zero: from 0, as in CVAT; legacy: YOLOv5's script")  # fmt: skip
    more("--encoding", metavar="NAME", shown="as declared, else UTF-8 or guessed", help="encoding of the xml files")
    more("--link", default="hard", metavar="KIND", help=f"how images of a folder get to --out: {', '.join(LINKS)}")
    return parser.parse_args(args)


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow imports: --help and flag errors appear at once

from utils.system.console import run_script
from utils.voc.convert import Summary, convert


def run(**kwargs: object) -> Summary:
    """Convert with options named like the flags and return a summary. Raises UserError if nothing can be converted."""
    return convert(options_from(Options, kwargs, "voc2yolo.run"))


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
