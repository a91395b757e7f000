"""The members of a zip, checked: nothing is ever unpacked to a path that the zip chose, or larger than it may be."""

from __future__ import annotations

import lzma
import re
import stat
import zipfile
import zlib
from pathlib import Path
from types import TracebackType

from utils.errors import UserError
from utils.files import no_file

MAX_RATIO = 200  # unpacked to packed size above which a member counts as a bomb ...
RATIO_FROM = 1 << 20  # ... if it is larger than this many bytes: a small blank picture may well shrink a thousandfold

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


class ArchiveError(UserError):
    """A zip, or a member of one, that cannot be used; the text before the first colon names the kind."""


class Archive:
    """A zip open for reading.

    `members`: the names of the plain files in it that are safe to use, in the zip's order.
    `refused`: (name, reason) of every other member that is no folder.
    Raises ArchiveError if the file is no whole zip.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and (why := no_file(self.path)):
            raise ArchiveError(f"{why}: {self.path}")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise ArchiveError(f"no such file: {self.path}") from None
        except _BROKEN as e:
            raise ArchiveError(f"not a whole zip (a download cut short? remove it and fetch it again): {e}") from e
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self.refused: list[tuple[str, str]] = []
        for info in self._zip.infolist():
            reason = unsafe(info)
            if not reason and info.filename in self._infos:
                reason = "member named twice in the zip, the first is used"
            if reason:
                self.refused.append((info.orig_filename, reason))
            elif not info.is_dir():
                self._infos[info.filename] = info
        self.members = list(self._infos)

    def size(self, name: str) -> int:
        """Bytes of the member `name` when unpacked, as the zip tells it."""
        return self._infos[name].file_size

    def crc(self, name: str) -> int:
        """Return the CRC-32 the zip gives for a member."""
        return self._infos[name].CRC

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of the member `name`, checked against its CRC.

        Raises ArchiveError if it is larger than `limit` bytes, damaged, cut short, or packed suspiciously well.
        """
        info = self._infos[name]
        if info.file_size > limit:
            raise ArchiveError(f"too large: {info.file_size} bytes, at most {limit} are read")
        if info.file_size > RATIO_FROM and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise ArchiveError(f"packed more than {MAX_RATIO} to 1, a zip bomb: {info.file_size} bytes")
        try:
            # zipfile gives no more bytes than the directory entry says, so a wrong entry fails here and fills nothing
            data = self._zip.read(info)
        except _BROKEN as e:
            raise ArchiveError(f"damaged in the zip: {e}") from e
        if len(data) != info.file_size:
            raise ArchiveError(f"damaged in the zip: {len(data)} bytes of {info.file_size}")
        return data

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unsafe(info: zipfile.ZipInfo) -> str:
    """Say why a member must not be used, or return an empty string."""
    # zipfile shortens names at a NUL and, on Windows, turns backslashes over: judge what the zip really says
    name = info.orig_filename
    if "\0" in name:
        return "member name with a NUL in it"
    if "\\" in name:
        return "member name with a backslash"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "member with an absolute path"
    if ".." in name.split("/"):
        return "member path leaves its folder"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "member is a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "member is no plain file"
    if info.flag_bits & 0x1:
        return "member is encrypted"
    return ""
