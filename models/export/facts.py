"""What an exported model says of itself, in a form that every file format can carry: JSON of plain values."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.errors import UserError
from utils.settings.config import MOST_CLASSES, is_number, is_whole
from utils.system.console import has_control

FORMAT, VERSION = "yolov5-light export", 1
PRECISIONS = ("float32", "float16", "int8")
LARGEST = 1 << 20  # characters of the JSON


@dataclass(frozen=True)
class ExportFacts:
    """names: {index: class name}; stride: the largest, pixels; imgsz: (h, w) it was exported for, the usual ones if
    `dynamic` (in batch, height and width); precision: of the weights; nms: its settings if the graph does it, else
    None; source: name of the weights file; made_by: versions {package: version}, for people, not read back.
    """  # fmt: skip

    names: Mapping[int, str]
    stride: int
    imgsz: tuple[int, int]
    batch: int = 1
    dynamic: bool = False
    precision: str = "float32"
    nms: Mapping[str, float] | None = None
    source: str = ""
    made_by: Mapping[str, str] | None = None

    def to_json(self) -> str:
        """As text; `shape`, `stride` and `names` are where YOLOv5's programs look for them."""
        return json.dumps({
            "format": FORMAT, "version": VERSION, "names": {str(k): v for k, v in self.names.items()},
            "stride": self.stride, "shape": [self.batch, 3, *self.imgsz], "dynamic": self.dynamic,
            "precision": self.precision, "nms": dict(self.nms) if self.nms else None, "source": self.source,
            "made_by": dict(self.made_by or {}),
        }, ensure_ascii=False)  # fmt: skip


def read_facts(text: str, where: str) -> ExportFacts:
    """Facts from JSON. Raises UserError, naming the file `where`, if they are not ours or of another version."""
    try:
        tree = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{where}: what it says of itself cannot be read; export it again")
    if tree.get("format") == FORMAT and tree.get("version") != VERSION:
        raise UserError(f"{where} was exported by another version of this program (format {tree.get('version')}, here "
                        f"{VERSION}): export it again")  # fmt: skip
    return checked(tree, where)


def facts_of_yolov5(fields: Mapping[str, str], where: str, shape: list[Any]) -> ExportFacts:
    """Facts from the metadata that YOLOv5 gives its ONNX files: Python literals. shape: of the input, (b, 3, h, w).

    Raises UserError if they cannot be read.
    """
    try:
        if max(map(len, fields.values())) > LARGEST:
            raise ValueError
        names, stride = ast.literal_eval(fields["names"]), ast.literal_eval(fields["stride"])
    except (KeyError, ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{where} has no class names and stride in its metadata: export it with export.py") from None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    dynamic = any(not is_whole(n) for n in shape)
    return checked({"names": names, "stride": stride, "dynamic": dynamic,
                    "shape": [1, 3, 640, 640] if dynamic else shape}, where)  # fmt: skip


def checked(tree: Mapping[str, Any], where: str) -> ExportFacts:
    """Facts from plain values. Raises UserError, naming the key, for a value that cannot be."""
    def check(key: str, right: bool) -> None:
        if not right:
            raise UserError(f"{where}: its metadata has no usable '{key}'; export it again")

    names, stride, shape = tree.get("names"), tree.get("stride"), tree.get("shape")
    precision, nms, source = tree.get("precision", "float32"), tree.get("nms"), tree.get("source", "")
    check("names", isinstance(names, dict) and 0 < len(names) <= MOST_CLASSES and all(
        isinstance(v, str) and not has_control(v) and str(k).isdecimal() for k, v in names.items()))  # fmt: skip
    names = {int(k): v for k, v in names.items()}
    check("names", sorted(names) == list(range(len(names))))
    check("stride", is_whole(stride) and 1 <= stride <= 1024)
    check("shape", isinstance(shape, list) and len(shape) == 4 and all(
        is_whole(n) and 1 <= n <= 65536 for n in shape) and shape[1] == 3)  # fmt: skip
    check("precision", precision in PRECISIONS)
    if nms is not None:
        check("nms", isinstance(nms, dict) and nms.keys() == {"conf", "iou", "max_det"} and all(
            is_number(v) for v in nms.values()))  # fmt: skip
        check("nms", 1 <= nms["max_det"] <= 65536 and nms["max_det"] * len(names) <= 1 << 24)
    check("source", isinstance(source, str))
    return ExportFacts(dict(sorted(names.items())), stride, (shape[2], shape[3]), shape[0], tree.get("dynamic") is True,
                       precision, nms, source)  # fmt: skip
