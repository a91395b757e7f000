"""The machine of a run: device, free memory, random seeds, installed packages, display."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import UserError
from utils.files import ROOT
from utils.system.console import LOGGER
from utils.system.granted import granted_cores, granted_memory
from utils.system.opencv import cv2

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h


def select_device(
    device: str | int | torch.device | None = "", batch_size: int = 0, newline: bool = True
) -> torch.device:
    """Return the device for a `--device` value: 'cpu', 'mps', the index of a CUDA GPU, or '' or None for automatic.

    Automatic is the first CUDA GPU, or the CPU if there is none. On the CPU, torch's threads are limited to the cores
    that this process may use. batch_size and newline are accepted for compatibility
    with YOLOv5's scripts and have no effect. Raises UserError if the device is not available.
    """
    name = str("" if device is None else device).strip().lower().removeprefix("cuda:")
    if name == "cuda":
        name = "0"
    if not name:
        name = "0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), granted_cores()))  # torch does not see a container's quota
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine has no Apple GPU that torch can use")
        return torch.device("mps")
    if "," in name:
        raise UserError(f"--device {device}: one process takes one GPU; for several GPUs, start train.py with torchrun "
                        f"--standalone --nproc_per_node {name.count(',') + 1}")  # fmt: skip
    if not name.isdigit():
        raise UserError(f"--device {device}: give 'cpu', 'mps' or the number of one GPU, such as 0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(name) >= count:
        raise UserError(f"--device {device}: torch {torch.__version__} sees {count} CUDA devices; use --device cpu")
    return torch.device(f"cuda:{name}")


def describe_device(device: torch.device) -> str:
    """Return one line with the versions of Python and torch, and the name of the device."""
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        what = f"{device} ({p.name}, {p.total_memory / 2**30:.0f} GiB)"
    elif device.type == "cpu":
        name = cpu_info().get("model name") or platform.processor() or platform.machine()
        what = f"{device} ({name}, {torch.get_num_threads()} threads)"
    else:
        what = f"{device}"
    return f"Python {platform.python_version()}, torch {torch.__version__}, {what}"


def cpu_info() -> dict[str, str]:
    """Return Linux's entries for the first processor, such as `model name` and `flags`; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    lines = [line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in lines}


def seed_everything(seed: int = 0, deterministic: bool = False) -> None:
    """Seed the random generators of Python, NumPy and torch.

    deterministic: use torch's deterministic algorithms, with a warning where an operation has none.
    Raises UserError for a seed outside torch's range.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: it must be from 0 to 2^63 - 1")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)


def random_state() -> dict[str, Any]:
    """Return the states of the random generators of Python, NumPy and torch, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    version, state, gauss = random.getstate()
    return {
        "python": [version, list(state), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(states: dict[str, Any]) -> None:
    """Restore the states returned by `random_state`."""
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def available_memory() -> int | None:
    """Return the bytes of main memory that are available here, or None if the system does not report them."""
    try:
        with open("/proc/meminfo", encoding="ascii") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(min(int(line.split()[1]) * 1024, granted_memory()))
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later allocations instead of returning it to the system.

    By default glibc returns large blocks at once, and each training step on a CPU spends several per cent of its time
    on getting them back, page by page. Has no effect with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def check_requirements(
    requirements: str | Path | Iterable[str] = ROOT / "requirements.txt", exclude: Iterable[str] = (),
    install: bool = False,
) -> bool:  # fmt: skip
    """Return whether all packages of a requirements file, or of a list, are installed; warn of missing ones.

    Versions are not compared. Nothing is ever installed: `install` has no effect. Raises UserError if the file cannot
    be read.
    """
    if isinstance(requirements, Path) or str(requirements).endswith(".txt"):
        try:
            lines = Path(requirements).read_text(encoding="utf-8").splitlines()
        except OSError as e:
            raise UserError(f"{requirements}: cannot be read ({e.strerror})") from e
    else:
        lines = [requirements] if isinstance(requirements, str) else list(requirements)
    # skip lines with a URL, which have no package name, and with a condition, which may not apply to this machine
    plain = [line.split("#")[0].strip() for line in lines if "://" not in line and ";" not in line]
    names = [m[0] for line in plain if (m := re.match(r"\w[\w.-]*", line))]
    missing = [name for name in names if name not in set(exclude) and not _is_installed(name)]
    if missing:
        LOGGER.warning(f"packages missing: {', '.join(missing)}; to install them: pip install {' '.join(missing)}")
    return not missing


def _is_installed(package: str) -> bool:
    # any one of the OpenCV packages is enough
    same = [f"opencv{kind}-python{size}" for kind in ("", "-contrib") for size in ("", "-headless")]
    for name in same if package in same else [package]:
        try:
            metadata.version(name)
            return True
        except metadata.PackageNotFoundError:
            continue
    return False


def has_display() -> bool:
    """Whether there is a display; without one, OpenCV does not raise an exception but ends the process."""
    return not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def check_imshow(warn: bool = False) -> bool:
    """Return whether images can be shown: there is a display, and OpenCV was built with window support.

    warn: log a warning if not.
    """
    possible = has_display()
    if possible:
        try:
            cv2.imshow("test", np.zeros((1, 1, 3), np.uint8))
            cv2.waitKey(1)
            cv2.destroyAllWindows()
        except cv2.error:
            possible = False
    if warn and not possible:
        LOGGER.warning("images cannot be shown: there is no display, or OpenCV was built without window support")
    return possible
