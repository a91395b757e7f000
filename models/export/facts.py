"""The metadata of an exported model, as JSON that every file format can hold."""

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
LARGEST = 1 << 20  # most characters of the JSON text


@dataclass(frozen=True)
class ExportFacts:
    """The metadata of an exported model.

    names: {index: class name}; stride: the largest, in pixels; imgsz: (h, w) the model was exported for, only the
    default size if `dynamic` (in batch, height and width); precision: of the weights; nms: its settings if it is part
    of the graph, else None; source: name of the weights file; made_by: {package: version}, only for people, not read.
    """

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
        """Return the metadata as JSON; `shape`, `stride` and `names` are where YOLOv5's scripts look for them."""
        return json.dumps({
            "format": FORMAT, "version": VERSION, "names": {str(k): v for k, v in self.names.items()},
            "stride": self.stride, "shape": [self.batch, 3, *self.imgsz], "dynamic": self.dynamic,
            "precision": self.precision, "nms": dict(self.nms) if self.nms else None, "source": self.source,
            "made_by": dict(self.made_by or {}),
        }, ensure_ascii=False)  # fmt: skip


def read_facts(text: str, where: str) -> ExportFacts:
    """Read metadata from JSON. Raises UserError, naming the file `where`, if it is invalid or of another version."""
    try:
        tree = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{where}: its metadata cannot be read; export it again")
    if tree.get("format") == FORMAT and tree.get("version") != VERSION:
        raise UserError(f"{where} was exported by another version of this program (format {tree.get('version')}, not "
                        f"{VERSION}); export it again")  # fmt: skip
    return checked(tree, where)


def facts_of_yolov5(fields: Mapping[str, str], where: str, shape: list[Any]) -> ExportFacts:
    """Read the metadata of YOLOv5's own ONNX files, which are Python literals. shape: of the input, (b, 3, h, w).

    Raises UserError if it cannot be read.
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
    """Validate the metadata's plain values. Raises UserError, naming the key, for an invalid value."""
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
