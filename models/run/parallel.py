"""Training steps on a CPU with several processes, each on one core: several batches at once, or one batch in parts.

Normally, torch splits each operation over its threads, which wait for each other at the end of every operation,
thousands of times per step. If another program keeps a core busy, each of these waits lasts until the system runs the
delayed thread again, and a step takes ten times as long. The processes here wait for each other once per batch.

Batches between two steps of the optimizer (gradient accumulation) do not depend on each other. They are computed as a
whole, one by each process, with the same result as one after the other. Where there are fewer of them than processes,
each batch is split into parts. Then, as on several GPUs, batch norm normalizes each part with the statistics of that
part, and its running statistics are the mean over the parts.

The number of parts is fixed, and gradients are added in a fixed order. The result depends neither on the number of
processes nor on which of them computes what, so runs can be repeated and resumed bit for bit. Each free process takes
the next task: if the system delays one process, the others do its work.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.run.shared_network import SharedNetwork, shared, views
from models.run.teaching import PARTS, Teaching, with_lesson
from utils.errors import UserError, no_memory
from utils.losses.anchor_free_loss import AnchorFreeLoss
from utils.losses.compute_loss import ComputeLoss
from utils.system.granted import granted_cores
from utils.system.precision import Precision

LEAST = 4  # images in a part; the statistics of batch norm are poor with fewer
TOKEN = struct.Struct("<II")  # number of the job, number of the task
PATIENCE = 1.0  # seconds after which a waiting process checks whether the other one still exists

Seed = tuple[int, ...]


def can_fork() -> bool:
    """Whether helper processes can be used here.

    Other systems have no fork that is safe, and where torch has an accelerator, its automatic differentiation refuses
    to work in forked processes once it has been used, even on the CPU.
    """
    return sys.platform == "linux" and not torch.cuda.is_available() and not _has_accelerator()


def _has_accelerator() -> bool:
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6 and newer
    return accelerator is not None and accelerator.is_available()


def number_of_parts(batch_size: int, cores: int) -> int:
    """Return the number of parts for batches of this size: one per core, with at least LEAST images each.

    1 if more than half of the cores would then be unused, and where processes cannot be forked.
    """
    parts = min(cores, batch_size // LEAST)
    return parts if parts > 1 and 2 * parts >= cores and can_fork() else 1


class ProcessLost(MemoryError):
    """A helper process was killed, most likely by the system because memory ran out."""

    def __init__(self) -> None:
        super().__init__("a process that computes batches was killed")


class Batch(NamedTuple):
    """A batch to be computed: images (b, 3, h, w) uint8, targets as in `ComputeLoss`, a seed for its preparation."""

    images: Tensor
    targets: Tensor
    seed: Seed


@dataclass(frozen=True)
class Job:
    """Batches to be computed together; the images are in shared memory. tasks: (batch, its first image, the last + 1).

    shapes: of the batches' images (b, c, h, w). targets: (n, 6) of each batch.
    """

    number: int
    shapes: tuple[tuple[int, ...], ...]
    targets: tuple[np.ndarray, ...]
    seeds: tuple[Seed, ...]
    tasks: tuple[tuple[int, int, int], ...]


def tasks_of(sizes: Sequence[int], parts: int) -> tuple[tuple[int, int, int], ...]:
    """Return the tasks for batches of these sizes: (batch, first image, last image + 1).

    Several batches are not split. A single one is split into `parts` parts, or fewer if it has too few images.
    """
    count = min(parts, max(sizes[0] // LEAST, 1)) if len(sizes) == 1 else 1
    return tuple((batch, size * k // count, size * (k + 1) // count) for batch, size in enumerate(sizes)
                 for k in range(count))  # fmt: skip


class ParallelSteps:
    """Computes the loss and the gradients of batches, with forked helper processes where that is possible.

    network: in training, which is moved to shared memory. loss: of its raw maps. parts: the number of tasks at a time.
    values: the number of values of the largest batch of images. prepare: turns images (b, 3, h, w) uint8 and a seed
    into the network's input. gain: factor of the loss. several: whether several batches may be computed at once, which
    needs memory for all of them. teaching: how the network is called.
    """

    def __init__(
        self, network: nn.Module, loss: ComputeLoss | AnchorFreeLoss, precision: Precision, parts: int, values: int,
        prepare: Callable[[Tensor, Seed], Tensor], gain: float = 1.0, several: bool = False,
        teaching: Teaching | None = None,
    ) -> None:  # fmt: skip
        self.parts, self.precision, self.prepare, self.gain, self.several = parts, precision, prepare, gain, several
        self.loss, self.teaching = loss, teaching or Teaching()
        self.network = SharedNetwork(network, precision.dtype)
        self.parameters = self.network.parameters
        size = sum(p.numel() for p in self.parameters)
        self.gradients = [shared(size) for _ in range(parts)]
        self.gradients_of = [views(g, self.parameters) for g in self.gradients]
        self.total = torch.zeros(size)
        self.total_of = views(self.total, self.parameters)
        self.statistics = shared(parts * len(self.network.statistics)).view(parts, -1)
        self.images = shared(values * (parts if several else 1), torch.uint8).view(-1, values)
        self.results = shared(parts * (1 + PARTS)).view(parts, -1)
        self.number = 0
        self._read_end, self._write_end = -1, -1
        self.helpers: list[Helper] = []
        if (helpers := min(parts, granted_cores()) - 1) > 0 and can_fork():
            self._read_end, self._write_end = os.pipe()
            os.set_blocking(self._read_end, False)
            self.helpers = [Helper(self, k) for k in range(helpers)]

    def __call__(self, batches: Sequence[Batch], parts: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Add the gradients of batches to those of the parameters. Returns the loss (1,) of each and its parts
        (PARTS,).

        parts: into how many parts a single batch is split. Raises ProcessLost if a helper process has been killed.
        """
        self.number += 1
        tasks = tasks_of([len(batch.images) for batch in batches], self.parts if parts is None else parts)
        job = Job(self.number, tuple(tuple(batch.images.shape) for batch in batches),
                  tuple(batch.targets.numpy() for batch in batches), tuple(batch.seed for batch in batches),
                  tasks)  # fmt: skip
        for k, batch in enumerate(batches):
            self._images(job, k).copy_(batch.images)
        self.network.refresh()
        if self.helpers and len(tasks) > 1:
            self._compute_together(job)
        else:
            for task in range(len(tasks)):
                self.compute(job, task)
        found = []
        for k in range(len(batches)):
            own = [task for task, (batch, *_) in enumerate(tasks) if batch == k]
            self.network.add_statistics(self.statistics[own[0] : own[-1] + 1].mean(0))
            self._add_gradients(own)
            result = self.results[own[0] : own[-1] + 1].sum(0)
            found.append((result[:1], result[1:]))
        return found

    def compute(self, job: Job, task: int) -> None:
        """Compute the loss, the gradients and the batch norm statistics of a task."""
        network, (batch, first, last) = self.network, job.tasks[task]
        network.own_statistics.zero_()
        x = self.prepare(self._images(job, batch)[first:last], job.seeds[batch])
        with self.precision.autocast():
            raw, lesson = self.teaching(network.twin, x, (*job.seeds[batch], first))
        images = job.shapes[batch][0]
        losses = self.loss.of_part(raw, torch.from_numpy(job.targets[batch]), first, images)
        loss, parts = with_lesson(losses, lesson, len(x), images)
        gradients = torch.autograd.grad(loss * self.gain, network.inputs, allow_unused=True)
        given = [(v, g) for v, g in zip(self.gradients_of[task], gradients, strict=True) if g is not None]
        torch._foreach_copy_([v for v, _ in given], [g for _, g in given])
        self.statistics[task].copy_(network.own_statistics)
        self.results[task] = torch.cat((loss.detach() * self.gain, parts))

    def tokens(self) -> Iterator[tuple[int, int]]:
        """Take tasks that no process has taken yet, as (number of the job, number of the task), until all are."""
        while True:
            try:
                token = os.read(self._read_end, TOKEN.size)
            except BlockingIOError:
                return
            yield TOKEN.unpack(token)

    def _compute_together(self, job: Job) -> None:
        for helper in self.helpers:
            helper.send(job)
        missing = set(range(len(job.tasks)))
        os.write(self._write_end, b"".join(TOKEN.pack(job.number, task) for task in missing))
        for _, task in self.tokens():
            self.compute(job, task)
            missing.remove(task)
        while missing:
            for connection in wait([helper.connection for helper in self.helpers], PATIENCE):
                missing.remove(_received(connection))

    def _add_gradients(self, tasks: Sequence[int]) -> None:
        """Add the gradients of tasks, in their order, to those of the parameters."""
        rest = [self.gradients[task] for task in tasks]
        if all(p.grad is None for p in self.parameters):
            self.total.copy_(rest.pop(0))
        for p, view in zip(self.parameters, self.total_of, strict=True):
            if p.grad is not None and p.grad is not view:  # restored by --resume
                view.copy_(p.grad)
            p.grad = view
        for gradients in rest:
            self.total.add_(gradients)

    def _images(self, job: Job, batch: int) -> Tensor:
        b, c, h, w = job.shapes[batch]
        return self.images[batch, : b * c * h * w].view(b, h, w, c).permute(0, 3, 1, 2)

    def close(self) -> None:
        """End the helper processes."""
        for helper in self.helpers:
            helper.process.kill()
            helper.process.join()
            helper.connection.close()
        self.helpers = []
        for end in (self._read_end, self._write_end):
            if end >= 0:
                os.close(end)
        self._read_end = self._write_end = -1


class Helper:
    """A forked process that computes tasks. It shares the memory of the network with the main process."""

    def __init__(self, steps: ParallelSteps, number: int) -> None:
        context = get_context("fork")
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_help, args=(steps, far, os.getpid()), daemon=True,
                                       name=f"train-{number}")  # fmt: skip
        self.process.start()
        far.close()

    def send(self, job: Job) -> None:
        """Announce a job. Raises ProcessLost if the process has been killed."""
        try:
            self.connection.send(job)
        except OSError as e:
            raise ProcessLost from e


def _help(steps: ParallelSteps, connection: Connection, parent: int) -> None:
    """Compute tasks of the jobs that the main process announces, for as long as that process exists."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the main process decides how to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    while True:
        while not connection.poll(PATIENCE):
            if os.getppid() != parent:
                return
        try:
            job = connection.recv()
            for number, task in steps.tokens():
                while job.number != number:  # the jobs before this one were finished without this process
                    job = connection.recv()
                steps.compute(job, task)
                connection.send(task)
        except (EOFError, ConnectionError):
            return
        except Exception as e:
            if not isinstance(e, (UserError, ValueError)):
                e = MemoryError(str(e)) if no_memory(e) else RuntimeError(traceback.format_exc())
            connection.send(e)


def _received(connection: Connection) -> int:
    """Return the number of the task that a helper has finished. Raises its error if it has failed."""
    try:
        message = connection.recv()
    except (EOFError, OSError) as e:
        raise ProcessLost from e
    if isinstance(message, BaseException):
        raise message
    return message
