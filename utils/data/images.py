"""Reading and writing image files, with any Unicode characters in their names."""

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
    """An image that cannot be used; the message gives the reason."""


LARGEST_FILE = 2**30  # bytes
MOST_PIXELS = 178_956_970  # per image, the limit above which Pillow raises an error; about half a GB decoded
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # Pillow warns from half of that
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
           8: cv2.IMREAD_REDUCED_COLOR_8}  # fmt: skip


def decode_image(content: bytes, reduce: int = 1) -> np.ndarray:
    """Decode an image to (h, w, 3) uint8 BGR, rotated by its EXIF orientation, with its sides divided by `reduce`.

    reduce: 1, 2, 4 or 8. Raises ImageError if the content is empty, cut off, too large, or not an image.
    """
    if not content:
        raise ImageError("the file is empty")
    size, start = _jpeg_header(content) if content[:2] == b"\xff\xd8" else (_claimed_size(content), 0)
    # OpenCV decodes a cut-off JPEG without an error to an image with a grey lower part
    if start and b"\xff\xd9" not in content[start:]:
        raise ImageError("the JPEG is cut off")
    if size[0] * size[1] > MOST_PIXELS:  # checked before decoding, as a small file can decode to gigabytes
        raise ImageError(f"its header gives more than {MOST_PIXELS:,} pixels; make the image smaller")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED[reduce])
    except (cv2.error, MemoryError):
        image = None
    if image is None:
        raise ImageError("the file is not an image that OpenCV can read, or is too large")
    return image


def _jpeg_header(jpeg: bytes) -> tuple[tuple[int, int], int]:
    """Return a JPEG's (width, height) and the offset of its pixel data, after any embedded thumbnail."""
    at, size = 2, (0, 0)
    while jpeg[at : at + 1] == b"\xff" and (kind := jpeg[at + 1 : at + 2]) not in (b"\xda", b""):
        if kind == b"\xff":  # a fill byte
            at += 1
            continue
        if kind == b"\x01" or b"\xd0" <= kind <= b"\xd7":  # markers without a segment
            at += 2
            continue
        if b"\xc0" <= kind <= b"\xcf" and kind not in (b"\xc4", b"\xc8", b"\xcc"):  # a frame header
            size = int.from_bytes(jpeg[at + 7 : at + 9], "big"), int.from_bytes(jpeg[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return size, at


def _claimed_size(content: bytes) -> tuple[int, int]:
    """Return the (width, height) in an image's header without decoding it; zeros if Pillow cannot read the header."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":  # even if Pillow refuses the rest
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.size
    except Image.DecompressionBombError:
        return MOST_PIXELS, MOST_PIXELS
    except Exception:  # damaged, or a format that only OpenCV reads; OpenCV has its own size limit
        return 0, 0


def read_image(path: str | Path, reduce: int = 1) -> np.ndarray:
    """Read an image file and decode it with `decode_image` to (h, w, 3) uint8 BGR. Raises ImageError."""
    try:
        content = read_file(path, LARGEST_FILE)
    except OSError as e:
        raise ImageError(e.strerror or "cannot be read") from e
    return decode_image(content, reduce)


def shrink(im: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Downscale an image (h, w, 3) uint8 to `size` (width, height); each pixel is the mean of the area it covers."""
    if im.size < 2**24 and (im.shape[1] % size[0] or im.shape[0] % size[1]):
        # same result, but OpenCV is a third slower on uint8 than on float32, which needs more memory
        return cv2.convertScaleAbs(cv2.resize(im.astype(np.float32), size, interpolation=cv2.INTER_AREA))
    return cv2.resize(im, size, interpolation=cv2.INTER_AREA)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an image (h, w, 3) uint8 BGR atomically, in the format of the file's suffix. Raises ImageError."""
    path = Path(path)
    try:
        done, content = cv2.imencode(path.suffix or ".jpg", image)
    except cv2.error as e:
        raise ImageError(f"{path}: cannot be written as {path.suffix}") from e
    if not done:
        raise ImageError(f"{path}: cannot be written as {path.suffix}")
    with atomic_write(path, durable=False) as f:
        f.write(content.tobytes())
