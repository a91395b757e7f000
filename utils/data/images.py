"""Reading and writing image files, with any Unicode characters in their names."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import atomic_write, read_file
from utils.system.opencv import cv2


class ImageError(UserError):
    """An image that cannot be used; the message gives the reason."""


LARGEST_FILE = 2**30  # bytes
MOST_PIXELS = 178_956_970  # per image, the limit above which Pillow raises an error; about half a GB decoded
warnings.filterwarnings("ignore", r"Image size .* decompression bomb")  # Pillow warns from half of that
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the first bytes
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
           8: cv2.IMREAD_REDUCED_COLOR_8}  # fmt: skip


def decode_image(content: bytes, reduce: int = 1) -> np.ndarray:
    """Decode an image to (h, w, 3) uint8 BGR, rotated by its EXIF orientation, with its sides divided by `reduce`.

    reduce: 1, 2, 4 or 8. Images of 16 bits per channel are scaled by `to_8_bit`. Raises ImageError if the content is
    empty, cut off, too large, or not an image.
    """
    if not content:
        raise ImageError("the file is empty")
    size, start = _jpeg_header(content) if content[:2] == b"\xff\xd8" else (_claimed_size(content), 0)
    # OpenCV decodes a cut-off JPEG without an error to an image with a grey lower part
    if start and b"\xff\xd9" not in content[start:]:
        raise ImageError("the JPEG is cut off")
    if size[0] * size[1] > MOST_PIXELS:  # checked before decoding, as a small file can decode to gigabytes
        raise ImageError(f"its header gives more than {MOST_PIXELS:,} pixels; make the image smaller")
    deep = is_deep(content)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED[reduce] | (cv2.IMREAD_ANYDEPTH if deep else 0))
    except (cv2.error, MemoryError):
        image = None
    if image is None:
        if _is_float(content):
            raise ImageError("its pixels are floating-point or 32-bit numbers; convert it to 8 or 16 bits")
        raise ImageError("the file is not an image that OpenCV can read, or is too large")
    return image if image.dtype == np.uint8 else to_8_bit(np.clip(image, 0, None))


def is_deep(content: bytes) -> bool:
    """Whether a PNG or TIFF has more than 8 bits per channel, by its header."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return content[24:25] == b"\x10"
    return content[:4] in TIFF and 16 in _tiff_bits(content)


def _tiff_bits(content: bytes) -> list[int]:
    """The bits per channel in the first directory of a TIFF; empty if it is damaged or a BigTIFF."""
    order = "little" if content[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], order)

    first = number(4, 4)
    for entry in range(first + 2, first + 2 + 12 * min(number(first, 2), 200), 12):
        if number(entry, 2) == 258:  # BitsPerSample
            count = min(number(entry + 4, 4), 8)
            at = entry + 8 if count <= 2 else number(entry + 8, 4)
            return [number(at + 2 * k, 2) for k in range(count)]
    return []


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """Scale an image (h, w, 3) of 16 bits, without negative values, to uint8 by the bits it uses: 8, 10, 12, 14 or 16.

    Cameras store 12-bit data in 16-bit files; the usual division by 256 would make them almost black.
    """
    bits = next(b for b in (8, 10, 12, 14, 16) if int(image.max()) < 2**b)
    return (image >> (bits - 8)).astype(np.uint8)


def _is_float(content: bytes) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.mode in ("F", "I")
    except Exception:
        return False


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
    from PIL import Image  # not at the top of the file: JPEG and PNG, the usual formats, do not need it

    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.size
    except Image.DecompressionBombError:
        return MOST_PIXELS, MOST_PIXELS
    except Exception:  # damaged, or a format that only OpenCV reads; OpenCV has its own size limit
        return 0, 0


def read_content(path: str | Path) -> bytes:
    """Read the bytes of an image file. Raises ImageError."""
    try:
        return read_file(path, LARGEST_FILE)
    except OSError as e:
        raise ImageError(e.strerror or "cannot be read") from e


def read_image(path: str | Path, reduce: int = 1) -> np.ndarray:
    """Read an image file and decode it with `decode_image` to (h, w, 3) uint8 BGR. Raises ImageError."""
    return decode_image(read_content(path), reduce)


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
