"""The cost of a network: run times, parameters and floating-point operations."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ContextDecorator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from utils.system.console import LOGGER

REST = 0.03  # seconds after which the idle threads of an inference engine have stopped spinning


def time_sync() -> float:
    """Return the time in seconds since 1970, after waiting for pending GPU work."""
    _wait_for_gpu()
    return time.time()


def seconds() -> float:
    """Return a monotonic time in seconds for measuring durations, after waiting for pending GPU work."""
    _wait_for_gpu()
    return time.perf_counter()


def _wait_for_gpu(device: torch.device | None = None) -> None:
    if torch.cuda.is_initialized() and (device is None or device.type == "cuda"):
        torch.cuda.synchronize(device)
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


class Profile(ContextDecorator):
    """Measures the seconds spent in its `with` blocks, GPU work included: `t` in total, `dt` in the last block.

    t: initial total in seconds. device: the GPU to wait for; None is the current GPU.
    """

    def __init__(self, t: float = 0.0, device: torch.device | None = None) -> None:
        self.t, self.dt, self.device = t, 0.0, device
        self._start = 0.0

    def __enter__(self) -> Profile:
        _wait_for_gpu(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_error: object) -> None:
        _wait_for_gpu(self.device)
        self.dt = time.perf_counter() - self._start
        self.t += self.dt


def time_in_turns(
    calls: Sequence[Callable[[], object]], rounds: int = 50, budget: float = 60.0, least: int = 5,
    each: Callable[[range], Iterable[int]] = iter, before: int = 2, rest: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Time several calls in turns, in a new random order each round, so that a busy machine favours none of them.

    `before` untimed rounds warm up. Timing ends after `rounds` rounds, or when `budget` seconds have passed and at
    least `least` rounds are done. each: wraps the range of rounds, to show progress. rest: seconds to sleep before each
    call, so that the threads of the previous one stop spinning; an extra untimed call then warms up caches and
    processor, as in a loop of the same call.
    Returns the seconds, shape (rounds done, calls).
    """
    rng, start = np.random.default_rng(0), None
    times: list[list[float]] = []
    for number in each(range(rounds + before)):
        if number == before:
            start = seconds()
        if number >= before + least and seconds() - start > budget:
            break
        row = [0.0] * len(calls)
        for k in rng.permutation(len(calls)):
            if rest:
                time.sleep(rest)
                calls[k]()
            begin = seconds()
            calls[k]()
            row[k] = seconds() - begin
        times.append(row)
    return np.array(times[before:]).reshape(-1, len(calls))


def model_info(model: nn.Module, verbose: bool = False, imgsz: int | Sequence[int] = 640) -> None:
    """Log the number of modules, parameters and gradients of a network, and the GFLOPs of one forward pass.

    verbose: first log one line per parameter tensor. imgsz: image size in pixels, a side or (height, width).
    """
    parameters = dict(model.named_parameters())
    if verbose:
        width = max(map(len, parameters), default=0)
        for name, p in parameters.items():
            LOGGER.info(f"{name:<{width}}  {'x'.join(map(str, p.shape)):>16}  {p.numel():>12,}"
                        f"{'' if p.requires_grad else '  frozen'}")  # fmt: skip
    count = sum(p.numel() for p in parameters.values())
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    LOGGER.info(f"{len(list(model.modules()))} modules, {count:,} parameters, {trained:,} gradients, "
                f"{count_gflops(model, imgsz):.2f} GFLOPs at {height}x{width} px")  # fmt: skip


class _WithoutBatchNorms(TorchFunctionMode):
    """Skips batch norms: their FLOPs are not counted, and on the meta device they take as long as all other layers."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is nn.functional.batch_norm else func(*args, **(kwargs or {}))


def count_gflops(model: nn.Module, imgsz: int | Sequence[int] = 640) -> float:
    """Return the GFLOPs (1e9 operations, 2 per multiply-add) of one forward pass over one image in eval mode.

    imgsz: image size in pixels, a side or (height, width).
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, a compiler for GPUs, in a tenth of a second

    size = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
    twin = copy.deepcopy(model).float().eval().to("meta")
    channels = getattr(model, "yaml", {}).get("ch", 3)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), _WithoutBatchNorms():
        twin(torch.zeros(1, channels, *size, device="meta"))
    return counter.get_total_flops() / 1e9
