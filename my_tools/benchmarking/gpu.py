"""The case `gpu` of benchmark.py: training, inference, NMS and memory on a GPU, within a budget of seconds.

Each task (gpu_task.py) runs in a process of its own. Several prepare at the same time, but only one measures at a time.
A task that fails, crashes or takes too long becomes a line in the results, and the others go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from my_tools.benchmarking.cases import Conditions, Row
from my_tools.benchmarking.gpu_packages import MISSING
from my_tools.benchmarking.gpu_report import machine, markdown
from my_tools.benchmarking.gpu_task import Task
from utils.errors import UserError
from utils.files import ROOT, atomic_write
from utils.settings.config import save_yaml
from utils.system.console import LOGGER, shown
from utils.voc.shapes import CLASSES, draw_scene, jpeg

# the flags' defaults in this case
CFGS = ("yolov5_shufflenet.yaml", "yolov5s.yaml", "yolov5l_slimneck.yaml")
DEFAULTS = MappingProxyType({"cfg": CFGS, "imgsz": 640, "batch_size": 64, "workers": os.cpu_count() or 1})
BUDGET = 420  # seconds
IMAGES = 96  # drawn, with the proportions of most photographs
# part of the budget that a task of each kind may measure for
SHARES = {"loader": 0.045, "train": 0.1, "infer": 0.035, "nms": 0.02, "compiled train": 0.04,
          "compiled infer": 0.02}  # fmt: skip
LEAST = 5.0  # seconds: with less, a task is not begun
PAUSE = 0.1  # seconds between looks at the processes
OVERHEAD = 2.0  # GiB of a process, beyond what training takes
SELDOM = 20.0  # seconds between drawings of the chart, which takes up to a second
GRACE = 10.0  # seconds after its time at which a task is stopped


@dataclass
class Results:
    """What has been measured so far. facts: other figures by (model, way of running it); failures: one line each."""

    rows: dict[str, Row] = field(default_factory=dict)
    facts: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def take(self, lines: Sequence[str]) -> None:
        """Add the lines written by a task."""
        for line in lines:
            try:
                content = json.loads(line)
            except ValueError:  # the process was stopped while it wrote
                continue
            if "row" in content and np.isfinite([v for v in content["row"].values() if isinstance(v, float)]).all():
                self.rows[content["row"]["what"]] = Row(**content["row"])
            elif "facts" in content:
                self.facts.setdefault((content["model"], content["way"]), {}).update(content["facts"])
            elif "failed" in content:
                self.fail(content["failed"], content["why"])

    def fail(self, what: str, why: str) -> None:
        """Note and log something that was not measured."""
        self.failures.append(f"{what}: {why}")
        LOGGER.info(f"not measured: {self.failures[-1]}")


class Process:
    """A task in a process of its own."""

    def __init__(self, task: Task, folder: Path, number: int, threads: int, command: Sequence[str] = ()) -> None:
        self.task, self.log, self.stopped = task, folder / f"{number}.log", False
        file = folder / f"{number}.json"
        file.write_text(json.dumps(asdict(task)), encoding="utf-8")
        self.out = file.with_suffix(".jsonl")
        env = {"TORCHINDUCTOR_COMPILE_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **os.environ}
        with open(self.log, "w") as log:
            command = command or (sys.executable, "-m", "my_tools.benchmarking.gpu_task")
            self.process = subprocess.Popen([*command, str(file)], cwd=ROOT, env=env, text=True,
                                            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                                            start_new_session=True)  # fmt: skip

    def lines(self) -> list[str]:
        """Return the lines written so far."""
        return self.out.read_text(encoding="utf-8").splitlines() if self.out.exists() else []

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def prepared(self) -> bool:
        """Whether the task has prepared."""
        return any(line.startswith('{"ready"') for line in self.lines())

    def go(self, allowed: float) -> None:
        """Let the task measure for so many seconds."""
        with contextlib.suppress(OSError):  # it has just ended
            self.process.stdin.write(f"{allowed}\n")
            self.process.stdin.flush()

    def wait(self, until: float) -> bool:
        """Wait until the process ends, but no longer than `until` (time.monotonic()). Returns whether it has ended."""
        while not self.ended() and time.monotonic() < until:
            time.sleep(PAUSE)
        return self.ended()

    def stop(self) -> str:
        """Stop the process and its children; returns how it had ended by itself, empty if without an error."""
        code, self.stopped = 0 if self.stopped else self.process.poll(), True
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait()
        if not code:
            return ""
        told = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"its process ended with code {code}: {told[-1][:240] if told else 'it wrote nothing'}"


@dataclass
class Schedule:
    """Runs tasks within a budget. deadline: of time.monotonic(). written: called after each task."""

    budget: float
    deadline: float
    folder: Path
    results: Results
    written: Callable[[], None]
    started: int = 0
    logs: list[str] = field(default_factory=list)

    def left(self) -> float:
        """Return the seconds left."""
        return self.deadline - time.monotonic()

    def skip(self, task: Task) -> None:
        """Note that a task is not begun."""
        self.results.fail(task.name, f"skipped, as only {max(self.left(), 0):.0f} s of the budget were left")

    def run(self, tasks: Sequence[Task], longest: float = 1.0) -> None:
        """Let the tasks prepare side by side, and then measure one after the other.

        longest: part of the budget that the preparation may take at most.
        """
        needed = sum(SHARES[task.kind] for task in tasks) * self.budget
        if self.left() < max(0.3 * needed, LEAST):
            for task in tasks:
                self.skip(task)
            return
        threads = max((os.cpu_count() or 1) // max(len(tasks), 1), 1)
        processes: list[Process] = []
        try:
            for task in tasks:
                processes.append(Process(task, self.folder, self.started, threads))
                self.started += 1
            self._prepare(processes, min(max(self.left() - needed, 0.3 * self.left()), longest * self.budget))
            for number, process in enumerate(processes):
                rest = sum(SHARES[p.task.kind] for p in processes[number:] if not p.ended()) * self.budget
                self._measure(process, SHARES[process.task.kind] * self.budget * min(self.left() / max(rest, 1e-6), 1))
                self.written()
        finally:
            for process in processes:
                process.stop()

    def _prepare(self, processes: Sequence[Process], longest: float) -> None:
        """Wait until all have prepared or ended, but no longer than `longest` seconds."""
        begun = time.monotonic()
        while time.monotonic() - begun < longest and not all(p.prepared() or p.ended() for p in processes):
            time.sleep(PAUSE)
        for process in processes:
            if not (process.prepared() or process.ended()):  # it would disturb the measurements of the others
                process.stop()
                self.results.fail(process.task.name, f"not prepared (compiled) after {longest:.0f} s")
        LOGGER.info(f"{', '.join(p.task.name for p in processes)}: prepared in {time.monotonic() - begun:.0f} s")

    def _measure(self, process: Process, allowed: float) -> None:
        name, begun, ended = process.task.name, time.monotonic(), True
        if process.prepared() and not process.ended():
            if self.left() < LEAST:
                self.skip(process.task)
            else:
                process.go(allowed)
                ended = process.wait(begun + min(1.5 * allowed, self.left()) + GRACE)
                LOGGER.info(f"{name}: {time.monotonic() - begun:.0f} s, {max(self.left(), 0):.0f} s of the budget left")
        bad = process.stop()
        self.results.take(process.lines())
        if not ended:
            self.results.fail(name, f"stopped after {time.monotonic() - begun:.0f} s; what it had measured is kept")
        elif bad:
            self.results.fail(name, bad)
        self.logs.append(f"=== {name}\n{process.log.read_text(errors='replace')}")


def tasks_of(c: Conditions, data: str) -> tuple[list[Task], list[Task]]:
    """Return the tasks without and with a compiler."""
    def task(kind: str, cfg: str = c.cfgs[0], **flags: bool) -> Task:
        return Task(kind, str(Path(cfg).resolve()), data, c.imgsz, c.batch_size, c.rounds, str(c.device), c.workers,
                    c.amp, flags)  # fmt: skip

    eager = [*(task("train", cfg) for cfg in c.cfgs), *(task("infer", cfg) for cfg in c.cfgs), task("nms")]
    compiled = [*(task("compiled infer", cfg) for cfg in c.cfgs),
                *(task("compiled train", cfg, compile=True) for cfg in c.cfgs),
                task("compiled train", compile=True, gpu_augment=True)]  # fmt: skip
    return [task("loader"), *eager] if data else eager, compiled


@contextlib.contextmanager
def drawn_set(c: Conditions, folder: Path) -> Iterator[str]:
    """Yield the dataset yaml: the given one or, for the default dataset, that of one drawn at the size of photographs.

    The default dataset's images are too small to show how long loading takes. Empty where images cannot be read.
    """
    if {"cv2", "PIL"} & set(MISSING):
        yield ""
    elif c.data.yaml_file.resolve() != ROOT / "data" / "shapes.yaml":
        yield str(c.data.yaml_file.resolve())
    else:
        for kind in ("images", "labels"):
            (folder / "set" / kind).mkdir(parents=True)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            list(pool.map(lambda k: draw(folder / "set", k, c.imgsz), range(IMAGES)))
        save_yaml(folder / "set.yaml", {"path": str(folder / "set"), "train": "images", "names": list(CLASSES)})
        yield str(folder / "set.yaml")


def draw(folder: Path, number: int, side: int) -> None:
    """Draw an image of side x 3/4 side with its labels."""
    width, height = (side, side * 3 // 4) if number % 3 else (side * 3 // 4, side)
    image, boxes = draw_scene(np.random.default_rng((7, number)), width, height, 4)
    (folder / "images" / f"{number:03d}.jpg").write_bytes(jpeg(image))
    lines = [f"{CLASSES.index(b.name)} {(b.x0 + b.x1) / 2 / width:.6f} {(b.y0 + b.y1) / 2 / height:.6f} "
             f"{(b.x1 - b.x0) / width:.6f} {(b.y1 - b.y0) / height:.6f}\n" for b in boxes]  # fmt: skip
    (folder / "labels" / f"{number:03d}.txt").write_text("".join(lines), encoding="ascii")


def groups(c: Conditions, results: Results, tasks: Sequence[Task]) -> list[list[Task]]:
    """Divide tasks into groups whose first steps fit into the memory of the GPU together, by what they took alone."""
    room = torch.cuda.get_device_properties(c.device).total_memory / 2**30 if c.device.type == "cuda" else float("inf")
    found: list[list[Task]] = []
    taken = float("inf")
    for task in tasks:
        own = results.facts.get((task.model, "train.py"), {}).get("memory", 0.0) if "train" in task.kind else 0.0
        if taken + own + OVERHEAD > room or not found:
            found.append([])
            taken = 0.0
        found[-1].append(task)
        taken += own + OVERHEAD
    return found


def check_device(device: str, chosen: torch.device) -> None:
    """Raise UserError if there is no GPU and none but the CPU was asked for."""
    if chosen.type != "cuda" and not device:
        raise UserError(f"--cases gpu: torch {torch.__version__} sees no CUDA GPU; to try the case on the CPU: "
                        "--device cpu --imgsz 64 --batch-size 2")  # fmt: skip


def measure(
    c: Conditions, folder: Path, budget: float, written: Callable[[Sequence[Row]], None]
) -> list[Row]:
    """Measure within `budget` seconds; write gpu.md and gpu_log.txt into `folder` and call `written` after each task.

    Returns all rows, which are also what `written` is called with.
    """
    results, deadline, drawn = Results(), time.monotonic() + budget, -SELDOM
    for package, what in {"cv2": "data loading", "PIL": "data loading", "matplotlib": "chart.png"}.items():
        if package in MISSING:
            results.fail(what, f"{package} is not installed ({MISSING[package]})")
    place = Path(tempfile.mkdtemp(prefix="benchmark"))

    def write(finished: bool = False) -> None:
        nonlocal drawn
        with atomic_write(folder / "gpu.md", "w") as f:
            f.write(markdown(c, results.rows.values(), results.facts, results.failures))
        with atomic_write(folder / "gpu_log.txt", "w") as f:
            f.write("\n".join(schedule.logs))
        if not finished and time.monotonic() < drawn + SELDOM:
            return
        drawn = time.monotonic()
        try:
            written(list(results.rows.values()))
        except Exception as e:  # the figures are more important than the chart
            if "matplotlib" not in MISSING:
                LOGGER.warning(f"{shown(folder)}: not everything could be written ({e})")

    schedule = Schedule(budget, deadline, place, results, write)
    try:
        LOGGER.info(machine(c.device))
        with drawn_set(c, place) as data:
            eager, with_compiler = tasks_of(c, data)
            schedule.run(eager, longest=0.2)
            for tasks in groups(c, results, with_compiler):
                schedule.run(tasks)
        write(finished=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    LOGGER.info(f"\n{(folder / 'gpu.md').read_text(encoding='utf-8')}")
    return list(results.rows.values())
