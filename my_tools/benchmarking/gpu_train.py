"""Training in the case `gpu` of benchmark.py: train.py's epoch loop beside the bare step of the same network."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import DataLoader

from models.run import setup as setup_room
from models.run.setup import Run
from models.run.step import Group
from my_tools.benchmarking.gpu_task import SAMPLES, Measure, Report, Task, in_turns, sampled
from my_tools.benchmarking.gpu_trace import StepProfile, profile_steps, waiting_lines
from train import Stopped, train_epoch, train_group
from train import prepare as prepare_data
from utils.data.dataset import Batch, DetectionDataset
from utils.data.labels import LabelIndex
from utils.data.loader import close_loader, create_loader
from utils.settings.options import TrainOptions, effective_hyp
from utils.system.console import quiet
from utils.system.profiling import seconds

EPOCH = 600  # batches in an epoch: more than are timed
DEFAULT_WORKERS = 8  # of train.py
NEVER = SimpleNamespace(requested=False)  # in place of a StopRequest
WARM, WINDOW = 2.0, 5.0  # longest warm-up of the loop, and its timed part, in seconds
PROFILED = 5  # steps


class Clock:
    """Stands for the StopRequest of a training loop, which asks for it once a batch: notes the times, then stops.

    warm: number of batches, and `longest` seconds, of which the one that ends first is not timed. window: seconds to
    time, but at least SAMPLES batches. waited: returns the seconds that the loop has waited for data so far.
    """

    def __init__(self, warm: int, longest: float, window: float, waited: Callable[[], float]) -> None:
        self.warm, self.longest, self.window, self.waited = warm, longest, window, waited
        self.calls, self.begun = 0, time.perf_counter()
        self.times: list[float] = []
        self.waits: list[float] = []

    @property
    def requested(self) -> bool:
        """Whether to stop after this batch."""
        now = time.perf_counter()
        self.calls += 1
        if not self.times and self.calls < 3:
            self.begun = now  # the start of the workers does not count
        if self.times or self.calls > 2 and (self.calls > self.warm or now - self.begun > self.longest):
            self.times.append(now)
            self.waits.append(self.waited())
        return len(self.times) > SAMPLES and now - self.times[0] > self.window

    def steps(self) -> list[float]:
        """Return SAMPLES times of one step, in seconds: averages over equal parts of the timed batches."""
        ends = np.linspace(0, len(self.times) - 1, SAMPLES + 1).round().astype(int)
        return (np.diff(np.array(self.times)[ends]) / np.diff(ends)).tolist()

    def waited_per_step(self) -> float:
        """Return the seconds of a step in which the loop waited for data."""
        return (self.waits[-1] - self.waits[0]) / (len(self.waits) - 1)


class RandomBatches:
    """In place of a loader where images cannot be read: the same random batch again and again."""

    num_workers = 0

    def __init__(self, batch: Batch) -> None:
        self.batch, self.batch_sampler = batch, SimpleNamespace(epoch=0, start=0, weights=None)

    def __len__(self) -> int:
        return EPOCH

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * EPOCH)


def random_batch(task: Task, objects: int = 8) -> Batch:
    """Return a batch as a loader makes it, of noise, with `objects` labels an image."""
    count, rng = task.batch_size, np.random.default_rng(0)
    images = torch.randint(0, 256, (count, task.imgsz, task.imgsz, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    boxes = np.concatenate((rng.uniform(0.2, 0.8, (count * objects, 2)), rng.uniform(0.05, 0.4, (count * objects, 2))),
                           1)  # fmt: skip
    image = np.arange(count).repeat(objects)[:, None]
    targets = torch.from_numpy(np.concatenate((image, image * 0, boxes), 1).astype(np.float32))
    gpu = torch.device(task.device).type == "cuda"
    return images.pin_memory() if gpu else images, targets.pin_memory() if gpu else targets, ("",) * count, ()


def training_run(task: Task, folder: str) -> Run:
    """Set up a training as train.py does, with an epoch that is longer than what is timed."""
    opt = TrainOptions.from_flags({
        "cfg": task.cfg, "data": task.data or str(unread_set(Path(folder))), "imgsz": task.imgsz, "cache": "",
        "batch_size": task.batch_size, "amp": task.amp, "device": task.device, "workers": task.workers,
        "hyp": "hyp.scratch-low.yaml", "optimizer": "SGD", "noplots": True, "noautoanchor": True, "noval": True,
        "epochs": 1000, "parts": 1, **task.flags})  # fmt: skip
    data = prepare_data(opt)
    index = None if task.data else LabelIndex(
        np.full(task.batch_size, b"none.jpg"), np.full((task.batch_size, 2), task.imgsz, np.int32),
        np.array([[0, 0.5, 0.5, 0.4, 0.4]], np.float32), np.array([0] + [1] * task.batch_size))  # fmt: skip
    with scan_gives(index):
        run = setup_room.setup(opt, effective_hyp(opt), data, folder=Path(folder))
    run.loader = new_loader(task, run)
    return run


def unread_set(folder: Path) -> Path:
    """Write the yaml of a dataset whose images are not read."""
    file = folder / "none.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nnames: [a, b, c, d, e]\n", encoding="utf-8")
    return file


@contextlib.contextmanager
def scan_gives(index: LabelIndex | None) -> Iterator[None]:
    """Let the setup of a training take `index` for its images and read none."""
    scan = setup_room.scan
    if index is not None:
        setup_room.scan = lambda _data: (index, None)
    try:
        yield
    finally:
        setup_room.scan = scan


def new_loader(task: Task, run: Run, workers: int | None = None) -> DataLoader | RandomBatches:
    """Return the loader of a run, with an epoch of EPOCH batches."""
    if not task.data:
        return RandomBatches(random_batch(task))
    old, opt = run.loader.dataset, run.opt
    index = old.index.take(np.arange(EPOCH * opt.batch_size) % len(old.index))  # repeats a dataset with fewer images
    dataset = DetectionDataset(index, opt.imgsz, opt.batch_size, run.hyp, stride=int(run.model.stride.max()),
                               colours=not opt.gpu_augment)  # fmt: skip
    return create_loader(dataset, opt.batch_size, opt.workers if workers is None else workers, True,
                         run.device.type == "cuda", whole=False)  # fmt: skip


def end(loader: DataLoader | RandomBatches) -> None:
    """Stop the workers of a loader, so that they do not disturb the next measurement."""
    close_loader(loader)
    if isinstance(loader, DataLoader):
        loader._iterator = None


def timed_loop(run: Run, pace: float) -> Clock:
    """Run train.py's epoch loop until enough batches are timed. pace: part of the usual times."""
    state = run.state
    clock = Clock(2 * run.loader.num_workers, WARM * pace, WINDOW * pace, lambda: state.seconds.get("data", 0.0))
    with contextlib.suppress(Stopped), contextlib.redirect_stderr(io.StringIO()):  # without its progress bar
        try:
            while True:
                next_epoch(run)
                train_epoch(run, clock)
        finally:
            end(run.loader)
            next_epoch(run)
    return clock


def next_epoch(run: Run) -> None:
    """Begin a new epoch."""
    run.state.epoch, run.state.batch = run.state.epoch + 1, 0


def repeat_batch(run: Run, batch: Batch, count: int) -> None:
    """Train on the same batch `count` times."""
    for _ in range(count):
        train_group(run, Group([batch], True), NEVER)
    next_epoch(run)


def bare_steps(run: Run) -> Callable[[int], None]:
    """Return the yardstick: forward, backward and SGD of the network, on a random batch that is on the device."""
    twin = copy.deepcopy(run.model).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4, momentum=0.9)
    x = torch.rand(run.opt.batch_size, 3, run.opt.imgsz, run.opt.imgsz, device=run.device)
    x = x.contiguous(memory_format=torch.channels_last)

    def steps(count: int) -> None:
        for _ in range(count):
            with run.precision.autocast():
                loss = sum(y.float().square().mean() for y in twin(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def prepare(task: Task, report: Report, stack: contextlib.ExitStack) -> Measure:
    """Set up a training, and with --compile run its first steps, which compile it; returns the measurement."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(quiet())
    run = training_run(task, folder)
    stack.callback(end, run.loader)
    if task.kind == "loader":
        return lambda allowed, report: measure_loader(task, run, allowed, report)
    batch = random_batch(task)
    way = " ".join(("train.py", *(f"--{flag.replace('_', '-')}" for flag in task.flags)))
    if task.flags:
        first_steps(task, run, batch, way, report)

    def measure(allowed: float, report: Report) -> None:
        until = time.monotonic() + 0.7 * allowed
        if not task.flags:  # not earlier: other tasks prepare at the same time and need memory too
            first_steps(task, run, batch, way, report)
        measure_training(task, run, batch, way, allowed, until, report)

    return measure


def first_steps(task: Task, run: Run, batch: Batch, way: str, report: Report) -> None:
    """Run three steps of a training; reports their time and the memory that they take."""
    gpu = run.device.type == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = seconds()
    repeat_batch(run, batch, 3)
    report.facts(task.model, way, first_steps=seconds() - start, precision=run.precision.amp)
    if gpu:
        report.facts(task.model, way, memory=torch.cuda.max_memory_allocated() / 2**30,
                     reserved=torch.cuda.max_memory_reserved() / 2**30)  # fmt: skip
        torch.cuda.empty_cache()


def measure_training(
    task: Task, run: Run, batch: Batch, way: str, allowed: float, until: float, report: Report
) -> None:  # fmt: skip
    """Time train.py's loop and its steps beside the bare step, and profile the steps.

    until: time.monotonic() after which no further round of timing begins.
    """
    model, device, pace = task.model, run.device, min(allowed / (24 if task.flags else 40), 1.0)
    bare, runs = bare_steps(run), {way: run}
    if not task.flags:
        runs["train.py --gpu-augment"] = augmenting(run)
        runs["train.py --gpu-augment"].loader = new_loader(task, runs["train.py --gpu-augment"])

    def loop(name: str) -> Sequence[float]:
        clock = timed_loop(runs[name], pace)
        report.facts(model, name, data_ms=1e3 * clock.waited_per_step())
        return clock.steps()

    def plain() -> Sequence[float]:
        return sampled(bare, pace)

    def again() -> Sequence[float]:
        return sampled(partial(repeat_batch, run, batch), pace)

    for name, one in runs.items():
        with report.attempt(f"{model}, profile of {name}"):
            report.facts(model, name, profile=asdict(profiled(one, batch)))
    if not task.flags:
        with report.attempt(f"{model}, profile of the bare step"):
            report.facts(model, "bare step", profile=asdict(profile_steps(partial(bare, PROFILED), PROFILED, device)))
    if device.type == "cuda" and not task.flags:
        with report.attempt(f"{model}, lines that wait for the GPU"):
            report.facts(model, way, lines=waiting_lines(partial(repeat_batch, run, batch, 2), 2))
    yardstick = f"bare step, {str(run.precision.dtype).removeprefix('torch.')}, channels-last"
    calls = {name: partial(loop, name) for name in runs} | {f"{way}, one batch again and again": again}
    in_turns(calls, plain, task.rounds, until, report, model, yardstick)
    if device.type == "cuda" and not task.flags and time.monotonic() < until + 0.1 * allowed:
        torch.backends.cudnn.benchmark = True  # the last measurement of this process
        in_turns({f"{way}, one batch, cudnn.benchmark": again}, plain, 1, until, report, model,
                 f"{yardstick}, cudnn.benchmark")  # fmt: skip


def augmenting(run: Run) -> Run:
    """Return the same run with --gpu-augment, still with the loader of the other."""
    return replace(run, opt=replace(run.opt, gpu_augment=True))


def profiled(run: Run, batch: Batch) -> StepProfile:
    """Profile the steps of a training with one batch; the first profile in a process is for warming up."""
    profile_steps(lambda: repeat_batch(run, batch, 1), 1, run.device)
    return profile_steps(lambda: repeat_batch(run, batch, PROFILED), PROFILED, run.device)


def measure_loader(task: Task, run: Run, allowed: float, report: Report) -> None:
    """Time the loader alone: with the workers of this run and with train.py's default, and without colours."""
    counts = sorted({min(DEFAULT_WORKERS, task.workers), task.workers}, reverse=True)
    tried = [*((run, "loader", workers) for workers in counts),
             (augmenting(run), "loader for --gpu-augment", counts[0])]  # fmt: skip
    pace = min(allowed / 20, 1.0)
    for each, name, workers in tried:
        with report.attempt(f"{name}, {workers} workers"):
            loader = new_loader(task, each, workers)
            try:
                rate, size = loader_rate(loader, pace)
            finally:
                end(loader)
            report.facts(name, f"{loader.num_workers} workers", images=rate, megabytes=size / 1e6)


def loader_rate(loader: DataLoader, pace: float) -> tuple[float, float]:
    """Return the images per second of a loader that is running, and the bytes of a batch."""
    clock, size, count = Clock(2 * loader.num_workers, 1.5 * WARM * pace, 0.7 * WINDOW * pace, float), 0, 0
    for images, *_ in loader:
        size, count = images.numel(), len(images)
        if clock.requested:
            break
    return count / float(np.mean(clock.steps())), size
