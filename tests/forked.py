"""Scripts run in copies of this process, which saves the start of Python and of torch; for POSIX systems."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import torch
from helpers import ROOT

import train  # noqa: F401  what the scripts import is there when they start

PATIENCE = 300  # seconds
Started = tuple[int, IO[bytes]]


@dataclass(frozen=True)
class Done:
    """A process that has ended: its exit code, what it wrote, and its last line, which users read."""

    code: int
    text: str

    @property
    def last(self) -> str:
        lines = [line for line in self.text.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def run(*words: object, **options: Callable[[], object]) -> Done:
    """Run a script with its flags; the options are those of `start`."""
    return finish(start(*words, **options))


def start(
    *words: object, before: Callable[[], object] = list, after: Callable[[], object] = list, **environment: object
) -> Started:
    """Begin to run a script, in a process that calls `before` and `after`; `finish` takes what this returns."""
    output = tempfile.TemporaryFile()  # noqa: SIM115  closed by finish
    if pid := os.fork():
        return pid, output
    code = 1
    try:
        os.chdir(ROOT)
        os.environ.update({k: str(v) for k, v in environment.items()})
        for number in (1, 2):
            os.dup2(output.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        sys.argv = [str(w) for w in words]
        torch.set_num_threads(1)
        multiprocessing.set_start_method("fork", force=True)  # others leave semaphores to be cleaned up at a real exit
        before()
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    try:
        after()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(started: Started) -> Done:
    """Wait for a script that `start` began. Raises AssertionError for a traceback, and for one that does not end."""
    pid, output = started
    end = time.monotonic() + PATIENCE
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end += PATIENCE
        time.sleep(0.01)
    with output:
        output.seek(0)
        text = output.read().decode(errors="replace")
    assert "Traceback" not in text and ended[1] != signal.SIGKILL, text
    return Done(os.waitstatus_to_exitcode(ended[1]), text)


def together(*words: object) -> list[Done]:
    """Run a script in two processes that train one model, with the environment that torchrun gives them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pair = [start(*words, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2,
                  MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in (0, 1)]  # fmt: skip
    return [finish(p) for p in pair]
