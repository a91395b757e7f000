"""Datasets in Pascal VOC's folder layout, read from a folder or a zip: their splits, annotations and images.

A dataset is a folder with `Annotations/*.xml`, `JPEGImages/*` and, if it has predefined splits,
`ImageSets/Main/*.txt`. File names in annotations and lists are looked up among the existing files and never used as
paths.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.archive import Archive, ArchiveError
from utils.data.images import ImageError, read_image
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, of_the_system, read_file
from utils.system.opencv import cv2
from utils.voc.annotation import VocAnnotation

MAX_XML = 5_000_000  # bytes
MAX_LIST = 20_000_000
MAX_IMAGE = 100_000_000

_MAX_LEVELS = 8  # depth to which folders below the source are searched
_FLAG = re.compile(r"(.*\S)\s+(?:-1|0|1)")  # in VOC's lists per class a flag follows the name


class Files(Protocol):
    """The files of a folder or a zip. `problems` lists (file, reason) for files that must not be used."""

    where: Path
    title: str  # name for a dataset at the top level
    names: list[str]
    problems: list[tuple[str, str]]

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content; raises UserError if it cannot be read or is larger than `limit` bytes."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes; raises UserError if it does not exist or is not a regular file."""

    def path(self, name: str) -> Path | None:
        """Return the file's path on the disk, or None for a file in a zip."""

    def equals(self, name: str, other: str) -> bool:
        """Return whether the file `other` has the same content."""


class FolderFiles:
    """The files below a folder, including linked ones; names are relative, with forward slashes."""

    def __init__(self, where: Path) -> None:
        self.where = where.resolve()
        self.title = self.where.name
        self.problems: list[tuple[str, str]] = []
        self.names: list[str] = []
        seen: set[str] = set()  # a link may point to a parent folder
        for folder, below, files in os.walk(self.where, followlinks=True):
            inside = os.path.relpath(folder, self.where).replace(os.sep, "/")
            real = os.path.realpath(folder)
            known = real in seen or of_the_system(real)
            if known or inside.count("/") + 1 >= _MAX_LEVELS:
                below.clear()
            if known:
                continue
            seen.add(real)
            below.sort()
            self.names += files if inside == "." else [f"{inside}/{name}" for name in files]
        self.names.sort()

    def read(self, name: str, limit: int) -> bytes:
        """See `Files.read`."""
        self._is_link(name)
        size = self.size(name)
        if size > limit:
            raise UserError(f"too large: {size} bytes, at most {limit} are read")
        try:
            return read_file(f"{self.where}/{name}", limit)
        except OSError as e:
            raise UserError(f"cannot be read: {e.strerror}") from e

    def size(self, name: str) -> int:
        """See `Files.size`."""
        try:
            status = os.stat(f"{self.where}/{name}")
        except OSError as e:
            raise UserError(f"cannot be read: {e.strerror}") from e
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            raise UserError("not a regular file")
        return status.st_size

    def path(self, name: str) -> Path | None:
        """See `Files.path`."""
        real = Path(os.path.realpath(f"{self.where}/{name}"))
        if self._is_link(name):
            try:
                read_image(real, reduce=8)  # at reduced size for speed: all images may be links
            except ImageError as e:
                raise UserError(f"a link to a file that is not an image: {e}") from e
        return real

    def _is_link(self, name: str) -> bool:
        """Return whether a file is a symbolic link. Raises UserError if the link points to another kind of file."""
        path = f"{self.where}/{name}"
        if not os.path.islink(path):
            return False
        kind, leads_to = (Path(p).suffix.lower() for p in (path, os.path.realpath(path)))
        kind, leads_to = ("picture" if k in IMAGE_SUFFIXES else k for k in (kind, leads_to))
        # large-file stores name files by their hash, without a suffix; not allowed for lists, whose lines are printed
        if leads_to != kind and (leads_to or kind == ".txt"):
            raise UserError("a link to another kind of file")
        return True

    def equals(self, name: str, other: str) -> bool:
        """See `Files.equals`."""
        source = f"{self.where}/{name}"
        return os.path.samefile(source, other) or filecmp.cmp(source, other, shallow=False)


class ZipFiles:
    """The safe members of a zip. Raises ArchiveError if it is not a complete zip."""

    def __init__(self, where: Path) -> None:
        self.where = where.resolve()
        self.title = self.where.stem
        self._archive = Archive(self.where)
        self.problems = [(f"{where.name}: {name}", reason) for name, reason in self._archive.refused]
        self.names = self._archive.members

    def read(self, name: str, limit: int) -> bytes:
        """See `Files.read`."""
        return self._archive.read(name, limit)

    def size(self, name: str) -> int:
        """See `Files.size`."""
        return self._archive.size(name)

    def path(self, name: str) -> Path | None:
        """See `Files.path`."""
        return None

    def equals(self, name: str, other: str) -> bool:
        """See `Files.equals`."""
        with open(other, "rb") as f:
            return zlib.crc32(f.read()) == self._archive.crc(name)


@dataclass
class VocSet:
    """One dataset: `annotations`, `images` and `lists` map a file's stem to its name in `files`."""

    files: Files
    name: str
    annotations: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)

    @property
    def year(self) -> int | None:
        """2007 or 2012 for a dataset in a folder named VOC2007 or VOC2012, None for any other."""
        match = re.fullmatch(r"VOC(2007|2012)", self.name)
        return int(match[1]) if match else None

    def read_annotation(self, stem: str) -> bytes:
        """Return the bytes of one xml file; raises UserError if it is missing or cannot be read."""
        if stem not in self.annotations:
            raise UserError("annotation missing")
        return self.files.read(self.annotations[stem], MAX_XML)

    def find_image(self, stem: str, filename: str) -> str:
        """Return the name in `files` of an annotation's image, found by the xml's stem, or else by its <filename>.

        Raises UserError if the image is missing, empty or larger than MAX_IMAGE.
        """
        # <filename> is often a path on the annotator's machine, or was not updated when the image was renamed
        told = _key(re.split(r"[\\/]", filename)[-1])
        name = self.images.get(stem) or self.images.get(told) or self.images.get(os.path.splitext(told)[0])
        if name is None:
            raise UserError("image missing")
        size = self.files.size(name)
        if size == 0:
            raise UserError("image is an empty file")
        if size > MAX_IMAGE:
            raise UserError(f"image too large: {size} bytes, at most {MAX_IMAGE} are read")
        return name

    def splits(self) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
        """Return the stems of train, val and test from ImageSets/Main, and (file, reason) of problems in the lists.

        `trainval` is used as train if neither train nor val is listed. The dict is empty if there are no lists.
        """
        known = {name for name in ("train", "val", "test") if name in self.lists}
        wanted = {name: name for name in ("train", "val", "test") if name in known}
        if "trainval" in self.lists and not known & {"train", "val"}:
            wanted = {"train": "trainval", **wanted}
        found: dict[str, list[str]] = {}
        problems: list[tuple[str, str]] = []
        for split, listed in wanted.items():
            label = f"{self.name}/ImageSets/Main/{listed}.txt"
            try:
                text = self.files.read(self.lists[listed], MAX_LIST).decode("utf-8-sig", errors="replace")
            except UserError as e:
                problems.append((label, f"list of images cannot be used: {e}"))
                continue
            stems = [self._stem(line) for line in text.splitlines() if line.strip()]
            found[split] = list(dict.fromkeys(stems))
            if len(found[split]) < len(stems):
                problems.append((label, f"images listed twice: {len(stems) - len(found[split])} lines"))
        return found, problems

    def _stem(self, line: str) -> str:
        """Return the stem given by a line of a list: the line itself, or without its flag, folder and suffix."""
        line = _key(line.strip())
        if line in self.annotations:
            return line
        flagged = _FLAG.fullmatch(line)
        bare = flagged[1] if flagged else line
        if bare in self.annotations:
            return bare
        root, suffix = os.path.splitext(re.split(r"[\\/]", bare)[-1])
        return root if suffix.lower() in IMAGE_SUFFIXES | {".xml"} and root in self.annotations else bare


@dataclass
class Record:
    """One image to convert; `image` is its name in the dataset's files."""

    stem: str
    voc: VocSet
    image: str
    annotation: VocAnnotation

    @property
    def file_name(self) -> str:
        """The image's name in the output: the stem of the annotation, so that image and label have the same stem."""
        return self.stem + os.path.splitext(self.image)[1]


def open_sources(paths: Sequence[Path]) -> tuple[list[VocSet], list[tuple[str, str]]]:
    """Open zips and folders; return the datasets in them, and (file, reason) of those that cannot be used.

    If a folder contains no dataset, the zips in it are opened instead. A missing or broken path does not affect the
    others.
    """
    sets: list[VocSet] = []
    problems: list[tuple[str, str]] = []
    for path in paths:
        try:
            if not path.is_dir():
                found, problem = _open_zip(path)
            else:
                found, problem = find_sets(FolderFiles(path)), []
                if not found:
                    inside, problem = open_sources(sorted(p for p in path.glob("*.[zZ][iI][pP]") if p.is_file()))
                    found = inside
            if not found and not problem:
                problem = [(str(path), "no VOC dataset: there is no folder Annotations with xml files")]
        except UserError as e:
            found, problem = [], [(str(path), str(e))]
        sets += found
        problems += problem
    return sets, problems


def _open_zip(path: Path) -> tuple[list[VocSet], list[tuple[str, str]]]:
    if path.suffix.lower() in (".tar", ".gz", ".tgz", ".rar", ".7z"):
        raise ArchiveError("not a zip: unpack it and give the path of its folder")
    files = ZipFiles(path)
    return find_sets(files), files.problems


def find_sets(files: Files) -> list[VocSet]:
    """Return every dataset in a folder or zip: each folder that contains `Annotations/` with xml files."""
    found: dict[str, VocSet] = {}
    for name in files.names:
        folder, _, base = name.rpartition("/")
        if base.startswith("."):  # macOS adds __MACOSX/.../._name to zips
            continue
        root, kind, table = _place(folder)
        if kind is None:
            continue
        stem, suffix = os.path.splitext(base)
        voc = found.get(root)
        if voc is None:
            voc = found[root] = VocSet(files, root.rpartition("/")[2] or files.title)
        if suffix.lower() in kind:
            getattr(voc, table).setdefault(_key(stem), name)
    return [voc for voc in found.values() if voc.annotations]


def _place(folder: str) -> tuple[str, frozenset[str] | None, str]:
    """Return the root of the dataset that a folder belongs to, the suffixes of the files to use, and their attribute.

    The attribute is that of `VocSet`; the suffixes are None for a folder that is not used.
    """
    root, _, last = folder.rpartition("/")
    if last == "Annotations":
        return root, frozenset([".xml"]), "annotations"
    if last == "JPEGImages":
        return root, IMAGE_SUFFIXES, "images"
    if folder == "ImageSets/Main" or folder.endswith("/ImageSets/Main"):
        return folder[: -len("ImageSets/Main")].rstrip("/"), frozenset([".txt"]), "lists"
    return "", None, ""


def _key(name: str) -> str:
    """Normalise a name to Unicode NFC, since macOS stores accents as separate characters and lists may not."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_custom(sets: Sequence[VocSet]) -> bool:
    """Return whether the datasets are custom ones and not VOC2007 or VOC2012; raises UserError for a mix of both."""
    own = [voc.name for voc in sets if voc.year is None]
    if own and len(own) < len(sets):
        raise UserError(f"VOC2007 or VOC2012 and another dataset, {own[0]!r}, in one run: convert them separately")
    return bool(own)


def seeded_split(stems: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Split `stems` into train, val and, with a third fraction, test; each gets at least one stem if there are enough.

    Stems are sorted by a hash with the seed, so that adding images later moves few of the others to another split.
    """
    order = sorted(stems, key=lambda stem: hashlib.sha256(f"{seed}:{stem}".encode("utf-8", "replace")).digest())
    names = ("train", "val", "test")[: len(fractions)]
    counts = [max(1, round(part * len(order))) if part else 0 for part in fractions[1:]]
    start = max(len(order) - sum(counts), 1 if order else 0)
    found = {"train": sorted(order[:start])}
    for name, count in zip(names[1:], counts, strict=True):
        found[name] = sorted(order[start : start + count])
        start += count
    return {name: part for name, part in found.items() if part}


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels of an encoded image, after its EXIF rotation, which training applies too.

    Raises UserError if the image cannot be decoded.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        image = None
    if image is None:
        raise UserError("image cannot be decoded, and the xml has no <size>")
    return image.shape[1], image.shape[0]
