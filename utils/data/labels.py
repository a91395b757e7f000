"""Label files: read and checked once, stored as flat arrays, and cached in a file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from utils.data.images import MOST_PIXELS, ImageError, decode_image, is_deep, read_content
from utils.data.label_rows import (
    CLIPPED,
    KEYPOINTS,
    LEAST_SIDE,
    QUOTE,
    Rows,
    parse_rows,
    settled_kinds,
    total,
)
from utils.errors import UserError, shorten
from utils.files import (
    IMAGE_SUFFIXES,
    LARGEST_LIST,
    UNREADABLE_SUFFIXES,
    atomic_write,
    no_file,
    read_file,
    user_cache,
    walk,
)
from utils.settings.dataset import DataConfig
from utils.system.console import LOGGER, printable, progress
from utils.system.granted import granted_cores

CACHE_VERSION = 2
SHOWN_PROBLEMS = 5
LARGEST_LABELS = 2**24  # bytes per label file
LEAST_PIXELS = 10  # of a side of an image


@dataclass(frozen=True)
class LabelIndex:
    """The images of a split and their labels, in flat arrays whose memory worker processes can share.

    files: (n,) bytes, absolute paths; shapes: (n, 2) int32 height, width; values: (m, 5) float32 class, cx, cy, w, h
    normalised; offsets: (n + 1,) int64, the labels of image i are values[offsets[i]:offsets[i + 1]]; problems: one line
    for each file left out, with the reason; notes: one line for each kind of thing that was guessed or changed.
    """

    files: np.ndarray
    shapes: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] | None = ()

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


def _beside(image: str) -> Path | None:
    """The label file in the folder of an image, if another place is the usual one and has none."""
    usual, beside = label_path(image), Path(image).with_suffix(".txt")
    return beside if usual != beside and not usual.exists() and beside.is_file() else None


def list_images(sources: tuple[Path, ...], roots: tuple[Path, ...] = ()) -> list[str]:
    """Return the sorted image files of folders (recursive) and .txt lists. Raises UserError if there are none.

    Hidden files and folders, and images in formats that cannot be read, are skipped; that is logged. roots: where else
    than in a list's folder its relative paths may start.
    """
    files: list[str] = []
    skipped: list[str] = []
    for source in sources:
        if source.is_dir():
            files += walk(source, skipped)
        elif source.is_file():
            files += _read_list(source, roots)
        else:
            raise UserError(f"{source} {no_file(source)}: correct the data yaml")
    suffixes = Counter(os.path.splitext(f)[1].lower() for f in files)
    if skipped:
        LOGGER.info(f"hidden, not used: {shorten(', '.join(sorted(set(map(os.path.basename, skipped)))))}")
    if unreadable := {s: n for s, n in suffixes.items() if s in UNREADABLE_SUFFIXES}:
        which = ", ".join(f"{n} {s}" for s, n in sorted(unreadable.items()))
        LOGGER.warning(f"not used: {which} images, which cannot be read here; convert them to .jpg or .png")
    images = sorted({f for f in files if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES})
    if not images:
        raise UserError(f"no images ({' '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(map(str, sources))}")
    return images


def _read_list(source: Path, roots: tuple[Path, ...]) -> list[str]:
    """The paths in a .txt list of images, absolute. Raises UserError if it is not a text file."""
    try:
        text = read_file(source, LARGEST_LIST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{source}: a list of images must be a text file in UTF-8") from None
    except OSError as e:
        raise UserError(f"{source}: {e.strerror}") from e
    if "\0" in text:
        raise UserError(f"{source}: a list of images must be a text file, but this one contains zero bytes")
    names = [name for line in text.splitlines() if (name := line.strip().strip("'\""))]
    # relative to the list, as in YOLOv5; or to the dataset's folder, with or without data/, as CVAT writes it
    starts = [(base, cut) for base in dict.fromkeys((source.parent, *roots)) for cut in ("", "data/")]
    sample = names[:: max(len(names) // 100, 1)]
    base, cut = max(starts, key=lambda start: sum(os.path.exists(_joined(name, *start)) for name in sample))
    if base != source.parent:
        LOGGER.info(f"{source}: its images are taken from {base}")
    return [_joined(name, base, cut) for name in names]


def _joined(name: str, base: Path, cut: str) -> str:
    """A line of a list as a path; its backslashes are slashes if there is no such file otherwise."""
    if "\\" in name and not os.path.exists(base / name):
        name = name.replace("\\", "/")
    return os.path.normpath(base / name.removeprefix("./").removeprefix(cut))


@dataclass
class _Examined:
    """An image and its labels: shape (None if it must be left out), rows and error message.

    beside: the label file lies beside the image. scaled: the image has 16 bits per channel.
    """

    shape: tuple[int, int] | None
    rows: Rows = field(default_factory=lambda: Rows(np.zeros((0, 5), np.float32)))
    problem: str = ""
    beside: bool = False
    scaled: bool = False


def _examine(image: str, nc: int, keypoints: bool) -> _Examined:
    """Check one image and its labels."""
    try:
        content = read_content(image)
        shape = decode_image(content).shape[:2]
    except ImageError as e:
        return _Examined(None, problem=f"{image}: {e}")
    if min(shape) < LEAST_PIXELS:
        size = f"{shape[1]}x{shape[0]} px is too small; each side must be at least {LEAST_PIXELS} px"
        return _Examined(None, problem=f"{image}: {size}")
    label = label_path(image)
    beside = None if os.path.exists(label) else _beside(image)
    rows, problem = _read_rows(beside or label, nc, keypoints, {})
    return _Examined(None if problem else shape, rows, problem, beside is not None, is_deep(content))


def _read_rows(file: Path, nc: int, keypoints: bool, kinds: dict[int, str]) -> tuple[Rows, str]:
    """The rows of a label file, none if there is none, and why it cannot be used."""
    empty = Rows(np.zeros((0, 5), np.float32))
    try:
        return parse_rows(read_file(file, LARGEST_LABELS).decode("utf-8-sig"), nc, keypoints, kinds), ""
    except FileNotFoundError:
        return empty, ""
    except UnicodeDecodeError:
        return empty, f"{file}: not a text file in UTF-8"
    except OSError as e:
        return empty, f"{file}: {e.strerror}"
    except ValueError as e:
        linked = os.path.realpath(file) != os.path.abspath(file)  # do not print text from elsewhere
        return empty, f"{file}: {str(e).partition(QUOTE)[0] if linked else e}"


def fingerprint_of(images: list[str], nc: int, keypoints: bool = False) -> str:
    """Return a hash that changes with the path, size or modification time of any image or label file."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {nc}{' keypoints' if keypoints else ''}".encode())
    for image in images:
        label = str(label_path(image))
        digest.update(_state_of(image) or b"\0missing")
        digest.update(_state_of(label) or _state_of(str(_beside(image) or label)) or b"\0missing")
    return digest.hexdigest()


def _state_of(path: str) -> bytes:
    """Return what a fingerprint takes from a file; nothing if it does not exist."""
    try:
        s = os.stat(path)
    except OSError:
        return b""
    return f"\0{path}\0{s.st_size}\0{s.st_mtime_ns}".encode(errors="surrogateescape")


def index_split(data: DataConfig, split: str, desc: str | None = None) -> LabelIndex:
    """`load_labels` for a split of a dataset yaml. desc: what log lines begin with, by default the split."""
    desc = f"{split}: " if desc is None else desc
    return load_labels(data.existing(split), data.nc, desc, data.keypoints, data.roots)


def load_labels(
    sources: tuple[Path, ...], nc: int, desc: str = "", keypoints: bool = False, roots: tuple[Path, ...] = ()
) -> LabelIndex:
    """Index the images of a split with their labels, from the cache if no file has changed.

    Images that are unusable or have invalid labels are left out and reported, with file and line. keypoints: see
    `parse_labels`. roots: see `list_images`. Raises UserError if no image is left.
    """
    images = list_images(sources, roots)
    # a list has its own cache beside it, since several lists may share one image folder
    cache = (sources[0] if sources[0].is_file() else label_path(images[0]).parent).with_suffix(".cache.npz")
    fingerprint = fingerprint_of(images, nc, keypoints)
    caches = [cache, *user_cache_of(fingerprint)]
    index = next(filter(None, (read_cache(c, fingerprint, images, nc) for c in caches)), None)
    if index is None:
        index = _scan(images, nc, desc, keypoints)
        write_cache(caches, fingerprint, index)
    elif index.notes is None:  # written by an older version, and looked through now
        index = replace(index, notes=())
        write_cache(caches, fingerprint, index)
    for note in index.notes:
        LOGGER.warning(f"{desc}{note}")
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


def _scan(images: list[str], nc: int, desc: str, keypoints: bool = False) -> LabelIndex:
    with ThreadPoolExecutor(min(granted_cores(), 8)) as pool:  # decoding leaves the interpreter lock
        examined = pool.map(lambda im: _examine(im, nc, keypoints), images)
        results = list(progress(examined, f"{desc}scanning", total=len(images)))
    kinds = settled_kinds([r.rows for r in results])
    for image, r in zip(images, results, strict=True):
        if any(kinds[columns] != kind for columns, kind in r.rows.unsure):
            r.rows, r.problem = _read_rows(_beside(image) or label_path(image), nc, keypoints, kinds)
    good = [(image, r) for image, r in zip(images, results, strict=True) if r.shape]
    return LabelIndex(
        files=np.array([os.fsencode(image) for image, _ in good], dtype=np.bytes_),
        shapes=np.array([r.shape for _, r in good], np.int32).reshape(-1, 2),
        values=np.concatenate([r.rows.values for _, r in good] or [np.zeros((0, 5), np.float32)]),
        offsets=np.concatenate(([0], np.cumsum([len(r.rows.values) for _, r in good]))).astype(np.int64),
        problems=tuple(printable(r.problem) for r in results if r.problem),
        notes=_notes([r for _, r in good]),
    )


def _notes(good: list[_Examined]) -> tuple[str, ...]:
    counts = total(r.rows.counts for r in good)
    beside, scaled = sum(r.beside for r in good), sum(r.scaled for r in good)
    return tuple(note for n, note in (
        (beside, f"{beside} images have their label file beside them, none in labels/"),
        (scaled, f"{scaled} images have 16 bits per channel: scaled to 8 by the range that each uses"),
        (counts[KEYPOINTS], f"{counts[KEYPOINTS]} rows are a box with keypoints: only the box is used"),
        (counts[CLIPPED], f"{counts[CLIPPED]} rows have values slightly outside 0 to 1: clipped"),
    ) if n)  # fmt: skip


def user_cache_of(fingerprint: str) -> list[Path]:
    """Where a cache goes that cannot be written beside the labels, as on a read-only disk; empty without a home."""
    folder = user_cache()
    return [folder / f"{fingerprint[:32]}.cache.npz"] if folder else []


def read_cache(path: Path, fingerprint: str, images: list[str], nc: int) -> LabelIndex | None:
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
            if "notes" not in z and (problems or _has_long_rows(images)):  # of a version that read them otherwise
                return None
            notes = tuple(printable(str(n))[:200] for n in json.loads(str(z["notes"]))) if "notes" in z else None
        index = LabelIndex(**arrays, problems=problems, notes=notes)
        return index if _is_sound(index, images, nc) else None
    except Exception:  # an unusable cache is rebuilt
        return None


def _has_long_rows(images: list[str]) -> bool:
    """Whether the label file of an image begins with a row of more than five columns, or lies beside the image."""
    for image in images:
        with contextlib.suppress(OSError), open(label_path(image), "rb") as f:
            if len(f.read(400).partition(b"\n")[0].split()) > 5:
                return True
        if _beside(image):
            return True
    return False


def _is_sound(index: LabelIndex, images: list[str], nc: int) -> bool:
    """Whether an index contains only these images, with labels that would pass the checks of label files."""
    files, shapes, values, offsets = index.files, index.shapes, index.values, index.offsets
    kinds = [files.dtype.kind, shapes.dtype, values.dtype, offsets.dtype]
    sizes = [files.ndim, shapes.shape, values.shape[1:], offsets.shape]
    if kinds != ["S", np.int32, np.float32, np.int64] or sizes != [1, (len(files), 2), (5,), (len(files) + 1,)]:
        return False
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        return False
    if (shapes < LEAST_PIXELS).any() or (shapes.prod(1, dtype=np.int64) > MOST_PIXELS).any():
        return False
    if not {*files.tolist()} <= {os.fsencode(image) for image in images}:
        return False
    cls, box = values[:, 0], values[:, 1:]
    fits = (cls == cls.astype(np.int64)) & (cls >= 0) & (cls < nc)
    return bool(fits.all() and (box >= 0).all() and (box <= 1).all() and (box[:, 2:] >= LEAST_SIDE / 2).all())


def write_cache(caches: list[Path], fingerprint: str, index: LabelIndex) -> None:
    """Write the cache to the first place that can be written, and warn if there is none."""
    buffer = io.BytesIO()  # writing the zip into the file itself would raise a second time on a full disk
    np.savez(buffer, fingerprint=fingerprint, files=index.files, shapes=index.shapes, values=index.values,
             offsets=index.offsets, problems=json.dumps(index.problems), notes=json.dumps(index.notes))  # fmt: skip
    failed: OSError | None = None
    for k, path in enumerate(caches):
        try:
            if k:
                path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as f:
                f.write(buffer.getbuffer())
            return
        except OSError as e:
            failed = failed or e
    LOGGER.warning(f"the label cache {caches[0]} cannot be written ({failed.strerror}); the next start scans again")
