"""The machine a run uses: memory that is freed and needed again."""

from __future__ import annotations

import platform
import sys
from types import SimpleNamespace

import pytest
from helpers import run_script

from utils import device
from utils.device import keep_freed_memory

# blocks of 40 MiB, taken and given back as maps are: how often the system was asked for a page, before and after
FAULTS = """
import resource
from utils.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(b"x") * (40 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
keep_freed_memory()
faults()
print(usual, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_kept() -> None:
    done = run_script("-c", FAULTS)
    assert done.returncode == 0, done.stderr
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 4


@pytest.mark.parametrize(
    ("system", "library"),
    [("linux", SimpleNamespace()), ("darwin", None), ("win32", None)],
    ids=["another C library", "macOS", "Windows"],
)
def test_elsewhere_nothing_happens(system: str, library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str | None) -> object:
        assert library is not None, "no library is to be opened here"
        return library

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(device.ctypes, "CDLL", load)
    assert keep_freed_memory() is None
