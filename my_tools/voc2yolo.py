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

from utils.errors import UserError, did_you_mean
from utils.system.console import Parser, run_script
from utils.voc.convert import Options, Summary, convert


def run(**kwargs: object) -> Summary:
    """Convert as `Options` tells and return what was done; raises UserError if nothing can be converted."""
    known = [f.name for f in fields(Options)]
    for key in kwargs:
        if key not in known:
            raise UserError(f"voc2yolo has no option {key!r}{did_you_mean(key, known)}")
    return convert(Options(**kwargs))  # type: ignore[arg-type]


def parse_opt(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", help="zips or folders (default: VOC's in ../datasets/VOC/images)")
    parser.add_argument("--out", help="where to write (default: ../datasets/VOC, or ../datasets/<name>)")
    parser.add_argument("--name", help="name of a set of your own (default: its folder's)")
    parser.add_argument("--names", nargs="+", help="its classes in order (default: those in the xml, sorted)")
    parser.add_argument("--box", default="exact", help="exact: VOC's geometry; legacy: the formula of YOLOv5's script")
    parser.add_argument("--link", default="hard", help="images of a folder: hard link (else copy), copy or symlink")
    parser.add_argument("--download", action="store_true", help="fetch the official zips that are missing")
    parser.add_argument("--years", nargs="+", type=int, default=[2007, 2012], help="VOC's years")
    parser.add_argument("--split", nargs="+", type=float, default=[0.8, 0.2], help="for a set without ImageSets")
    parser.add_argument("--seed", type=int, default=0, help="seed of that split")
    return parser.parse_args(args)


def main(opt: argparse.Namespace) -> None:
    """Run the command."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, parse_opt())
