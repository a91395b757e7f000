"""Convert a checkpoint of YOLOv5 or YOLOv5-Lite into one of this program, which holds plain tensors and values only.

    python my_tools/convert_weights.py yolov5n.pt                   # writes yolov5n_converted.pt beside it
    python my_tools/convert_weights.py v5lite-s.pt --out lite.pt

Nothing in the file is run. train.py, val.py and detect.py read the original too; converting once saves the doubt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.settings.flags import Parser


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    model, output = parser.group("model"), parser.group("output")
    model("weights", metavar="PT", shown="required", help="checkpoint of YOLOv5, YOLOv5-Lite or a fork")
    output("--out", default="", metavar="PT", shown="beside it, as <name>_converted.pt", help="file to write")
    output("--exist-ok", action="store_true", help="replace the file if it exists")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = parse_opt()  # --help and misspelt flags are answered before torch is imported

from models.inference.runtime import DEFAULT_IMGSZ
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint, save_checkpoint, weights_content
from models.yolo import model_summary
from utils.errors import UserError
from utils.system.console import LOGGER, run_script


def run(weights: str | Path, out: str | Path = "", exist_ok: bool = False) -> Path:
    """Write a "weights" checkpoint (half precision) of what `weights` holds; returns its path.

    Raises UserError if it holds no detector or if the output exists.
    """
    source = Path(weights)
    target = Path(out) if out else source.with_name(f"{source.stem}_converted.pt")
    content = load_checkpoint(source)
    model = model_from_checkpoint(content, source)
    if target.exists() and (not exist_ok or target.resolve() == source.resolve()):
        raise UserError(f"{target}: exists already; give another --out, or --exist-ok to replace it")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")
    imgsz = content.get("imgsz") or DEFAULT_IMGSZ
    facts = {k: content[k] for k in ("epoch", "date", "metrics", "options", "hyp") if k in content}
    save_checkpoint(target, weights_content(model, imgsz, **facts))
    LOGGER.info(f"{model_summary(model, imgsz)}\n{len(model.names)} classes: {', '.join(model.names.values())}\n"
                f"{source} -> {target} ({target.stat().st_size / 2**20:.1f} MiB)")  # fmt: skip
    return target


def main(opt: argparse.Namespace) -> None:
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
