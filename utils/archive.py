"""Safe reading of zip files: nothing is unpacked to a path that the zip chose, or beyond a size limit."""

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

MAX_RATIO = 200  # ratio of unpacked to packed size above which a member counts as a zip bomb ...
RATIO_FROM = 1 << 20  # ... if it is larger than this many bytes; a small blank image may compress a thousandfold

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
    """An unusable zip or member. The text before the first colon is the kind of error (`utils.voc` groups by it)."""


class Archive:
    """A zip open for reading.

    `members`: the names of the regular files that are safe to read, in the zip's order.
    `refused`: (name, reason) of every other member that is not a folder.
    Raises ArchiveError if the file is not a complete zip.
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
            raise ArchiveError(f"not a complete zip (download interrupted? delete it, download it again): {e}") from e
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self.refused: list[tuple[str, str]] = []
        for info in self._zip.infolist():
            reason = unsafe(info)
            if not reason and info.filename in self._infos:
                reason = "member occurs twice in the zip; the first one is used"
            if reason:
                self.refused.append((info.orig_filename, reason))
            elif not info.is_dir():
                self._infos[info.filename] = info
        self.members = list(self._infos)

    def size(self, name: str) -> int:
        """Return the unpacked size in bytes of the member `name`, as stated in the zip."""
        return self._infos[name].file_size

    def crc(self, name: str) -> int:
        """Return the CRC-32 of the member `name`, as stated in the zip."""
        return self._infos[name].CRC

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of the member `name`, checked against its CRC.

        Raises ArchiveError if it is larger than `limit` bytes, damaged, cut short, or compressed like a zip bomb.
        """
        info = self._infos[name]
        if info.file_size > limit:
            raise ArchiveError(f"too large: {info.file_size} bytes, at most {limit} are read")
        if info.file_size > RATIO_FROM and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise ArchiveError(f"compressed more than {MAX_RATIO} to 1, a zip bomb: {info.file_size} bytes")
        try:
            # zipfile returns no more bytes than the directory entry states, so a false size cannot fill the memory
            data = self._zip.read(info)
        except _BROKEN as e:
            raise ArchiveError(f"damaged in the zip: {e}") from e
        if len(data) != info.file_size:
            raise ArchiveError(f"damaged in the zip: {len(data)} of {info.file_size} bytes")
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
    """Return the reason why a member must not be used, or an empty string."""
    # check the original name: zipfile cuts names at a NUL and, on Windows, replaces backslashes
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
        return "member is not a regular file"
    if info.flag_bits & 0x1:
        return "member is encrypted"
    return ""
