"""Paths and files: the project's root, run folders, finding a named file, writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT.parent / "datasets"  # where YOLOv5 keeps its data sets: beside the checkout
IMAGE_SUFFIXES = frozenset(".bmp .dng .jpeg .jpg .mpo .png .tif .tiff .webp .pfm".split())
VIDEO_SUFFIXES = frozenset(".asf .avi .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .wmv .webm".split())


def increment_path(path: str | Path, exist_ok: bool = False) -> Path:
    """Create and return `path`, or `path2`, `path3`, ... the first that does not exist yet.

    The folder is made here, in one step that fails if it exists, so that two runs started at once get two folders.
    """
    path = Path(path)
    if exist_ok:
        _make_folder(path, exist_ok=True)
        return path
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.name}{number}")
        try:
            _make_folder(candidate, exist_ok=False)
            return candidate
        except FileExistsError:
            number += 1


def _make_folder(path: Path, exist_ok: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok:
            raise UserError(f"{path} is a file, a folder is needed there: choose another --project or --name") from None
        raise
    except OSError as e:
        raise UserError(f"cannot make the folder {path}: {e.strerror}; choose another --project") from e


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", **kwargs) -> Iterator[IO]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it, on failure remove it.

    Whoever reads `path` sees the old content or the new one, never a part.
    """
    path = Path(path)
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".part")
    try:
        with os.fdopen(handle, mode, **kwargs) as f:
            yield f
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

    Raises UserError, with the nearest known name, if there is none.
    """
    if not str(name):
        raise UserError(f"{what} is empty")
    name = Path(name)
    names = [name] if name.suffix in (".yaml", ".yml") else [name, name.with_name(f"{name.name}.yaml")]
    tried = [base / n for n in names for base in (Path(), ROOT, *(ROOT / folder for folder in folders))]
    for path in tried:
        if path.is_file():
            return path.resolve()
    known = sorted(p.name for folder in folders for p in (ROOT / folder).glob("*.yaml"))
    hint = did_you_mean(name.name, known)
    listed = f"; known: {', '.join(known)}" if known and not hint else ""
    raise UserError(f"{what} '{name}' does not exist{hint}{listed}")


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
