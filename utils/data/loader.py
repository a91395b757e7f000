"""The DataLoader: its worker processes, and the errors raised if a worker or the images are lost."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from functools import partial
from threading import current_thread, main_thread

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from utils.data.dataset import Batch, DetectionDataset, EpochBatches, ImagesLost, Item
from utils.errors import UserError, shorten
from utils.system.granted import granted_cores
from utils.system.opencv import cv2
from utils.system.processes import local_world_size, world_size

SHARED_MEMORY = ("the shared memory through which worker processes pass batches (/dev/shm) is full: --workers 0 needs "
                 "none; a container gets more with docker run --shm-size 8g")  # fmt: skip


class LoaderError(UserError):
    """No more batches can be loaded; the training itself has not failed."""


def collate(items: list[Item]) -> Batch:
    """Stack items: images (b, 3, h, w) uint8, targets (n, 6) with the image's index in column 0, paths, shapes."""
    images, targets, paths, shapes = zip(*items, strict=True)
    for number, target in enumerate(targets):
        target[:, 0] = number
    stacked = torch.stack([im.permute(1, 2, 0) for im in images]).permute(0, 3, 1, 2)  # channels-last
    labels = torch.cat(targets)
    if get_worker_info() is not None:
        # an error here reaches the main process; in the thread that sends batches it would be lost, and the main
        # process would wait forever
        for tensor in (stacked, labels):
            if tensor.numel():
                tensor.share_memory_()
    return stacked, labels, paths, shapes


def _start_worker(niceness: int, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the main process decides how to stop
    if world_size() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to every process, also on Ctrl-C
    if niceness and hasattr(os, "nice"):
        os.nice(niceness)
    cv2.setNumThreads(0)  # there is one worker per core already
    torch.set_num_threads(1)


class Loader(DataLoader):
    """A DataLoader whose workers inherit no held OpenCV lock; a lost worker raises when the next batch is requested.

    OpenCV keeps a locked list of the threads that have used it. If a process is forked while another thread is being
    added or removed, the lock stays held in the child, which then hangs at its first call of OpenCV, unless the forking
    thread is already in the list. This is why `__iter__` calls OpenCV before it starts the workers.
    """

    def __iter__(self) -> Iterator[Batch]:
        cv2.resize(cv2.copyMakeBorder(np.zeros((2, 2, 3), np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT), (3, 3))
        batches = super().__iter__()
        if self.num_workers and hasattr(signal, "SIGCHLD") and current_thread() is main_thread():
            # torch's handler would raise in the middle of a step, and the training could not be saved
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches


def create_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, shuffle: bool, pin_memory: bool = False,
    rank: int = 0, world: int = 1, whole: bool = True, niceness: int = 0,
) -> Loader:  # fmt: skip
    """Create a loader for a dataset. `loader.batch_sampler.epoch = n` sets the epoch of the next pass.

    pin_memory: set for a GPU. rank, world, whole: the part of the batches that this process gets, see `EpochBatches`.
    niceness: by how much to lower the priority of the workers, for a model that computes on the same cores. A thread of
    an operation on several cores that is delayed delays all the others; but at the lowest priority, workers get hardly
    any time beside other busy programs.
    """
    # batch norm cannot train on a single image whose coarsest feature map has only one cell
    least = 4 if dataset.quad else min(2, batch_size // world)
    batches = EpochBatches(len(dataset), batch_size, shuffle, dataset.seed, rank, world, whole, least)
    workers = min(workers, max(granted_cores() // local_world_size(), 1), max(len(dataset) // batch_size, 1))
    return Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        # fork is not the default from Python 3.14 on; otherwise each worker would import torch and copy --cache ram
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=partial(_start_worker, niceness),
        generator=torch.Generator(),  # a separate one, so that the training's random state is unchanged
    )


def close_loader(loader: DataLoader | None) -> None:
    """Stop a loader's worker processes now instead of some time after its last use."""
    iterator = getattr(loader, "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


def batches_of(loader: DataLoader) -> Iterator[Batch]:
    """Yield the batches of a loader. Raises LoaderError if a worker dies, memory is full or the images are gone."""
    try:
        yield from loader
    except ImagesLost as e:  # if raised in a worker, the message contains a traceback
        raise LoaderError(shorten(str(e).rpartition("ImagesLost: ")[2])) from e
    except (RuntimeError, OSError) as e:
        if reason := _why(str(e)):
            raise LoaderError(reason) from e
        raise


def _why(message: str) -> str:
    """Return the explanation of a loader's error message, or an empty string if it is another error."""
    if re.search(r"Bus error|</torch_\d+|(allocate|open|resize|write to) shared memory", message):
        return SHARED_MEMORY
    if "DataLoader worker" in message and "killed" in message:
        return ("a process that loads images was killed, probably because memory ran out: use fewer --workers or no "
                "--cache")  # fmt: skip
    if "DataLoader worker" in message and "exited unexpectedly" in message:
        return ("a process that loads images has ended: memory ran out (use fewer --workers or no --cache), or "
                f"{SHARED_MEMORY}")  # fmt: skip
    return ""
