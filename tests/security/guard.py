"""Detect forbidden effects of hostile input: commands, connections, reads of a secret, stray writes, memory use."""

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

SECONDS, MEBIBYTES = 40, 1200  # of computing; waiting, also for other programs, may take three times as long
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn",
             "socket.connect", "socket.getaddrinfo", "urllib.Request", "pickle.find_class", "ctypes.dlopen",
             "webbrowser.open")  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate",
           "shutil.rmtree", "shutil.move")  # fmt: skip
OWN = re.compile(r"__pycache__|^/dev/|^/proc/self/|matplotlib|\.cache")  # paths that Python and the libraries may write


class Watch:
    """Forbidden events seen by an audit hook of the interpreter; a hook cannot be removed, so all tests share one."""

    def __init__(self) -> None:
        self.folder, self.secret = Path(), Path()
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self.note)

    def note(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        self.on = False  # ignore the events that this method causes
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
    """Watch the body of the with statement. Raises AssertionError for forbidden events, a hang or high memory use."""
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
        raise AssertionError(f"forbidden events: {WATCH.seen}; took {seconds:.0f} s and {memory:.0f} MiB of memory")


@contextmanager
def _alarm() -> Iterator[None]:
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def hang(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it hangs in {frame}")

    before = [(number, signal.signal(number, hang)) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.alarm(3 * SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True)  # a signal does not interrupt a wait for a thread
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before:
            signal.signal(number, handler)


def _memory(reset: bool = False) -> float:
    """Return the peak memory of this process in MiB since the last reset; 0 where /proc is not available."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except (OSError, TypeError):
        return 0.0
