"""The machine a run uses: which device, how much memory, which seed, which packages and windows it has."""

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
from utils.system.opencv import cv2

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h


def select_device(
    device: str | int | torch.device | None = "", batch_size: int = 0, newline: bool = True
) -> torch.device:
    """Return the device `--device` names: '' or None for the best there is, 'cpu', 'mps', or a GPU's number.

    batch_size and newline are taken for the sake of YOLOv5's scripts and have no effect.
    Raises UserError if the device is not there.
    """
    name = str("" if device is None else device).strip().lower().removeprefix("cuda:")
    if name == "cuda":
        name = "0"
    if not name:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine has no Apple GPU that torch can use")
        return torch.device("mps")
    if "," in name:
        raise UserError(f"--device {device}: one process takes one GPU; for several start train.py with torchrun "
                        f"--standalone --nproc_per_node {name.count(',') + 1}")  # fmt: skip
    if not name.isdigit():
        raise UserError(f"--device {device}: give 'cpu', 'mps' or the number of one GPU, such as 0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(name) >= count:
        raise UserError(f"--device {device}: torch {torch.__version__} sees {count} CUDA devices; use --device cpu")
    return torch.device(f"cuda:{name}")


def describe_device(device: torch.device) -> str:
    """One line: Python, torch, and the device's name."""
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
    """What Linux tells of the first processor, such as `model name` and `flags`; nothing on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    lines = [line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in lines}


def seed_everything(seed: int = 0, deterministic: bool = False) -> None:
    """Seed every random generator a run may touch.

    deterministic: let torch take algorithms that give the same bits each time, and warn where it has none.
    Raises UserError for a seed that torch cannot take.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: it can be 0 to 2^63 - 1")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)


def random_state() -> dict[str, Any]:
    """The states of all random generators a run may touch, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    version, state, gauss = random.getstate()
    return {
        "python": [version, list(state), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(states: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def available_memory() -> int | None:
    """Bytes of main memory that are free to use, or None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees for what it needs next, where the C library is glibc.

    By default large blocks go back to the system at once, and each step of a training on a CPU spends several per cent
    of its time on getting them again, page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def check_requirements(
    requirements: str | Path | Iterable[str] = ROOT / "requirements.txt", exclude: Iterable[str] = (),
    install: bool = False,
) -> bool:  # fmt: skip
    """Return whether all packages of a requirements file, or of a list, are there; name those missing in a warning.

    Versions are not compared, and nothing is ever installed, whatever `install` says. Raises UserError if the file
    cannot be read.
    """
    if isinstance(requirements, Path) or str(requirements).endswith(".txt"):
        try:
            lines = Path(requirements).read_text(encoding="utf-8").splitlines()
        except OSError as e:
            raise UserError(f"{requirements}: cannot be read ({e.strerror})") from e
    else:
        lines = [requirements] if isinstance(requirements, str) else list(requirements)
    # a line with an address has no name to look for, one with a condition may not be meant for this machine
    plain = [line.split("#")[0].strip() for line in lines if "://" not in line and ";" not in line]
    names = [m[0] for line in plain if (m := re.match(r"\w[\w.-]*", line))]
    missing = [name for name in names if name not in set(exclude) and not _is_installed(name)]
    if missing:
        LOGGER.warning(f"missing: {', '.join(missing)}; nothing is installed unasked: pip install {' '.join(missing)}")
    return not missing


def _is_installed(package: str) -> bool:
    # OpenCV comes in several packages of which one is enough
    same = [f"opencv{kind}-python{size}" for kind in ("", "-contrib") for size in ("", "-headless")]
    for name in same if package in same else [package]:
        try:
            metadata.version(name)
            return True
        except metadata.PackageNotFoundError:
            continue
    return False


def has_display() -> bool:
    """Whether there is a screen to show pictures on; without one OpenCV does not raise, it ends the process."""
    return not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def check_imshow(warn: bool = False) -> bool:
    """Return whether pictures can be shown in windows: a display is there and this OpenCV can draw on it.

    warn: say so if not.
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
        LOGGER.warning("pictures cannot be shown here: there is no display, or OpenCV was built without windows")
    return possible
