"""Which of several training processes this one is, from the environment that torchrun sets. Loads without torch."""

from __future__ import annotations

import os
import sys


def rank() -> int:
    """The number of this process, 0 for the main one."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def is_connected() -> bool:
    """Whether this process has joined a process group."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()
