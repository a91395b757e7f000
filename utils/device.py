"""The machine a run uses: which device, how much memory, which seed."""

from __future__ import annotations

import os
import platform
import random
from typing import Any

import numpy as np
import torch

from utils.errors import UserError


def select_device(device: str = "") -> torch.device:
    """Return the device `--device` names: '' for the best there is, 'cpu', 'mps', or a GPU's number.

    Raises UserError if it is not there.
    """
    name = str(device).strip().lower().removeprefix("cuda:")
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
    else:
        what = f"{device} ({torch.get_num_threads()} threads)"
    return f"Python {platform.python_version()}, torch {torch.__version__}, {what}"


def seed_everything(seed: int) -> None:
    """Seed every random generator a run may touch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
