"""Reading of a Pascal VOC annotation from xml, and conversion of its boxes to YOLO label lines.

The format: Everingham et al., "The PASCAL Visual Object Classes Challenge", 2007 to 2012. Coordinates are pixels
counted from 1, and a box includes both of its corner pixels.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass, field
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from utils.errors import UserError
from utils.system.console import has_control

VOC_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
).split()

Box = tuple[float, float, float, float]

_MAX_DEPTH = 64  # levels of nested elements; VOC has four
_MAX_SIDE = 1_000_000  # pixels; a larger <size> is taken for an error and treated as missing
_DECLARED = re.compile(rb"""<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
# Expat supports no multi-byte encodings except UTF-8 and UTF-16, so files in these encodings are decoded first.
_MULTI_BYTE = frozenset(
    "gb2312 gbk gb18030 hz big5 big5hkscs cp950 cp932 cp949 shift_jis euc_jp euc_jis_2004 euc_kr iso2022_jp".split()
)


class VocError(UserError):
    """An annotation or one of its boxes cannot be used; the text before the first colon names the kind of problem."""


@dataclass(frozen=True)
class VocObject:
    """One object as given in the file: `box` is xmin, ymin, xmax, ymax in pixels counted from 1, both ends included."""

    name: str
    box: Box
    difficult: bool = False


@dataclass
class VocAnnotation:
    """The annotation of one image.

    `width` or `height` is 0 if the file does not contain it. `problems` lists the objects that cannot be read.
    """

    filename: str = ""
    width: int = 0
    height: int = 0
    objects: list[VocObject] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_voc_xml(data: bytes) -> VocAnnotation:
    """Parse the bytes of an annotation file in its declared encoding; entities and external references are refused.

    Raises VocError if the file cannot be parsed; single objects that cannot be read are listed in `problems`.
    """
    data = data.lstrip()  # an empty line before the xml declaration is a common, harmless mistake
    try:
        return _parse(data)
    except DefusedXmlException as e:
        raise VocError(f"xml with entities or outside references: {type(e).__name__}") from e
    except ParseError as e:
        raise VocError(f"xml cannot be parsed: {e}") from e
    except (LookupError, ValueError) as e:  # raised by expat for an encoding that it does not know
        text = _decode_multi_byte(data)
        if text is None:
            raise VocError(f"xml in an unknown encoding: {e}") from e
    try:
        return _parse(text.encode("utf-8"), encoding="utf-8")
    except DefusedXmlException as e:
        raise VocError(f"xml with entities or outside references: {type(e).__name__}") from e
    except ParseError as e:
        raise VocError(f"xml cannot be parsed: {e}") from e


def _parse(data: bytes, encoding: str | None = None) -> VocAnnotation:
    target = _Target()
    parser = DefusedXMLParser(target=target, encoding=encoding)
    parser.feed(data)
    parser.close()
    return target.annotation


def _decode_multi_byte(data: bytes) -> str | None:
    """Decode an xml whose declared encoding is one of `_MULTI_BYTE`; return None for any other."""
    declared = _DECLARED.match(data)
    try:
        name = codecs.lookup(declared[1].decode("ascii")).name if declared else ""
        return data.decode(name) if name in _MULTI_BYTE else None
    except LookupError:
        return None
    except UnicodeDecodeError as e:
        raise VocError(f"xml is not in the encoding it declares: {e.encoding}, byte {e.start}") from e


class _Target:
    """Parser target that collects an annotation without building a tree, so that a million tags need no memory.

    Full paths are compared: `object/part/bndbox` (heads and hands in VOC's layout set) is not `object/bndbox`.
    """

    def __init__(self) -> None:
        self.annotation = VocAnnotation()
        self._path: list[str] = []
        self._text: list[str] = []
        self._object: dict[str, str] = {}

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        """Handle an opening tag. Raises VocError if the root is not <annotation> or the nesting is too deep."""
        tag = tag.rpartition("}")[2]
        if not self._path and tag != "annotation":
            raise VocError(f"xml is not a VOC annotation: its root element is <{tag[:40]}>")
        if len(self._path) >= _MAX_DEPTH:
            raise VocError(f"xml nested too deep: more than {_MAX_DEPTH} levels")
        self._path.append(tag)
        self._text.clear()
        if len(self._path) == 2 and tag == "object":
            self._object = {}

    def data(self, text: str) -> None:
        """Handle a piece of text."""
        self._text.append(text)

    def end(self, _tag: str) -> None:
        """Handle a closing tag: store the element's text."""
        path, text = self._path, "".join(self._text).strip()
        if len(path) == 2:
            if path[1] == "object":
                self._finish_object()
            elif path[1] == "filename":
                self.annotation.filename = text
        elif len(path) == 3 and path[1] == "object":
            self._object.setdefault(path[2], text)
        elif len(path) == 3 and path[1] == "size" and path[2] in ("width", "height"):
            setattr(self.annotation, path[2], _side(text))
        elif len(path) == 4 and path[1] == "object" and path[2] == "bndbox":
            self._object.setdefault(f"bndbox/{path[3]}", text)
        path.pop()
        self._text.clear()

    def close(self) -> None:
        """Handle the end of the file; the parser requires this method."""

    def _finish_object(self) -> None:
        try:
            self.annotation.objects.append(_voc_object(self._object))
        except VocError as e:
            self.annotation.problems.append(str(e))


def _voc_object(texts: dict[str, str]) -> VocObject:
    name = " ".join(texts.get("name", "").split())
    if has_control(name):
        raise VocError(f"object whose <name> holds a control character: {name[:40]!r}")
    if not name:
        raise VocError("object without a <name>")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = texts.get(f"bndbox/{key}")
        if text is None:
            raise VocError(f"object without a complete <bndbox>: no <{key}>")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise VocError(f"coordinate is not a number: {key} {text[:40]!r}")
        corners.append(value)
    difficult = texts.get("difficult", "").lower() in ("1", "1.0", "true", "yes")
    return VocObject(name, (corners[0], corners[1], corners[2], corners[3]), difficult)


def _side(text: str) -> int:
    """Return width or height in pixels, or 0 if the text is not a valid number."""
    try:
        value = float(text)
    except ValueError:
        return 0
    return int(value) if 1 <= value <= _MAX_SIDE else 0


def pixel_box(box: Box, width: int, height: int, formula: str = "exact") -> tuple[Box, bool]:
    """Convert a VOC box to corners x0, y0, x1, y1 in pixels from 0, clipped to the image.

    Returns the corners, and whether the box was clipped.
    `exact`: VOC's pixels count from 1 and both ends are included, hence x0 = xmin - 1, x1 = xmax.
    `legacy`: as YOLOv5's VOC script, centre (xmin + xmax) / 2 - 1 and width xmax - xmin, hence x1 = xmax - 1.
    Raises VocError if the box is reversed or has no area inside the image.
    """
    xmin, ymin, xmax, ymax = box
    if xmin > xmax or ymin > ymax:
        raise VocError("box reversed: " + " ".join(f"{v:g}" for v in box))
    last = 0 if formula == "exact" else 1
    x0, y0, x1, y1 = xmin - 1, ymin - 1, xmax - last, ymax - last
    if x1 <= x0 or y1 <= y0:
        raise VocError("box without area: " + " ".join(f"{v:g}" for v in box))
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise VocError("box outside the image: " + " ".join(f"{v:g}" for v in box) + f" in {width} x {height}")
    return inside, inside != (x0, y0, x1, y1)


def yolo_line(index: int, corners: Box, width: int, height: int) -> str:
    """Return a line of a YOLO label file, `class cx cy w h` normalised by the image size; corners in pixels from 0."""
    x0, y0, x1, y1 = corners
    values = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    return f"{index} " + " ".join(f"{v:.8g}" for v in values)
