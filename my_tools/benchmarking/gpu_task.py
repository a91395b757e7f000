"""One task of the case `gpu`, run in a process of its own, which a crash or a time limit can end without harm.

    python -m my_tools.benchmarking.gpu_task TASK.json    # started by benchmark.py --cases gpu

The process prepares (builds, compiles), writes that it is ready, reads the seconds it may take from stdin, measures,
and writes each result as a line of JSON at once.
"""

from __future__ import annotations

from my_tools.benchmarking.gpu_packages import MISSING, stand_in

if __name__ == "__main__":
    stand_in()

import contextlib
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from my_tools.benchmarking.cases import Row, compared
from utils.system.profiling import seconds

SAMPLES = 5  # of each measurement, at least
# kind of task -> module, and its function that prepares the measurement
KINDS = MappingProxyType({
    "loader": ("gpu_train", "prepare"),
    "train": ("gpu_train", "prepare"),
    "compiled train": ("gpu_train", "prepare"),
    "infer": ("gpu_infer", "prepare"),
    "compiled infer": ("gpu_infer", "prepare"),
    "nms": ("gpu_infer", "prepare_nms"),
})


@dataclass(frozen=True)
class Task:
    """What one process measures. kind: a key of KINDS. cfg: a model yaml. data: a dataset yaml, empty for random
    batches in place of a loader. flags: of train.py, beyond the usual ones."""

    kind: str
    cfg: str
    data: str
    imgsz: int
    batch_size: int
    rounds: int
    device: str
    workers: int
    amp: str
    flags: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Name of the model."""
        return Path(self.cfg).stem

    @property
    def name(self) -> str:
        """Name of the task, for messages."""
        flags = [f" --{flag.replace('_', '-')}" for flag in self.flags if flag != "compile"]
        return " ".join((self.kind, self.model)) + "".join(flags) if self.kind not in ("loader", "nms") else self.kind


class Report:
    """Writes results as lines of JSON."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _write(self, **line: Any) -> None:
        with open(self.file, "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    def ready(self, took: float) -> None:
        """All is prepared, after so many seconds."""
        self._write(ready=took)

    def row(self, row: Row) -> None:
        """A comparison; one with the same `what` as an earlier one replaces it."""
        self._write(row=asdict(row))

    def facts(self, model: str, way: str, **values: Any) -> None:
        """Other figures of a model in one way of running it; added to those given earlier."""
        self._write(model=model, way=way, facts=values)

    def failed(self, what: str, why: str) -> None:
        """Something that could not be measured."""
        self._write(failed=what, why=why)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn an error in the block into a result, print its traceback, and go on after the block."""
        try:
            yield
        except Exception as e:
            self.failed(what, reason(e))
            print(f"--- {what}", traceback.format_exc(), sep="\n", flush=True)
            traceback.clear_frames(e.__traceback__)  # they hold tensors
            gc.collect()
            if torch.cuda.is_initialized():
                with contextlib.suppress(Exception):
                    torch.cuda.empty_cache()


def reason(e: BaseException) -> str:
    """Return an error in one line, of which the first sentences matter most."""
    text = " ".join(str(e).split())
    if "out of memory" in text.lower():
        text = "out of memory: " + text
    return f"{text[:240]} ..." if len(text) > 240 else text or type(e).__name__


Measure = Callable[[float, Report], None]  # takes the seconds that it may take


def sampled(call: Callable[[int], object], about: float) -> list[float]:
    """Return SAMPLES times of one step, in seconds. call: runs so many steps. about: seconds to spend, roughly."""
    call(2)
    start = seconds()
    call(2)
    each = (seconds() - start) / 2
    steps = int(np.clip(round(about / SAMPLES / max(each, 1e-6)), 1, 200))
    times = []
    for _ in range(SAMPLES):
        start = seconds()
        call(steps)
        times.append((seconds() - start) / steps)
    return times


def in_turns(
    calls: Mapping[str, Callable[[], Sequence[float]]], plain: Callable[[], Sequence[float]], rounds: int,
    until: float, report: Report, model: str, yardstick: str,
) -> None:  # fmt: skip
    """Measure each call beside the yardstick `plain`, up to `rounds` times, and report a row for each.

    All return SAMPLES times of one step; a call that fails is left out from then on. until: time.monotonic() after
    which no further round begins.
    """
    pairs: dict[str, list[np.ndarray]] = {what: [] for what in calls}
    left = dict(calls)
    for number in range(rounds):
        for what, call in list(left.items()):
            if number and time.monotonic() > until:
                return
            del left[what]
            with report.attempt(f"{model}, {what}"):
                beside = plain()
                pairs[what].append(np.stack((call(), beside), 1))
                report.row(compared("gpu", f"{model}, {what}", yardstick, np.concatenate(pairs[what]), (1, 1), True))
                left[what] = call


def run_task(task: Task, report: Report, go: Callable[[], float]) -> None:
    """Prepare and measure. go: called when prepared; returns the seconds that the measurement may take, 0 for none."""
    start = time.monotonic()
    with report.attempt(task.name), contextlib.ExitStack() as stack:
        module, function = KINDS[task.kind]
        prepare = getattr(import_module(f"my_tools.benchmarking.{module}"), function)
        measure: Measure = prepare(task, report, stack)
        report.ready(time.monotonic() - start)
        if allowed := go():
            measure(allowed, report)


def main() -> None:
    """Run the task described by a file; results are written beside it."""
    file = Path(sys.argv[1])
    task = Task(**json.loads(file.read_text(encoding="utf-8")))
    if MISSING:
        print("stand-ins for", MISSING)
    run_task(task, Report(file.with_suffix(".jsonl")), lambda: float(sys.stdin.readline() or 0))


if __name__ == "__main__":
    main()
