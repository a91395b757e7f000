"""The CPU cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def granted_cores(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of cores that this process may use, at least 1.

    This is the smallest of the machine's cores, the CPU affinity (taskset), and the CPU quotas of the process's
    cgroups (containers, systemd), rounded up. cgroups: where cgroup file systems are mounted; own: the file that lists
    this process's cgroups.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(math.ceil(min(cores, _quota(cgroups, own))), 1)


def _quota(cgroups: Path, own: Path) -> float:
    """Return the smallest CPU quota, in cores, of this process's cgroup and those above it; infinity without one."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return math.inf  # not Linux
    quotas = [math.inf]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups if not controllers else cgroups / "cpu"
        folder = root / path.strip("/")
        # inside a container the path may be that of the host, and then only the root exists here
        for place in [folder, *folder.parents][: len(folder.relative_to(root).parts) + 1] + [root]:
            quotas.append(_quota_of(place))
    return min(quotas)


def _quota_of(folder: Path) -> float:
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
