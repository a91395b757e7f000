"""Paths and files: the project's root, run folders, file lookup by name, safe reading and atomic writing."""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.errors import UserError, did_you_mean, shorten

ROOT = Path(__file__).resolve().parents[1]
MODEL_FOLDERS = ("models", "models/hub", "models/zoo")  # folders of model yamls, below ROOT
DATASETS = ROOT.parent / "datasets"  # as in YOLOv5: beside the checkout
IMAGE_SUFFIXES = frozenset(".avif .bmp .dng .jfif .jp2 .jpeg .jpg .mpo .png .tif .tiff .webp .pfm".split())
UNREADABLE_SUFFIXES = frozenset(".heic .heif .jxl .cr2 .nef .arw".split())  # images that OpenCV cannot read
HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")
VIDEO_SUFFIXES = frozenset(".asf .avi .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .wmv .webm".split())
LARGEST_LIST = 2**28  # bytes of a text file that lists files
# the same without the dot, as tuples, which YOLOv5's scripts concatenate and search
IMG_FORMATS, VID_FORMATS = (tuple(sorted(s[1:] for s in suffixes)) for suffixes in (IMAGE_SUFFIXES, VIDEO_SUFFIXES))


def increment_path(path: str | Path, exist_ok: bool = False, sep: str = "") -> Path:
    """Create and return the folder `path`, or the first of `path2`, `path3`, ... that does not exist yet.

    mkdir fails if the folder exists, so two runs started at the same time get different folders.
    exist_ok: return `path` even if it exists; sep: separator before the number.
    """
    path = Path(path)
    if exist_ok:
        _make_folder(path, exist_ok=True)
        return path
    candidates = _numbered(path, sep)
    while True:
        candidate = next(candidates)
        try:
            _make_folder(candidate, exist_ok=False)
            return candidate
        except FileExistsError:
            continue


def unused_path(path: str | Path, exist_ok: bool = False, sep: str = "", mkdir: bool = False) -> Path:
    """`increment_path` as YOLOv5's scripts call it: it also numbers files, and makes a folder only with `mkdir`.

    For a file, the number is inserted before the suffix. Without `mkdir`, another process may take the same name.
    """
    path = Path(path)
    if mkdir:
        return increment_path(path, exist_ok, sep)
    return path if exist_ok else next(p for p in _numbered(path, sep) if not p.exists())


def _numbered(path: Path, sep: str) -> Iterator[Path]:
    """Yield `path`, `path2`, `path3`, ... endlessly; for a file the number is inserted before the suffix."""
    yield path
    stem, suffix = (path.stem, path.suffix) if path.is_file() else (path.name, "")
    for number in itertools.count(2):
        yield path.with_name(f"{stem}{sep}{number}{suffix}")


def _make_folder(path: Path, exist_ok: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok:
            raise UserError(f"{path} is a file, but a folder is needed: choose another --project or --name") from None
        raise
    except OSError as e:
        raise UserError(f"cannot make the folder {path}: {e.strerror}; choose another --project") from e


def read_file(path: str | Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes. Raises OSError if it is larger or not a regular file.

    A file in a dataset may be a link to a device or a pipe; reading those might never end.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as f:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        # no more than the file's size: Python allocates the requested size before it reads
        content = f.read(min(status.st_size, most) + 1)
        if status.st_size < len(content) <= most:  # the file has grown, or /proc reports a size of 0
            content += f.read(most + 1 - len(content))
    if len(content) > most:
        raise OSError(errno.EINVAL, f"is larger than {most:,} bytes", str(path))
    return content


def no_file(path: str | Path) -> str:
    """Return why a path is not a regular file, or an empty string. Reading a pipe or a device might never end."""
    path = Path(path)
    return "" if path.is_file() else "is not a regular file" if path.exists() else "does not exist"


def of_the_system(folder: str | Path) -> bool:
    """Whether a folder lies in /proc, /sys or /dev (except /dev/shm), where the system shows its own state."""
    parts = Path(os.path.realpath(folder)).parts
    return parts[:1] == ("/",) and parts[1:2] in (("proc",), ("sys",), ("dev",)) and parts[1:3] != ("dev", "shm")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not data: hidden, or left by a system, such as Thumbs.db."""
    return name.startswith(".") or name in HIDDEN


def walk(folder: str | Path, skipped: list[str] | None = None) -> Iterator[str]:
    """Yield the files below a folder, following links; each real folder is visited once, by its real path if possible.

    Visiting folders once is needed because a link may lead to a parent folder and so give endlessly many paths.
    /proc, /sys and /dev are skipped: /proc contains the whole file system once more for each process.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [str(folder)], []
    while folders or links:
        where = folders.pop() if folders else links.pop()
        if of_the_system(where):
            continue
        try:
            status = os.stat(where)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(where), key=lambda e: e.name, reverse=True)
        except OSError:  # removed meanwhile, or not readable
            continue
        for entry in entries:
            if is_hidden(entry.name):
                if skipped is not None:
                    skipped.append(entry.path)
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                yield entry.path


@contextmanager
def atomic_write(
    path: str | Path, mode: str = "wb", durable: bool = True, private: bool = False, **kwargs
) -> Iterator[IO]:
    """Open a temporary file beside `path`; rename it to `path` on success, remove it on failure.

    Readers of `path` see the old or the new content, never a part of it. durable: ensure this also after a power cut,
    by waiting for the disk (fsync). private: only this user may read and write the file.
    """
    path = Path(path)
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".part")
    try:
        with os.fdopen(handle, mode, **kwargs) as f:
            yield f
            if durable:
                f.flush()
                os.fsync(f.fileno())
        if not private:
            os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Return the process's umask (which can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def user_cache() -> Path | None:
    """Return this program's folder in the user's cache folder, which may not exist; None without a home folder."""
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "")}.get(sys.platform, "~/.cache")
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or usual)
    return Path(folder) / "yolov5-light" if os.path.isabs(folder) else None


def find_file(name: str | Path, folders: tuple[str, ...], what: str) -> Path:
    """Find the file `name`: as given, below ROOT, or in one of the `folders` below ROOT.

    If the path's folder is one of `folders`, as in models/x.yaml, the other folders are searched too.
    Raises UserError if there is no such file (suggesting the most similar name) or if it is in two of the folders.
    """
    if not str(name):
        raise UserError(f"{what} is empty")
    name = Path(name)
    if not name.name:  # . or /
        raise UserError(f"{what} '{name}' is a folder; give a yaml file")
    names = [name] if name.suffix in (".yaml", ".yml") else [name, name.with_name(f"{name.name}.yaml")]
    for n in names:
        for path in (n, ROOT / n):
            if os.path.isfile(path):
                return path.resolve()
        below = Path(n.name) if n.parent.as_posix() in folders else n
        found = [ROOT / folder / below for folder in folders if os.path.isfile(ROOT / folder / below)]
        if len(found) > 1:
            both = " and ".join(path.relative_to(ROOT).as_posix() for path in found)
            raise UserError(f"{what} '{name}' is ambiguous: there are {both}; give the path of one, or rename one")
        if found:
            return found[0].resolve()
    known = sorted({p.name for folder in folders for p in (ROOT / folder).glob("*.yaml")})
    hint = did_you_mean(name.name, known)
    listed = f"; known: {', '.join(known)}" if known and not hint else ""
    if os.path.isdir(name):
        yamls = ", ".join(sorted(p.name for p in name.glob("*.yaml"))[:5])
        raise UserError(f"{what} '{name}' is a folder; give a yaml file{f' in it: {yamls}' if yamls else ''}")
    raise UserError(f"{what} '{shorten(name)}' does not exist{hint}{listed}")


def model_yamls() -> dict[str, Path]:
    """Return the model yamls of this checkout, keyed by name without suffix, in the order of MODEL_FOLDERS."""
    return {file.stem: file for folder in MODEL_FOLDERS for file in sorted((ROOT / folder).glob("*.yaml"))}


def check_suffix(file: str | Path, suffix: str | Sequence[str]) -> None:
    """Raise UserError if a file name has a suffix, in any case, other than `suffix` (lower case, with the dot)."""
    wanted = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    if Path(file).suffix and Path(file).suffix.lower() not in wanted:
        raise UserError(f"{file}: is not a {' or '.join(wanted)} file")


def safe_name(text: str) -> str:
    """Return a valid file name made from a text such as a class name or URL."""
    return re.sub(r"[^\w.-]+", "_", text[:80]).strip(".") or "_"


def csv_text(text: str) -> str:
    """Return a text for a csv file, with an apostrophe in front if a spreadsheet would read it as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names, with _2, _3, ... appended to repeated ones."""
    taken: list[str] = []
    for name in names:
        taken.append(next(n for k in itertools.count(1) if (n := f"{name}_{k}" if k > 1 else name) not in taken))
    return taken


def newest(pattern: str, root: Path = ROOT / "runs") -> Path | None:
    """Return the most recently written file below `root` that matches `pattern`, or None."""
    files = [p for p in root.glob(pattern) if p.is_file()]
    return max(files, key=lambda p: p.stat().st_mtime, default=None)


def git_commit() -> str:
    """Return the commit checked out in ROOT, read from .git without running git, or an empty string."""
    try:
        head = (ROOT / ".git" / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        ref = ROOT / ".git" / head.removeprefix("ref: ")
        if ref.is_file():
            return ref.read_text(encoding="utf-8").strip()
        packed = (ROOT / ".git" / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(head.removeprefix("ref: "))), "")
    except (OSError, UnicodeDecodeError):
        return ""


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of the files directly in a folder."""
    return sum(f.stat().st_size for f in path.iterdir()) if path.is_dir() else path.stat().st_size
