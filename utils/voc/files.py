"""The files of a dataset's source, a folder or a zip: their names, sizes and contents, read with limits.

Hidden files and folders, such as .ipynb_checkpoints, __MACOSX and Thumbs.db, do not belong to a dataset.
"""

from __future__ import annotations

import filecmp
import os
import stat
import zlib
from pathlib import Path
from typing import Protocol

from utils.archive import Archive
from utils.data.images import ImageError, read_image
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, is_hidden, of_the_system, read_file

MAX_XML = 5_000_000  # bytes
MAX_LIST = 20_000_000
MAX_IMAGE = 100_000_000

_MAX_LEVELS = 8  # depth to which folders below the source are searched
_HEAD = 262_144  # bytes; the header of most images lies within them


class Files(Protocol):
    """The files of a folder or a zip.

    `problems` lists (file, reason) for files that must not be used, `hidden` the hidden files and folders left out.
    """

    where: Path
    title: str  # name for a dataset at the top level
    names: list[str]
    problems: list[tuple[str, str]]
    hidden: list[str]

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content; raises UserError if it cannot be read or is larger than `limit` bytes."""

    def head(self, name: str) -> bytes:
        """Return the start of an image file, or all of it; raises UserError if it cannot be read."""

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
        self.hidden: list[str] = []
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
            if inside != "." and _is_output(folder, below):
                below.clear()
                continue
            prefix = "" if inside == "." else f"{inside}/"
            self.hidden += [f"{prefix}{name}" for name in (*below, *files) if is_hidden(name)]
            below[:] = sorted(name for name in below if not is_hidden(name))
            self.names += [f"{prefix}{name}" for name in files if not is_hidden(name)]
        self.names.sort()
        self.hidden.sort()

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

    def head(self, name: str) -> bytes:
        """See `Files.head`."""
        self._is_link(name)
        if self.size(name) <= _HEAD:
            return self.read(name, _HEAD)
        try:
            with open(f"{self.where}/{name}", "rb") as f:
                return f.read(_HEAD)
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


def _is_output(folder: str, below: list[str]) -> bool:
    """Return whether a folder was written by an earlier conversion, whose images must not be found again."""
    if not {"annotations", "images", "labels"} <= set(below):
        return False
    inside = os.listdir(f"{folder}/annotations")
    return any(name.startswith("instances_") and name.endswith(".json") for name in inside)


class ZipFiles:
    """The safe members of a zip. Raises ArchiveError if it is not a complete zip."""

    def __init__(self, where: Path) -> None:
        self.where = where.resolve()
        self.title = self.where.stem
        self._archive = Archive(self.where)
        self.problems = [(f"{where.name}: {name}", reason) for name, reason in self._archive.refused]
        self.names: list[str] = []
        hidden: dict[str, None] = {}  # in the zip's order, each once
        for name in self._archive.members:
            parts = name.split("/")
            first = next((k for k, part in enumerate(parts) if is_hidden(part)), None)
            if first is None:
                self.names.append(name)
            else:
                hidden["/".join(parts[: first + 1])] = None
        self.hidden = list(hidden)

    def read(self, name: str, limit: int) -> bytes:
        """See `Files.read`."""
        return self._archive.read(name, limit)

    def head(self, name: str) -> bytes:
        """See `Files.head`."""
        return self._archive.read(name, MAX_IMAGE)

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
