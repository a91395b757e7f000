"""The CPU cores and the memory that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # lists this process's cgroups


def granted_cores(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Return the number of cores that this process may use, at least 1.

    This is the smallest of the machine's cores, the CPU affinity (taskset), and the CPU quotas of the process's
    cgroups (containers, systemd), rounded up. cgroups: where cgroup file systems are mounted.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(math.ceil(min(cores, *map(_quota_of, _cgroups("cpu", cgroups, own)), math.inf)), 1)


def granted_memory(cgroups: Path = CGROUPS, own: Path = OWN) -> float:
    """Return the bytes of memory that the limits of this process's cgroups leave; infinity if they have none."""
    return min((_memory_left(folder) for folder in _cgroups("memory", cgroups, own)), default=math.inf)


def _cgroups(controller: str, cgroups: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups that may limit what a controller grants, and of those above them."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return  # not Linux
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups if not controllers else cgroups / controller
        folder = root / path.strip("/")
        # inside a container the path may be that of the host, and then only the root exists here
        yield from [folder, *folder.parents][: len(folder.relative_to(root).parts) + 1]
        yield root


def _quota_of(folder: Path) -> float:
    """Return the CPU quota of a cgroup in cores, infinity without one."""
    for quota, period in (("cpu.max", ""), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # cgroup version 2, version 1
        try:
            words = (folder / quota).read_text(encoding="ascii").split()
            words += (folder / period).read_text(encoding="ascii").split() if period else []
            allowed, length = words[0], int(words[1])
            if allowed not in ("max", "-1") and length > 0:
                return int(allowed) / length
        except (OSError, ValueError, IndexError):
            continue
    return math.inf


def _memory_left(folder: Path) -> float:
    """Return the bytes that the limit of a cgroup leaves, infinity without one; cached files count as free."""
    for limit, used, cached in (("memory.max", "memory.current", "inactive_file"),
                                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")):  # fmt: skip
        try:
            left = int((folder / limit).read_text(encoding="ascii")) - int((folder / used).read_text(encoding="ascii"))
            facts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            return max(left + int(facts.get(cached, 0)), 0)
        except (OSError, ValueError):  # "max": no limit
            continue
    return math.inf
