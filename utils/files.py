"""Paths and files: the project's root, run folders, finding a named file, writing a file whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[1]
MODEL_FOLDERS = ("models", "models/hub", "models/zoo")  # where model yamls are, below ROOT
DATASETS = ROOT.parent / "datasets"  # where YOLOv5 keeps its data sets: beside the checkout
IMAGE_SUFFIXES = frozenset(".bmp .dng .jpeg .jpg .mpo .png .tif .tiff .webp .pfm".split())
VIDEO_SUFFIXES = frozenset(".asf .avi .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .wmv .webm".split())
LARGEST_LIST = 2**28  # bytes of a text that lists files
# the same without the dot, in the tuples that YOLOv5's scripts add up and search
IMG_FORMATS, VID_FORMATS = (tuple(sorted(s[1:] for s in suffixes)) for suffixes in (IMAGE_SUFFIXES, VIDEO_SUFFIXES))


def increment_path(path: str | Path, exist_ok: bool = False, sep: str = "") -> Path:
    """Create and return the folder `path`, or `path2`, `path3`, ... the first that does not exist yet.

    The folder is made here, in one step that fails if it exists, so that two runs started at once get two folders.
    sep: what stands before the number.
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
    """`increment_path` as YOLOv5's scripts call it: files are numbered too, and a folder is made only with `mkdir`.

    A file's number stands before its suffix. Without `mkdir` another process may take the same name.
    """
    path = Path(path)
    if mkdir:
        return increment_path(path, exist_ok, sep)
    return path if exist_ok else next(p for p in _numbered(path, sep) if not p.exists())


def _numbered(path: Path, sep: str) -> Iterator[Path]:
    """`path`, `path2`, `path3`, ... without end; the number goes before the suffix if `path` is a file."""
    yield path
    stem, suffix = (path.stem, path.suffix) if path.is_file() else (path.name, "")
    for number in itertools.count(2):
        yield path.with_name(f"{stem}{sep}{number}{suffix}")


def _make_folder(path: Path, exist_ok: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok:
            raise UserError(f"{path} is a file, a folder is needed there: choose another --project or --name") from None
        raise
    except OSError as e:
        raise UserError(f"cannot make the folder {path}: {e.strerror}; choose another --project") from e


def read_file(path: str | Path, most: int) -> bytes:
    """The bytes of a plain file. Raises OSError for anything else, such as a pipe, and for more than `most` bytes.

    What lies in a data set may be a link to a device or a pipe, which would never end, or never begin.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as f:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        # as much as there is: Python takes the memory for what it is asked to read before it reads
        content = f.read(min(status.st_size, most) + 1)
        if status.st_size < len(content) <= most:  # it is growing
            content += f.read(most + 1 - len(content))
    if len(content) > most:
        raise OSError(errno.EINVAL, f"is larger than {most:,} bytes", str(path))
    return content


def no_file(path: str | Path) -> str:
    """Why a path leads to no file, or an empty string: a pipe would be waited for, a device may have no end."""
    path = Path(path)
    return "" if path.is_file() else "is no plain file" if path.exists() else "does not exist"


def of_the_system(folder: str | Path) -> bool:
    """Whether a folder is no disk, but what the system shows of itself. /dev/shm is a disk, in memory."""
    parts = Path(os.path.realpath(folder)).parts
    return parts[:1] == ("/",) and parts[1:2] in (("proc",), ("sys",), ("dev",)) and parts[1:3] != ("dev", "shm")


def walk(folder: str | Path) -> Iterator[str]:
    """The files below a folder, links followed, each real folder once, by its own path if it has one there.

    A link may lead back up, and several links to the same folder, one behind the other, make endlessly many paths.
    None is followed to what the system shows of itself, where the whole disk lies once more for each process.
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
        except OSError:  # gone by now, or not for us to read
            continue
        for entry in entries:
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                yield entry.path


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", durable: bool = True, **kwargs) -> Iterator[IO]:
    """Open a temporary file beside `path`; on success rename it, on failure remove it.

    Whoever reads `path` sees the old content or the new one, never a part. durable: also after a power cut, for which
    the disk has to be waited for.
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
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's file mode mask (it can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find_file(name: str | Path, folders: tuple[str, ...], what: str) -> Path:
    """Return the file `name` names: as given, below ROOT, or below one of ROOT's `folders`.

    A path such as models/x.yaml, whose folder is one of `folders`, is looked up in the others too.
    Raises UserError, with the nearest known name, if there is none, and if two of `folders` have one of this name.
    """
    if not str(name):
        raise UserError(f"{what} is empty")
    name = Path(name)
    names = [name] if name.suffix in (".yaml", ".yml") else [name, name.with_name(f"{name.name}.yaml")]
    for n in names:
        for path in (n, ROOT / n):
            if path.is_file():
                return path.resolve()
        below = Path(n.name) if n.parent.as_posix() in folders else n
        found = [ROOT / folder / below for folder in folders if (ROOT / folder / below).is_file()]
        if len(found) > 1:
            both = " and ".join(path.relative_to(ROOT).as_posix() for path in found)
            raise UserError(f"{what} '{name}' is ambiguous: there are {both}; give the path of one, or rename one")
        if found:
            return found[0].resolve()
    known = sorted({p.name for folder in folders for p in (ROOT / folder).glob("*.yaml")})
    hint = did_you_mean(name.name, known)
    listed = f"; known: {', '.join(known)}" if known and not hint else ""
    if name.is_dir():
        raise UserError(f"{what} '{name}' is a folder; give a yaml file")
    raise UserError(f"{what} '{name}' does not exist{hint}{listed}")


def model_yamls() -> dict[str, Path]:
    """The model yamls of this checkout by their names without suffix, in the order of MODEL_FOLDERS."""
    return {file.stem: file for folder in MODEL_FOLDERS for file in sorted((ROOT / folder).glob("*.yaml"))}


def check_suffix(file: str | Path, suffix: str | Sequence[str]) -> None:
    """Raise UserError if a file's name has a suffix, and none of these (with the dot, in any case)."""
    wanted = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    if Path(file).suffix and Path(file).suffix.lower() not in wanted:
        raise UserError(f"{file}: is no {' or '.join(wanted)} file")


def safe_name(text: str) -> str:
    """A file name made of a class name or an address."""
    return re.sub(r"[^\w.-]+", "_", text[:80]).strip(".") or "_"


def csv_text(text: str) -> str:
    """A name as a csv may hold it: behind an apostrophe where spreadsheets would take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with _2, _3, ... after those that came before."""
    taken: list[str] = []
    for name in names:
        taken.append(next(n for k in itertools.count(1) if (n := f"{name}_{k}" if k > 1 else name) not in taken))
    return taken


def newest(pattern: str, root: Path = ROOT / "runs") -> Path | None:
    """Return the most recently written file below `root` that matches `pattern`, or None."""
    files = [p for p in root.glob(pattern) if p.is_file()]
    return max(files, key=lambda p: p.stat().st_mtime, default=None)


def git_commit() -> str:
    """The commit that is checked out in ROOT, read from .git without running git; empty where there is none."""
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
    """Bytes of a file, or of the files of a folder."""
    return sum(f.stat().st_size for f in path.iterdir()) if path.is_dir() else path.stat().st_size
