"""The machine a run uses: its processor, memory that is freed and needed again."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import run_script

from utils.system import device
from utils.system.device import cpu_info, describe_device, keep_freed_memory

# blocks of 40 MiB, taken and given back as maps are: how often the system was asked for a page, before and after
FAULTS = """
import resource
from utils.system.device import keep_freed_memory

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


@pytest.mark.parametrize(("text", "expected"), [
    ("processor\t: 0\nmodel name\t: Some: CPU\nflags\t\t: a b\nempty\t:\n\nprocessor\t: 1\nmodel name\t: Other\n",
     {"processor": "0", "model name": "Some: CPU", "flags": "a b", "empty": ""}),
    ("", {}),
    (None, {}),
])  # fmt: skip
def test_what_linux_tells_of_the_processor(
    text: str | None, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **_: object) -> str:
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    assert cpu_info() == expected
    monkeypatch.setattr(device.platform, "processor", lambda: "")
    monkeypatch.setattr(device.platform, "machine", lambda: "arm64")
    name = expected.get("model name", "arm64")
    assert f"cpu ({name}, {torch.get_num_threads()} threads)" in describe_device(torch.device("cpu"))
