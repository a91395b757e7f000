"""The loader around a data set: its processes, and what becomes of a run when one of them, or the images, are lost."""

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
from utils.system.opencv import cv2
from utils.system.processes import local_world_size, world_size

SHARED_MEMORY = ("the shared memory that image processes hand batches over in is full (/dev/shm): --workers 0 needs "
                 "none, and containers get more with docker run --shm-size 8g")  # fmt: skip


class LoaderError(UserError):
    """No more batches can be had, though the training itself is well."""


def collate(items: list[Item]) -> Batch:
    """Stack items: images (b, 3, h, w) uint8, targets (n, 6) with the image's number in column 0, paths, shapes."""
    images, targets, paths, shapes = zip(*items, strict=True)
    for number, target in enumerate(targets):
        target[:, 0] = number
    stacked = torch.stack([im.permute(1, 2, 0) for im in images]).permute(0, 3, 1, 2)  # channels-last
    labels = torch.cat(targets)
    if get_worker_info() is not None:
        # here an error reaches the main process; in the thread that sends batches it is lost, and they are waited for
        for tensor in (stacked, labels):
            if tensor.numel():
                tensor.share_memory_()
    return stacked, labels, paths, shapes


def _start_worker(background: bool, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the main process decides what is still to be done
    if world_size() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to all there are, on Ctrl-C too
    if background and hasattr(os, "nice"):
        os.nice(19)  # each time a core is taken from the network's threads, the others wait for that one
    cv2.setNumThreads(0)  # one worker per core: OpenCV's own threads would fight over them
    torch.set_num_threads(1)


class Loader(DataLoader):
    """A DataLoader whose processes do not inherit a lock of OpenCV, and whose loss is told where a batch is asked for.

    OpenCV keeps a list of the threads that have used it. A process forked while another thread is entered there, or
    leaves, has that list locked for ever, and waits for it as soon as it uses OpenCV itself; unless its thread, a copy
    of this one, is in the list already.
    """

    def __iter__(self) -> Iterator[Batch]:
        cv2.resize(cv2.copyMakeBorder(np.zeros((2, 2, 3), np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT), (3, 3))
        batches = super().__iter__()
        if self.num_workers and hasattr(signal, "SIGCHLD") and current_thread() is main_thread():
            # torch would raise in the middle of a step, after which a training cannot be saved
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches


def create_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, shuffle: bool, pin_memory: bool = False,
    rank: int = 0, world: int = 1, whole: bool = True,
) -> Loader:  # fmt: skip
    """A loader over a data set. `loader.batch_sampler.epoch = n` chooses the epoch that the next pass draws.

    pin_memory: for a GPU; without it the network is taken to run on the cores that the loader's processes share.
    rank, world, whole: the part of it that this process gets, see `EpochBatches`.
    """
    # batch norm cannot learn from a share of one image whose coarsest map is a single cell
    least = 4 if dataset.quad else min(2, batch_size // world)
    batches = EpochBatches(len(dataset), batch_size, shuffle, dataset.seed, rank, world, whole, least)
    workers = min(workers, max((os.cpu_count() or 1) // local_world_size(), 1), max(len(dataset) // batch_size, 1))
    return Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        # from 3.14 on Python would start empty processes: each would import torch, and hold all --cache ram of its own
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=partial(_start_worker, not pin_memory),
        generator=torch.Generator(),  # the loader's own: it leaves the random state of the training alone
    )


def close_loader(loader: DataLoader | None) -> None:
    """End a loader's processes now rather than some time after its last use."""
    iterator = getattr(loader, "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


def batches_of(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader. Raises LoaderError where a process of it is lost, memory is full or the images gone."""
    try:
        yield from loader
    except ImagesLost as e:  # with a traceback where it was raised in another process
        raise LoaderError(shorten(str(e).rpartition("ImagesLost: ")[2])) from e
    except (RuntimeError, OSError) as e:
        if reason := _why(str(e)):
            raise LoaderError(reason) from e
        raise


def _why(message: str) -> str:
    """What an error of a loader means, or an empty string if it is another's."""
    if re.search(r"Bus error|</torch_\d+|(allocate|open|resize|write to) shared memory", message):
        return SHARED_MEMORY
    if "DataLoader worker" in message and "killed" in message:
        return ("a process that loads images was killed, as systems do when memory runs out: fewer --workers, or no "
                "--cache")  # fmt: skip
    if "DataLoader worker" in message and "exited unexpectedly" in message:
        return ("a process that loads images has ended: memory ran out (fewer --workers, or no --cache), or "
                f"{SHARED_MEMORY}")  # fmt: skip
    return ""
