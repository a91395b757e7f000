"""Reading and writing one picture file, whatever its name's alphabet."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.files import atomic_write, read_file
from utils.system.opencv import cv2


class ImageError(UserError):
    """A picture that cannot be used; the message says why."""


LARGEST_FILE = 2**30  # bytes
MOST_PIXELS = 178_956_970  # of a picture: more than Pillow opens; half a GB once they are unpacked
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of half as many
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
           8: cv2.IMREAD_REDUCED_COLOR_8}  # fmt: skip


def decode_image(content: bytes, reduce: int = 1) -> np.ndarray:
    """Decode a picture: (h, w, 3) uint8 BGR, turned as its EXIF data say, at 1, 1/2, 1/4 or 1/8 of its sides.

    Raises ImageError if it is empty, cut off, too large, or no picture.
    """
    if not content:
        raise ImageError("the file is empty")
    size, start = _jpeg_header(content) if content[:2] == b"\xff\xd8" else (_claimed_size(content), 0)
    # a cut-off JPEG decodes to a picture with a grey lower part, and nobody notices
    if start and b"\xff\xd9" not in content[start:]:
        raise ImageError("the JPEG is cut off")
    if size[0] * size[1] > MOST_PIXELS:  # before they are unpacked: a bomb of kilobytes fills gigabytes
        raise ImageError(f"it has more than {MOST_PIXELS:,} pixels, or says so; make it smaller")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED[reduce])
    except (cv2.error, MemoryError):
        image = None
    if image is None:
        raise ImageError("the file is no picture that OpenCV can read, or too large")
    return image


def _jpeg_header(jpeg: bytes) -> tuple[tuple[int, int], int]:
    """A JPEG's (width, height) and where its own pixel data begin: behind segments that may hold a whole thumbnail."""
    at, size = 2, (0, 0)
    while jpeg[at : at + 1] == b"\xff" and (kind := jpeg[at + 1 : at + 2]) not in (b"\xda", b""):
        if kind == b"\xff":  # a byte that fills a gap
            at += 1
            continue
        if kind == b"\x01" or b"\xd0" <= kind <= b"\xd7":  # markers without a segment
            at += 2
            continue
        if b"\xc0" <= kind <= b"\xcf" and kind not in (b"\xc4", b"\xc8", b"\xcc"):  # a frame's header
            size = int.from_bytes(jpeg[at + 7 : at + 9], "big"), int.from_bytes(jpeg[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return size, at


def _claimed_size(content: bytes) -> tuple[int, int]:
    """(width, height) by a picture's header, nothing of it unpacked; zeros where Pillow does not know the format."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":  # whatever else is wrong with it
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.size
    except Image.DecompressionBombError:
        return MOST_PIXELS, MOST_PIXELS
    except Exception:  # damaged in one of many ways, or of a format that only OpenCV knows, with a limit of its own
        return 0, 0


def read_image(path: str | Path, reduce: int = 1) -> np.ndarray:
    """Read a picture file: (h, w, 3) uint8 BGR, as `decode_image` has it. Raises ImageError."""
    try:
        content = read_file(path, LARGEST_FILE)
    except OSError as e:
        raise ImageError(e.strerror or "cannot be read") from e
    return decode_image(content, reduce)


def shrink(im: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (h, w, 3) uint8 at a smaller size (width, height), each pixel the mean of what it covers."""
    if im.size < 2**24 and (im.shape[1] % size[0] or im.shape[0] % size[1]):
        # the same pixels, but OpenCV takes a third longer for them in bytes than in floats, which need more memory
        return cv2.convertScaleAbs(cv2.resize(im.astype(np.float32), size, interpolation=cv2.INTER_AREA))
    return cv2.resize(im, size, interpolation=cv2.INTER_AREA)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write (h, w, 3) uint8 BGR, in the format its suffix names, whole or not at all. Raises ImageError."""
    path = Path(path)
    try:
        done, content = cv2.imencode(path.suffix or ".jpg", image)
    except cv2.error as e:
        raise ImageError(f"{path}: cannot be written as {path.suffix}") from e
    if not done:
        raise ImageError(f"{path}: cannot be written as {path.suffix}")
    with atomic_write(path, durable=False) as f:
        f.write(content.tobytes())
