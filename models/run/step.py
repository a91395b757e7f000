"""The computation of a training step: which batches are computed together, their losses and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.inference.runtime import to_input
from models.run import parallel
from models.run.setup import Run
from models.run.teaching import with_lesson
from utils.data.batch_augment import augment_batch
from utils.data.dataset import Batch, rescale
from utils.errors import UserError
from utils.system.processes import rank, world_size
from utils.training.optim import warmup_steps


class Computed(NamedTuple):
    """The loss of a batch, shape (1,), its parts (PARTS,), and the targets, which --gpu-augment changes."""

    loss: Tensor
    parts: Tensor
    targets: Tensor


def warmed_up(run: Run, step: int) -> float:
    """Return the completed part of the warm-up, 0 to 1. step: number of the batch since the start of the training."""
    steps = warmup_steps(run.hyp["warmup_epochs"], len(run.loader), run.opt.epochs)
    return min(step / steps, 1.0) if steps else 1.0


def accumulated(run: Run, step: int) -> int:
    """Return after how many batches the optimizer makes a step: 1, rising in the warm-up to nbs / batch size."""
    return max(round(1 + warmed_up(run, step) * (max(run.hyp["nbs"] / run.opt.batch_size, 1.0) - 1)), 1)


class Group(NamedTuple):
    """Batches that are computed at once, and whether each of them is computed as a whole."""

    batches: list[Batch]
    whole: bool


def groups_of(run: Run, batches: Iterable[Batch]) -> Iterator[Group]:
    """Yield the remaining batches of an epoch in groups, within which the optimizer makes no step.

    Expects that `run.state` is updated before the next group is requested.
    """
    source = iter(batches)
    while batch := next(source, None):
        end, whole = next_group(run)
        yield Group([batch, *itertools.islice(source, end - run.state.batch - 1)], whole)


def next_group(run: Run) -> tuple[int, bool]:
    """Return where the next group ends, as a number of batches in this epoch, and whether its batches are not split.

    The groups of an epoch do not depend on where it is resumed: if the first batches of a group were computed before,
    the others are computed in the same way.
    """
    batch, count = run.state.batch, len(run.loader)
    if run.parallel is None or not run.parallel.several:
        return batch + 1, run.parallel is None
    before, last = run.state.epoch * count, run.state.last_step
    since = min(before + batch - last - 1, batch)  # batches since the last step of the optimizer, in this epoch
    first = end = batch - since % run.parallel.parts
    while end < min(first + run.parallel.parts, count):
        end += 1
        if before + end - 1 - last >= accumulated(run, before + end - 1):
            break
    # a group that is too small to keep half of the processes busy is split, batch by batch
    return (end, True) if 2 * (end - first) > run.parallel.parts else (batch + 1, False)


def compute(run: Run, group: Group) -> list[Computed]:
    """Compute the losses of a group of batches. `run.parallel` also adds their gradients to those of the parameters."""
    opt, state = run.opt, run.state
    jobs = [parallel.Batch(images, targets, (opt.seed, state.epoch, state.batch + k))
            for k, (images, targets, *_) in enumerate(group.batches)]  # fmt: skip
    try:
        if run.parallel is None:
            return [_compute_alone(run, *jobs[0])]
        found = run.parallel(jobs, 1 if group.whole else None)
    except ValueError as e:
        if "more than 1 value per channel" not in str(e):
            raise
        raise UserError("batch norm cannot learn from a single image whose smallest feature map has a single cell: use "
                        "a larger --batch-size or --imgsz") from e  # fmt: skip
    return [Computed(*losses, job.targets) for losses, job in zip(found, jobs, strict=True)]


def _compute_alone(run: Run, images: Tensor, targets: Tensor, seed: tuple[int, ...]) -> Computed:
    opt = run.opt
    x = to_input(images, run.device, torch.float32 if opt.multi_scale or opt.gpu_augment else run.precision.dtype)
    if opt.gpu_augment:
        x, targets = augment_batch(x, targets, run.hyp, np.random.default_rng((*seed, rank(), 3)))
    if opt.multi_scale:
        x = rescale(x, opt.imgsz, int(run.model.stride.max()), np.random.default_rng(seed))
    with run.precision.autocast():
        raw, lesson = run.teaching(run.network, x, (*seed, rank()))
    # with several processes, each loss is one share of that of the whole batch, of equal size
    loss, parts = with_lesson(run.train_loss(raw, targets), lesson, len(x), len(x) * world_size())
    return Computed(loss * 4 if opt.quad else loss, parts, targets)
