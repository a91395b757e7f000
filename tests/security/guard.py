"""Watches what hostile input makes the process do: run, connect, read a secret, write elsewhere, fill the memory."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS, MEBIBYTES = 40, 1200
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn",
             "socket.connect", "socket.getaddrinfo", "urllib.Request", "pickle.find_class", "ctypes.dlopen",
             "webbrowser.open")  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate",
           "shutil.rmtree", "shutil.move")  # fmt: skip
OWN = re.compile(r"__pycache__|^/dev/|^/proc/self/|matplotlib|\.cache")  # what interpreter and libraries write and read


class Watch:
    """What an audit hook of the interpreter saw while it was on. A hook cannot be taken out: there is one for all."""

    def __init__(self) -> None:
        self.folder, self.secret = Path(), Path()
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self.note)

    def note(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        self.on = False  # not what is done here
        try:
            if event in FORBIDDEN:
                self.seen.append(f"{event} {args[:1]}")
            elif event == "open" or event in CHANGES:
                self._file(event, args)
        finally:
            self.on = True

    def _file(self, event: str, args: tuple) -> None:
        path = args[1 if event in ("os.rename", "os.link", "os.symlink") else 0]
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        name = os.path.realpath(os.fsdecode(path))
        mode, flags = (args[1] or "", args[2] or 0) if event == "open" else ("w", 0)
        writes = any(c in mode for c in "wax+") or flags & (os.O_WRONLY | os.O_RDWR)
        if name == str(self.secret) or (writes and not name.startswith(f"{self.folder}/") and not OWN.search(name)):
            self.seen.append(f"{event} {name}")


WATCH = Watch()


@contextmanager
def guarded(folder: Path, secret: Path) -> Iterator[Watch]:
    """Run hostile input. Raises AssertionError if it acted, took for ever, or filled the memory."""
    WATCH.folder, WATCH.secret, WATCH.seen = folder.resolve(), secret.resolve(), []
    before, start = _memory(reset=True), time.monotonic()
    with _alarm():
        WATCH.on = True
        try:
            yield WATCH
        finally:
            WATCH.on = False
    seconds, memory = time.monotonic() - start, _memory() - before
    if WATCH.seen or memory > MEBIBYTES:
        raise AssertionError(f"it did {WATCH.seen}, in {seconds:.0f} s, with {memory:.0f} MiB more")


@contextmanager
def _alarm() -> Iterator[None]:
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def hang(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it hangs in {frame}")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where a thread is waited for, no signal helps
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _memory(reset: bool = False) -> float:
    """The most MiB this process has taken since it was last reset, where Linux tells it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except (OSError, TypeError):
        return 0.0
