"""Label files: read and checked once, stored as flat arrays, and cached in a file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.images import MOST_PIXELS, ImageError, read_image
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, LARGEST_LIST, atomic_write, no_file, read_file, walk
from utils.system.console import LOGGER, printable, progress

CACHE_VERSION = 2
SHOWN_PROBLEMS = 5
LEAST_SIDE = 1e-6  # of a box, as a fraction of the image's side
LARGEST_LABELS = 2**24  # bytes per label file
QUOTE = " in '"  # precedes the quoted text of a label file in an error message


@dataclass(frozen=True)
class LabelIndex:
    """The images of a split and their labels, in flat arrays whose memory worker processes can share.

    files: (n,) bytes, absolute paths; shapes: (n, 2) int32 height, width; values: (m, 5) float32 class, cx, cy, w, h
    normalised; offsets: (n + 1,) int64, the labels of image i are values[offsets[i]:offsets[i + 1]]; problems: one line
    for each file left out, with the reason.
    """

    files: np.ndarray
    shapes: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def file(self, i: int) -> str:
        """Return the path of image i."""
        return os.fsdecode(bytes(self.files[i]))

    def labels(self, i: int) -> np.ndarray:
        """Return the labels of image i, (n, 5) class, cx, cy, w, h normalised."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def take(self, chosen: Sequence[int] | np.ndarray) -> LabelIndex:
        """Return the index of the `chosen` images, in this order; an image may be chosen more than once."""
        labels = [np.zeros((0, 5), np.float32), *(self.labels(i) for i in chosen)]
        offsets = np.cumsum([0, *map(len, labels[1:])]).astype(np.int64)
        return LabelIndex(self.files[chosen], self.shapes[chosen], np.concatenate(labels), offsets)


def label_path(image: str | Path) -> Path:
    """Return the label file of an image: the last folder named `images` becomes `labels`, the suffix `.txt`."""
    parts = list(Path(image).parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k] == "images":
            parts[k] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def list_images(sources: tuple[Path, ...]) -> list[str]:
    """Return the sorted image files of folders (recursive) and .txt lists. Raises UserError if there are none."""
    files: list[str] = []
    for source in sources:
        if source.is_dir():
            files += walk(source)
        elif source.is_file():
            try:
                text = read_file(source, LARGEST_LIST).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise UserError(f"{source}: a list of images must be a text file in UTF-8") from None
            except OSError as e:
                raise UserError(f"{source}: {e.strerror}") from e
            if "\0" in text:
                raise UserError(f"{source}: a list of images must be a text file, but this one contains zero bytes")
            files += [os.path.normpath(source.parent / line.strip()) for line in text.splitlines() if line.strip()]
        else:
            raise UserError(f"{source} {no_file(source)}: correct the data yaml")
    images = sorted({f for f in files if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES})
    if not images:
        raise UserError(f"no images ({' '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(map(str, sources))}")
    return images


def parse_labels(text: str, nc: int) -> np.ndarray:
    """Parse and check the content of a label file: rows of class, cx, cy, w, h normalised, or class and a polygon.

    Returns (n, 5) float32, clipped to the image, without duplicate rows; a polygon becomes its bounding box. Raises
    ValueError with the line number.
    """
    rows: dict[tuple[float, ...], None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            if "_" in line or not line.isascii():  # float() also accepts 1_0 and the digits of other alphabets
                raise ValueError
            values = [float(v) for v in fields]
        except ValueError:
            raise ValueError(f"line {number}: not a number{QUOTE}{line.strip()[:60]}'") from None
        if len(values) > 6 and len(values) % 2 == 1:
            xs, ys = values[1::2], values[2::2]
            x1, x2, y1, y2 = min(xs), max(xs), min(ys), max(ys)
            values = [values[0], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        if len(values) != 5:
            raise ValueError(f"line {number}: {len(values)} columns, 5 expected (class cx cy w h)")
        rows[_checked_row(values, nc, number)] = None
    return np.array(list(rows), np.float32).reshape(-1, 5)


def _checked_row(values: list[float], nc: int, number: int) -> tuple[float, ...]:
    cls, cx, cy, w, h = values
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"line {number}: a value is not finite")
    if cls != int(cls) or not 0 <= cls < nc:
        raise ValueError(f"line {number}: class {cls:g} is not one of 0 to {nc - 1}")
    if not (0 <= cx <= 1 and 0 <= cy <= 1 and 0 < w <= 1 and 0 < h <= 1):
        raise ValueError(f"line {number}: coordinates must be fractions of the image, from 0 to 1, and w, h above 0")
    x1, x2 = max(cx - w / 2, 0.0), min(cx + w / 2, 1.0)
    y1, y2 = max(cy - h / 2, 0.0), min(cy + h / 2, 1.0)
    if min(x2 - x1, y2 - y1) < LEAST_SIDE:
        raise ValueError(f"line {number}: a box without area: {w:g} x {h:g} of the image")
    return (cls, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)


def _examine(image: str, nc: int) -> tuple[tuple[int, int] | None, np.ndarray, str]:
    """Check one image and its labels; return its shape (None if it must be left out), labels and error message."""
    empty = np.zeros((0, 5), np.float32)
    try:
        shape = read_image(image).shape[:2]
    except ImageError as e:
        return None, empty, f"{image}: {e}"
    if min(shape) < 10:
        return None, empty, f"{image}: {shape[1]}x{shape[0]} px is too small; each side must be at least 10 px"
    file = label_path(image)
    try:
        return shape, parse_labels(read_file(file, LARGEST_LABELS).decode("utf-8-sig"), nc), ""
    except FileNotFoundError:
        return shape, empty, ""
    except UnicodeDecodeError:
        return None, empty, f"{file}: not a text file in UTF-8"
    except OSError as e:
        return None, empty, f"{file}: {e.strerror}"
    except ValueError as e:
        linked = os.path.realpath(file) != os.path.abspath(file)  # do not print text from elsewhere
        return None, empty, f"{file}: {str(e).partition(QUOTE)[0] if linked else e}"


def _fingerprint(images: list[str], nc: int) -> str:
    """Return a hash that changes with the path, size or modification time of any image or label file."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {nc}".encode())
    for image in images:
        for path in (image, str(label_path(image))):
            try:
                s = os.stat(path)
                digest.update(f"\0{path}\0{s.st_size}\0{s.st_mtime_ns}".encode(errors="surrogateescape"))
            except OSError:
                digest.update(b"\0missing")
    return digest.hexdigest()


def load_labels(sources: tuple[Path, ...], nc: int, desc: str = "") -> LabelIndex:
    """Index the images of a split with their labels, from the cache if no file has changed.

    Images that are unusable or have invalid labels are left out and reported, with file and line. Raises UserError if
    no image is left.
    """
    images = list_images(sources)
    # a list has its own cache beside it, since several lists may share one image folder
    cache = (sources[0] if sources[0].is_file() else label_path(images[0]).parent).with_suffix(".cache.npz")
    fingerprint = _fingerprint(images, nc)
    index = _read_cache(cache, fingerprint, images, nc)
    if index is None:
        index = _scan(images, nc, desc)
        _write_cache(cache, fingerprint, index)
    backgrounds = int((np.diff(index.offsets) == 0).sum())
    LOGGER.info(f"{desc}{len(index)} images, {len(index.values)} objects, {backgrounds} images without objects, "
                f"{len(index.problems)} left out")  # fmt: skip
    _report(index.problems, cache.with_suffix("").with_suffix(".left_out.txt"))
    if not len(index):
        raise UserError(f"{desc}no usable image in {', '.join(map(str, sources))}")
    if not len(index.values):
        LOGGER.warning(f"{desc}no objects in these images; labels are looked for in {label_path(images[0]).parent}")
    return index


def _report(problems: tuple[str, ...], file: Path) -> None:
    """Warn about the first problems; if there are more, write all of them to a file beside the cache."""
    for problem in problems[:SHOWN_PROBLEMS]:
        LOGGER.warning(f"left out: {problem}")
    if len(problems) <= SHOWN_PROBLEMS:
        with contextlib.suppress(OSError):  # no file there, or an old one that cannot be removed
            file.unlink()
        return
    try:
        with atomic_write(file, "w") as f:
            f.write("".join(f"{problem}\n" for problem in problems))
        where = f", all in {file}"
    except OSError as e:
        where = f" ({file} cannot be written: {e.strerror})"
    LOGGER.warning(f"... and {len(problems) - SHOWN_PROBLEMS} more{where}")


def _scan(images: list[str], nc: int, desc: str) -> LabelIndex:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # decoding releases the GIL
        results = list(progress(pool.map(lambda im: _examine(im, nc), images), f"{desc}scanning", total=len(images)))
    good = [(image, shape, labels) for image, (shape, labels, _) in zip(images, results, strict=True) if shape]
    counts = [len(labels) for _, _, labels in good]
    return LabelIndex(
        files=np.array([os.fsencode(image) for image, _, _ in good], dtype=np.bytes_),
        shapes=np.array([shape for _, shape, _ in good], np.int32).reshape(-1, 2),
        values=np.concatenate([labels for _, _, labels in good] or [np.zeros((0, 5), np.float32)]),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        problems=tuple(printable(problem) for _, _, problem in results if problem),
    )


def _read_cache(path: Path, fingerprint: str, images: list[str], nc: int) -> LabelIndex | None:
    """Return the cached index, or None if the cache is missing, outdated or damaged.

    The cache may have been downloaded with the dataset, so its content is checked as strictly as label files.
    """
    try:
        with zipfile.ZipFile(path) as z:
            if any(i.compress_type != zipfile.ZIP_STORED for i in z.infolist()):
                return None
            if sum(i.file_size for i in z.infolist()) > path.stat().st_size:
                return None
        with np.load(path, allow_pickle=False) as z:
            if str(z["fingerprint"]) != fingerprint:
                return None
            arrays = {k: z[k] for k in ("files", "shapes", "values", "offsets")}
            problems = tuple(str(p) for p in json.loads(str(z["problems"])))
        index = LabelIndex(**arrays, problems=problems)
        return index if _is_sound(index, images, nc) else None
    except Exception:  # an unusable cache is rebuilt
        return None


def _is_sound(index: LabelIndex, images: list[str], nc: int) -> bool:
    """Whether an index contains only these images, with labels that would pass the checks of label files."""
    files, shapes, values, offsets = index.files, index.shapes, index.values, index.offsets
    kinds = [files.dtype.kind, shapes.dtype, values.dtype, offsets.dtype]
    sizes = [files.ndim, shapes.shape, values.shape[1:], offsets.shape]
    if kinds != ["S", np.int32, np.float32, np.int64] or sizes != [1, (len(files), 2), (5,), (len(files) + 1,)]:
        return False
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        return False
    if (shapes < 10).any() or (shapes.prod(1, dtype=np.int64) > MOST_PIXELS).any():
        return False
    if not {*files.tolist()} <= {os.fsencode(image) for image in images}:
        return False
    cls, box = values[:, 0], values[:, 1:]
    fits = (cls == cls.astype(np.int64)) & (cls >= 0) & (cls < nc)
    return bool(fits.all() and (box >= 0).all() and (box <= 1).all() and (box[:, 2:] >= LEAST_SIDE / 2).all())


def _write_cache(path: Path, fingerprint: str, index: LabelIndex) -> None:
    try:
        buffer = io.BytesIO()  # a zip file cut short by a full disk raises again when deleted
        np.savez(buffer, fingerprint=fingerprint, files=index.files, shapes=index.shapes, values=index.values,
                 offsets=index.offsets, problems=json.dumps(index.problems))  # fmt: skip
        with atomic_write(path) as f:
            f.write(buffer.getbuffer())
    except OSError as e:
        LOGGER.warning(f"the label cache {path} cannot be written ({e.strerror}); the next start will scan again")
