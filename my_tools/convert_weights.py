"""Convert a YOLOv5 or YOLOv5-Lite checkpoint to this project's format, which has only plain tensors and values.

    python my_tools/convert_weights.py yolov5n.pt                   # writes yolov5n_converted.pt next to it
    python my_tools/convert_weights.py v5lite-s.pt --out lite.pt

No code in the file is run. train.py, val.py and detect.py also read the original; conversion is only needed to have a
file without code in it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.settings.flags import Parser, read_first
from utils.settings.values import from_code


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    model, output = parser.group("model"), parser.group("output")
    model("weights", metavar="PT", shown="required", help="checkpoint of YOLOv5, YOLOv5-Lite or a fork")
    output("--out", default="", metavar="PT", shown="<name>_converted.pt next to it", help="file to write")
    output("--exist-ok", action="store_true", help="replace the file if it exists")
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

from models.inference.runtime import DEFAULT_IMGSZ
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint, save_checkpoint, weights_content
from models.yolo import model_summary
from utils.errors import UserError
from utils.system.console import LOGGER, run_script


@from_code("convert_weights.run")
def run(weights: str | Path, out: str | Path = "", exist_ok: bool = False) -> Path:
    """Write the detector in `weights` as a "weights" checkpoint (half precision); return its path.

    Raises UserError if the file contains no detector or if the output exists.
    """
    source = Path(weights)
    content = load_checkpoint(source)
    target = Path(out) if out else source.with_name(f"{source.stem}_converted.pt")
    model = model_from_checkpoint(content, source)
    if target.exists() and (not exist_ok or target.resolve() == source.resolve()):
        raise UserError(f"{target}: already exists; give another --out, or --exist-ok to replace it")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")
    imgsz = content.get("imgsz") or DEFAULT_IMGSZ
    facts = {k: content[k] for k in ("epoch", "date", "metrics", "options", "hyp") if k in content}
    save_checkpoint(target, weights_content(model, imgsz, **facts))
    LOGGER.info(f"{model_summary(model, imgsz)}\n{len(model.names)} classes: {', '.join(model.names.values())}\n"
                f"{source} -> {target} ({target.stat().st_size / 2**20:.1f} MiB)")  # fmt: skip
    return target


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
