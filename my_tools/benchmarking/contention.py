"""The case `contention` of benchmark.py: training beside busy processes, on one core, and two trainings at once.

Each training runs in a process of its own and does the same work in every round. Its speeds are given as fractions of
its own speed when it runs alone.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import torch

from my_tools.benchmarking.cases import Conditions, Row, compared, plain_steps, quiet, training_run, turns
from train import train_epoch
from utils.errors import UserError

CONTEXT = get_context("spawn")  # fresh processes, as from the command line
OURS, PLAIN = "train.py", "plain step"
ALONE, ONE_CORE, TWO = "alone", "on one core", "two at once, together"
BESIDE = MappingProxyType({"beside one busy process": 1, "beside two busy processes": 2})
TARGETS = MappingProxyType({"beside one busy process": 0.45, "beside two busy processes": 0.3, ONE_CORE: 0.45,
                            TWO: 0.9})  # fmt: skip
# ends with the process that started it, whose number is its argument
BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
BATCHES = 8  # in a round; the plain step, which is slower, makes a quarter of them


@dataclass(frozen=True)
class Trainer:
    """A training in another process, which does a round of work when told to."""

    connection: Connection

    def begin(self) -> None:
        """Start a round."""
        self.connection.send(True)

    def end(self) -> None:
        """Wait for the end of the round. Raises UserError if the process has ended instead."""
        try:
            self.connection.recv()
        except EOFError:
            raise UserError("contention: a training has ended early; its error is printed above") from None


def contention(c: Conditions) -> list[Row]:
    """Time train.py and plain training steps under contention, each against its own speed alone."""
    if c.device.type != "cpu":
        raise UserError("--cases contention is about CPUs: add --device cpu")
    return list(itertools.chain.from_iterable(contention_of(c, cfg) for cfg in c.cfgs))


def contention_of(c: Conditions, cfg: str) -> list[Row]:
    """Return the rows of `contention` for one model."""
    name, rows = Path(cfg).stem, []
    with ExitStack() as stack:
        pinned = {max(os.sched_getaffinity(0))} if hasattr(os, "sched_setaffinity") else None
        seconds = {}
        for way in (OURS, PLAIN):
            first = stack.enter_context(trainer(c, cfg, way))
            second = stack.enter_context(trainer(c, cfg, way))
            calls = {ALONE: lambda first=first: together(first)}
            calls |= {what: lambda first=first, count=count: beside(count, first) for what, count in BESIDE.items()}
            if pinned:
                one = stack.enter_context(trainer(c, cfg, way, pinned))
                calls[ONE_CORE] = lambda one=one: together(one)
            calls[TWO] = lambda first=first, second=second: together(first, second) / 2
            seconds[way] = np.array([[call() for call in calls.values()] for _ in turns(f"{name}, {way}")(
                range(c.rounds))])  # fmt: skip
    for k, what in list(enumerate(calls))[1:]:
        for way, times in seconds.items():
            target = TARGETS[what] if way == OURS else None
            rows.append(compared("beside", f"{name}, {way} {what}", ALONE, times[:, [k, 0]], (1, 1), True, target))
    return rows


def together(*trainers: Trainer) -> float:
    """Return the seconds in which all of these trainings do a round of work, at the same time."""
    start = time.perf_counter()
    for one in trainers:
        one.begin()
    for one in trainers:
        one.end()
    return time.perf_counter() - start


def beside(count: int, one: Trainer) -> float:
    """Return the seconds in which a training does a round of work beside `count` busy processes."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        time.sleep(0.2)  # until they have started
        return together(one)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def trainer(c: Conditions, cfg: str, way: str, cores: set[int] | None = None) -> Iterator[Trainer]:
    """Start a training and yield it. way: OURS or PLAIN; cores: those that it may use, None for all."""
    near, far = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_train, args=(far, c, cfg, way, cores))
    process.start()
    far.close()
    one = Trainer(near)
    try:
        together(one)  # the first round takes longer
        yield one
    finally:
        near.close()
        process.join(30)
        process.kill()


def _train(connection: Connection, c: Conditions, cfg: str, way: str, cores: set[int] | None) -> None:
    """Do a round of work for each message, until the other end of the connection is closed."""
    if cores:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
    with tempfile.TemporaryDirectory() as folder, quiet():
        run = training_run(c, cfg, folder, BATCHES)
        shape = (c.batch_size, 3, run.opt.imgsz, run.opt.imgsz)
        work = _epochs(run) if way == OURS else plain_steps(run.model, shape, BATCHES // 4)
        try:
            while connection.recv():
                work()
                connection.send(True)
        except EOFError:
            pass
        finally:
            run.close()


def _epochs(run: object) -> Callable[[], None]:
    def epoch() -> None:
        train_epoch(run, SimpleNamespace(requested=False))
        run.state.epoch, run.state.batch = run.state.epoch + 1, 0

    return epoch
