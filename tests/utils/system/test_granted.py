"""What a process may use: cores by affinity and the quotas of cgroups, memory by their limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from utils.system.granted import granted_cores, granted_memory


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),  # the folder above has the quota
        ("0::/host/path", {"cpu.max": "300000 100000"}, 3),  # in a container only the root exists
        ("4:cpu,cpuacct:/x\n3:memory:/x", {"cpu/x/cpu.cfs_quota_us": "250000", "cpu/x/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        ("0::/", {"cpu.max": "100000 0"}, 8),
        ("", {}, 8),
    ],
)
def test_quotas(own: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert granted_cores(tmp_path, tmp_path / "own") == cores


def test_affinity_and_systems_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 5}, raising=False)
    assert granted_cores(tmp_path, tmp_path / "none") == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert granted_cores(tmp_path, tmp_path / "none") == 6


V2, V1 = ("memory.max", "memory.current"), ("memory/x/memory.limit_in_bytes", "memory/x/memory.usage_in_bytes")


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/", {V2[0]: "1000", V2[1]: "700", "memory.stat": "anon 500\ninactive_file 150"}, 450),
        ("0::/", {V2[0]: "max", V2[1]: "700", "memory.stat": ""}, math.inf),
        ("0::/", {V2[0]: "1000", V2[1]: "1200", "memory.stat": "anon 1"}, 0),
        ("0::/a", {f"a/{V2[0]}": "max", f"a/{V2[1]}": "7", "a/memory.stat": "", V2[0]: "90", V2[1]: "7",
                   "memory.stat": ""}, 83),
        ("3:memory:/x", {V1[0]: "1000", V1[1]: "700", "memory/x/memory.stat": "total_inactive_file 20"}, 320),
        ("0::/", {V2[0]: "1000"}, math.inf),
        ("", {}, math.inf),
    ],
)  # fmt: skip
def test_memory(own: str, files: dict[str, str], left: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert granted_memory(tmp_path, tmp_path / "own") == left
