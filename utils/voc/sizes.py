"""The frame in which the boxes of an annotation are given: its size, compared with the image's, and its rotation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils.data.images import ImageError, decode_image
from utils.errors import UserError
from utils.system.opencv import cv2
from utils.voc.annotation import Box, VocAnnotation
from utils.voc.files import MAX_IMAGE, Files

_ORIENTATION = 274  # EXIF tag
_SLACK = 1.0  # pixels by which a box may reach over the border of an image whose size is not the one in the xml
Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Header:
    """The size of an image as stored, and the EXIF orientation (1 to 8) that training applies to it."""

    stored: Size
    orientation: int = 1

    @property
    def size(self) -> Size:
        """The size of the image in training, after its rotation."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


@dataclass(frozen=True)
class Frame:
    """Where boxes are given and where they belong: boxes in `given` pixels, scaled to `stored`, turned by EXIF.

    given, stored: width and height. orientation: 1 if the boxes are already those of the turned image.
    """

    given: Size
    stored: Size
    orientation: int = 1

    @property
    def size(self) -> Size:
        """Width and height of the image in training."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    def place(self, corners: Box) -> Box:
        """Map corners x0, y0, x1, y1 in pixels of the frame to pixels of the image as training reads it."""
        if self.given != self.stored:
            x, y = (true / told for true, told in zip(self.stored, self.given, strict=True))
            corners = (corners[0] * x, corners[1] * y, corners[2] * x, corners[3] * y)
        return turn_box(corners, self.stored, self.orientation)


def turn_box(corners: Box, size: Size, orientation: int) -> Box:
    """Turn corners in pixels of a stored image of this size as its EXIF orientation turns the image."""
    x0, y0, x1, y1 = corners
    if orientation in (2, 3, 7, 8):
        x0, x1 = size[0] - x1, size[0] - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = size[1] - y1, size[1] - y0
    return (y0, x0, y1, x1) if orientation >= 5 else (x0, y0, x1, y1)


def read_header(files: Files, name: str) -> Header:
    """Return the size and orientation of an image, from its header if possible.

    Raises UserError if the image cannot be read.
    """
    found = _header(files.head(name))
    if found is None:
        content = files.read(name, MAX_IMAGE)
        found = _header(content) or _decoded(content)
    return found


def _header(content: bytes) -> Header | None:
    """Return what the header says, or None if it cannot be read, or if only decoding shows the rotation."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            exif = Image.Exif()  # Image.getexif would also read XMP, which OpenCV ignores, and decode a PNG
            exif.load(image.info.get("exif", b""))
            orientation = (image.tag_v2 if image.format == "TIFF" else exif).get(_ORIENTATION, 1)
            if orientation not in range(2, 9):
                return Header(image.size)
            return Header(image.size, orientation) if image.format in ("JPEG", "MPO") else None
    except Exception:  # damaged, cut off, or a format that only OpenCV reads
        return None


def _decoded(content: bytes) -> Header:
    """Decode an image to find its size, and whether OpenCV turns it: this depends on the format and the version."""
    try:
        image = decode_image(content)
    except ImageError as e:
        raise UserError(f"image cannot be decoded: {e}") from e
    size = image.shape[1], image.shape[0]
    plain = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    for orientation in range(1, 9):
        if plain is not None and np.array_equal(_turned(plain, orientation), image):
            return Header((plain.shape[1], plain.shape[0]), orientation)
    return Header(size)


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (h, w, 3) turned by an EXIF orientation."""
    image = image[:, ::-1] if orientation in (2, 3, 7, 8) else image
    image = image[::-1] if orientation in (3, 4, 6, 7) else image
    return image.transpose(1, 0, 2) if orientation >= 5 else image


def find_frame(annotation: VocAnnotation, header: Header, edges: Sequence[Box]) -> tuple[Frame, str]:
    """Return the frame of an annotation's boxes, and a message if it is not simply the image; edges: the boxes.

    Raises UserError if the size in the xml does not fit the image, and some boxes do not either.
    """
    given, size, turned = (annotation.width, annotation.height), header.size, header.orientation >= 5
    kind = f"EXIF orientation {header.orientation}"
    if not all(given):
        if turned and not _inside(edges, size) and _inside(edges, header.stored):
            frame = Frame(header.stored, header.stored, header.orientation)
            return frame, f"no <size> in the xml: boxes turned as the image, {kind}"
        return Frame(size, size), "no <size> in the xml: size read from the image"
    if given == size:
        odd = header.orientation > 1 and (not turned or size[0] == size[1])
        return Frame(size, size), f"boxes taken as those of the turned image: {kind}" if odd else ""
    told = f"{given[0]} x {given[1]}, image {size[0]} x {size[1]}"
    stale = _inside(edges, given) or not _inside(edges, size)  # otherwise <size> is not that of the boxes
    if turned and _similar(given, header.stored) and stale:
        return Frame(given, header.stored, header.orientation), f"boxes turned as the image: {kind}"
    if _similar(given, size) and stale:
        return Frame(given, size), f"boxes scaled, <size> is that of a scaled image: {told}"
    swapped = given[::-1]
    if _similar(swapped, size) and _inside(edges, swapped):
        if swapped == size:
            return Frame(size, size), f"<size> has width and height swapped, size read from the image: {told}"
        return Frame(swapped, size), f"boxes scaled, <size> is that of a scaled image, swapped: {told}"
    if not _inside(edges, size):
        raise UserError(f"<size> does not fit the image, and boxes lie outside of it: {told}")
    return Frame(size, size), f"<size> does not fit the image, but all boxes do, size read from the image: {told}"


def _similar(a: Size, b: Size) -> bool:
    """Return whether two sizes have the same proportion, up to the rounding of a side to a whole pixel."""
    x, y = b[0] / a[0], b[1] / a[1]
    return abs(x / y - 1) <= 0.02 and min(abs(a[1] * x - b[1]), abs(a[0] * y - b[0]), abs(b[1] / x - a[1])) <= 1


def _inside(edges: Sequence[Box], size: Size) -> bool:
    return all(min(x0, y0) >= -_SLACK and x1 <= size[0] + _SLACK and y1 <= size[1] + _SLACK for x0, y0, x1, y1 in edges)
