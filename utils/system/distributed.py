"""Communication between the processes of a distributed training, which torchrun starts.

Every function also works in a single process, where it does nothing or returns the result for that process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError
from utils.system.processes import is_connected, world_size

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TIMEOUT = timedelta(minutes=30)  # of one collective operation; the slowest process may be validating or writing files


def connect(device: torch.device) -> None:
    """Join the process group. Slow work that only one process does, such as a label scan, belongs before this."""
    if world_size() > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=device if device.type == "cuda" else None)


def disconnect() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Return, on every process, the list of the values passed by all processes, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def highest(value: int, device: torch.device) -> int:
    """Return the largest of the integers passed by all processes."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def spread(tensors: list[Tensor]) -> None:
    """Broadcast tensors, in place, from the main process to all others."""
    if dist.is_initialized():
        for t in tensors:
            dist.broadcast(t, 0)


@contextmanager
def lost_process_is_told(advice: Callable[[], str] = str) -> Iterator[None]:
    """Turn the error raised after another process has ended into a UserError; its text ends with `advice()`."""
    try:
        yield
    except RuntimeError as e:
        chain: list[BaseException] = [e]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        told = [str(c) for c in chain if _is_broken_exchange(str(c))]
        if not is_connected() or isinstance(e, torch.OutOfMemoryError) or not told:
            raise
        # drop the C++ source location and the advice to developers
        reason = re.sub(r"^\[[^]]*\]\s*", "", told[0].splitlines()[0]).split(". ")[0][:80]
        raise UserError(f"another process of this training has ended ({reason}); {advice()}".rstrip("; ")) from e


def _is_broken_exchange(message: str) -> bool:
    words = ("connection", "gloo", "nccl", "timed out", "broken pipe", "process group")
    return any(word in message.lower() for word in words)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder; the system releases it if the process ends.

    Does not lock if the system or its file system has no such locks, or if the folder does not exist.
    """
    handle = None
    try:
        if fcntl:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        pass  # no such folder, or a file system without locks
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
