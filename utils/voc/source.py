"""Data sets in Pascal VOC's arrangement, found in a folder or in a zip: their splits, annotations and images.

A set is a folder with `Annotations/*.xml`, `JPEGImages/*` and, if there are given splits, `ImageSets/Main/*.txt`.
Names inside annotations and lists are looked up among the files that are there and never used as a path.
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

_MAX_LEVELS = 8  # folders below the source that are searched
_FLAG = re.compile(r"(.*\S)\s+(?:-1|0|1)")  # VOC's lists per class follow the name with a flag


class Files(Protocol):
    """What a set is read from: a folder or a zip. `problems` holds (file, reason) of what must not be used."""

    where: Path
    title: str  # names a set that lies at the top
    names: list[str]
    problems: list[tuple[str, str]]

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content; raises UserError if it cannot be read or is larger than `limit` bytes."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes; raises UserError if there is no such plain file."""

    def path(self, name: str) -> Path | None:
        """Return where the file lies on the disk, or None inside a zip."""

    def equals(self, name: str, other: str) -> bool:
        """Whether the file `other` holds the same bytes."""


class FolderFiles:
    """The files below a folder, links followed; names are relative, with forward slashes."""

    def __init__(self, where: Path) -> None:
        self.where = where.resolve()
        self.title = self.where.name
        self.problems: list[tuple[str, str]] = []
        self.names: list[str] = []
        seen: set[str] = set()  # a link may lead back up
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
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UserError("no plain file")
        return status.st_size

    def path(self, name: str) -> Path | None:
        """See `Files.path`."""
        real = Path(os.path.realpath(f"{self.where}/{name}"))
        if self._is_link(name):
            try:
                read_image(real, reduce=8)  # small: sets may be made of links
            except ImageError as e:
                raise UserError(f"a link to no picture: {e}") from e
        return real

    def _is_link(self, name: str) -> bool:
        """Whether a file is a link, which may lead anywhere. Raises UserError if it leads to another kind of file."""
        path = f"{self.where}/{name}"
        if not os.path.islink(path):
            return False
        kind, leads_to = (Path(p).suffix.lower() for p in (path, os.path.realpath(path)))
        kind, leads_to = ("picture" if k in IMAGE_SUFFIXES else k for k in (kind, leads_to))
        # stores of large files call them by their content, without a suffix; the lines of a list are shown
        if leads_to != kind and (leads_to or kind == ".txt"):
            raise UserError("a link to another kind of file")
        return True

    def equals(self, name: str, other: str) -> bool:
        """See `Files.equals`."""
        source = f"{self.where}/{name}"
        return os.path.samefile(source, other) or filecmp.cmp(source, other, shallow=False)


class ZipFiles:
    """The safe members of a zip. Raises ArchiveError if it is no whole zip."""

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
    """One set: `annotations`, `images` and `lists` give the file's name in `files` by its stem (or list name)."""

    files: Files
    name: str
    annotations: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)

    @property
    def year(self) -> int | None:
        """2007 for a set whose folder is named VOC2007; None for one that is not of VOC's years with boxes given."""
        match = re.fullmatch(r"VOC(2007|2012)", self.name)
        return int(match[1]) if match else None

    def read_annotation(self, stem: str) -> bytes:
        """Return the bytes of one xml; raises UserError."""
        if stem not in self.annotations:
            raise UserError("annotation missing")
        return self.files.read(self.annotations[stem], MAX_XML)

    def find_image(self, stem: str, filename: str) -> str:
        """Return the name in `files` of the image of an annotation, by the xml's stem, else by its <filename>.

        Raises UserError if there is none, or it is empty or larger than MAX_IMAGE.
        """
        # <filename> is often a path of the annotator's own machine, or was never updated after renaming
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
        """Stems of train, val and test as ImageSets/Main lists them, and (file, reason) of what is odd there.

        `trainval` is train where neither train nor val is listed. Empty if there are no lists.
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
        """The stem a line of a list means: as it stands, else without its flag, its folder, its suffix."""
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
    """One image that will be converted; `image` is its name in the set's files."""

    stem: str
    voc: VocSet
    image: str
    annotation: VocAnnotation

    @property
    def file_name(self) -> str:
        """The image's name in the output: the annotation's stem, so that image and label belong together."""
        return self.stem + os.path.splitext(self.image)[1]


def open_sources(paths: Sequence[Path]) -> tuple[list[VocSet], list[tuple[str, str]]]:
    """Open zips and folders and return the sets in them, and (file, reason) of what cannot be used.

    A folder without a set in it stands for the zips lying in it. One that is not there or broken spoils no other.
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
                problem = [(str(path), "no VOC set in it: no folder Annotations with xml files")]
        except UserError as e:
            found, problem = [], [(str(path), str(e))]
        sets += found
        problems += problem
    return sets, problems


def _open_zip(path: Path) -> tuple[list[VocSet], list[tuple[str, str]]]:
    if path.suffix.lower() in (".tar", ".gz", ".tgz", ".rar", ".7z"):
        raise ArchiveError("not a zip: unpack it and give its folder")
    files = ZipFiles(path)
    return find_sets(files), files.problems


def find_sets(files: Files) -> list[VocSet]:
    """Return every set in a folder or zip: each folder that holds `Annotations/` with xml files in it."""
    found: dict[str, VocSet] = {}
    for name in files.names:
        folder, _, base = name.rpartition("/")
        if base.startswith("."):  # what a Mac adds to a zip, __MACOSX/.../._name
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
    """Which set's root a folder belongs to, the suffixes of interest in it, and the table they go to."""
    root, _, last = folder.rpartition("/")
    if last == "Annotations":
        return root, frozenset([".xml"]), "annotations"
    if last == "JPEGImages":
        return root, IMAGE_SUFFIXES, "images"
    if folder == "ImageSets/Main" or folder.endswith("/ImageSets/Main"):
        return folder[: -len("ImageSets/Main")].rstrip("/"), frozenset([".txt"]), "lists"
    return "", None, ""


def _key(name: str) -> str:
    """A name in one Unicode form: a Mac writes an accent as a letter of its own, a list may not."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_custom(sets: Sequence[VocSet]) -> bool:
    """Whether the sets are someone's own and not VOC2007 or VOC2012; raises UserError for both at once."""
    own = [voc.name for voc in sets if voc.year is None]
    if own and len(own) < len(sets):
        raise UserError(f"VOC's years and another set, {own[0]!r}, in one run: convert one after the other")
    return bool(own)


def seeded_split(stems: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Split `stems` into train, val and, with a third fraction, test; each gets one at least, as far as they go.

    Stems are ordered by a hash with the seed, so that images added later hardly move the others from split to split.
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
    """Return width and height in pixels of an encoded image, turned as its EXIF says, as the training reads it.

    Raises UserError if it cannot be decoded.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        image = None
    if image is None:
        raise UserError("image cannot be decoded, and the xml tells no size")
    return image.shape[1], image.shape[0]
