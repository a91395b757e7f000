"""Reading of a Pascal VOC annotation from xml, and conversion of its boxes to YOLO label lines.

The format: Everingham et al., "The PASCAL Visual Object Classes Challenge", 2007 to 2012. Coordinates are pixels
counted from 1, and a box includes both of its corner pixels.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from utils.errors import UserError, shorten
from utils.system.console import has_control

VOC_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
).split()

# The characters in daily use in each encoding: the first level of its table, and punctuation.
_COMMON = {
    "gbk": re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]"),
    "shift_jis": re.compile(rb"[\x81-\x83\x88-\x98][\x40-\xfc]"),
    "big5": re.compile(rb"[\xa1-\xc6][\x40-\xfe]"),
}
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_OTHER = re.compile(r"[^\x00-\x7f]+")
_ACCENTED = re.compile(r"[\u00c0-\u024f]{1,4}")

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


def read_voc_xml(data: bytes, encoding: str | None = None) -> VocAnnotation:
    """Parse the bytes of an annotation file; entities and external references are refused.

    encoding: used instead of the declared one (UTF-8 if none is declared), except for pure ASCII and for files with a
    byte order mark. Raises VocError if the file cannot be parsed; single objects that cannot be read are listed in
    `problems`.
    """
    data = data.lstrip()  # an empty line before the xml declaration is a common, harmless mistake
    if encoding and not data.isascii() and not data.startswith(_MARKS):
        try:
            text = data.decode(encoding)
        except UnicodeError as e:
            raise VocError(f"xml is not in the encoding given: {encoding}, {shorten(e, 80)}") from e
        return _parse_text(text)
    try:
        return _parse(data)
    except DefusedXmlException as e:
        raise VocError(f"xml with entities or outside references: {type(e).__name__}") from e
    except ParseError as e:
        hint = "; if it is not in UTF-8, give its encoding, as in --encoding gbk" if doubt(data) else ""
        raise VocError(f"xml cannot be parsed: {e}{hint}") from e
    except (LookupError, ValueError) as e:  # raised by expat for an encoding that it does not know
        text = _decode_multi_byte(data)
        if text is None:
            raise VocError(f"xml in an unknown encoding: {e}") from e
    return _parse_text(text)


def _parse_text(text: str) -> VocAnnotation:
    try:
        return _parse(text.encode("utf-8", "replace"), encoding="utf-8")
    except DefusedXmlException as e:
        raise VocError(f"xml with entities or outside references: {type(e).__name__}") from e
    except ParseError as e:
        raise VocError(f"xml cannot be parsed: {e}") from e


def doubt(data: bytes) -> str:
    """Return `not utf-8` or `perhaps not` for an xml that may be in an encoding which it does not declare, else ``.

    The bytes of a short Chinese word in GBK may be valid UTF-8 by chance: those of the word for cat are UTF-8 for "è".
    `perhaps not`: all non-ASCII texts consist of a few accented letters without plain letters beside them.
    """
    data = data.lstrip()
    if data.isascii() or data.startswith(_MARKS):
        return ""
    declared = _DECLARED.match(data)
    if declared and declared[1].lower() not in (b"utf-8", b"utf8"):
        return ""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "not utf-8"
    if declared:
        return ""
    for run in _OTHER.finditer(text):
        beside = text[max(run.start() - 1, 0) : run.start()] + text[run.end() : run.end() + 1]
        if not _ACCENTED.fullmatch(run[0]) or any(map(str.isalpha, beside)):
            return ""
    return "perhaps not"


def guess_encoding(parts: Sequence[bytes]) -> str | None:
    """Return the multi-byte encoding in which these files contain only common characters, or None."""
    best, found = 0.8, None
    for name, common in _COMMON.items():
        try:
            characters = [c.encode(name) for data in parts for c in data.decode(name) if not c.isascii()]
        except UnicodeError:
            continue
        share = sum(common.fullmatch(c) is not None for c in characters) / max(len(characters), 1)
        if share > best:
            best, found = share, name
    return found


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


def box_edges(box: Box, formula: str = "exact") -> Box:
    """Convert a VOC box to corners x0, y0, x1, y1 in pixels from 0, without a check.

    `exact`: VOC's pixels count from 1 and both ends are included, hence x0 = xmin - 1, x1 = xmax.
    `zero`: the corners as they are, as CVAT and LabelMe write them.
    `legacy`: as YOLOv5's VOC script, centre (xmin + xmax) / 2 - 1 and width xmax - xmin, hence x1 = xmax - 1.
    """
    first, last = {"exact": (1, 0), "zero": (0, 0), "legacy": (1, 1)}[formula]
    return box[0] - first, box[1] - first, box[2] - last, box[3] - last


def pixel_box(box: Box, width: int, height: int, formula: str = "exact") -> tuple[Box, bool]:
    """Convert a VOC box to corners x0, y0, x1, y1 in pixels from 0 by `box_edges`, clipped to the image.

    Returns the corners, and whether the box was clipped. Raises VocError if the box is reversed or has no area inside
    the image.
    """
    xmin, ymin, xmax, ymax = box
    if xmin > xmax or ymin > ymax:
        raise VocError("box reversed: " + " ".join(f"{v:g}" for v in box))
    x0, y0, x1, y1 = box_edges(box, formula)
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
