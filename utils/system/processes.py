"""Rank and world size of this process, from the environment set by torchrun. Does not import torch."""

from __future__ import annotations

import os
import sys


def rank() -> int:
    """Return the rank of this process, 0 for the main process."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return the rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Return the number of training processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this is the main process, which prints and writes files."""
    return rank() == 0


def is_connected() -> bool:
    """Whether this process has joined a process group."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()
