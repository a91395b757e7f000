"""Automatic batch size (`--batch-size -1`): measure the memory of a few images and compute how many fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.system.console import LOGGER
from utils.system.device import available_memory
from utils.system.processes import local_world_size

FALLBACK = 16
STEP = 8  # larger batches are multiples of 8, the tile of GPU kernels; powers of two would waste up to half the memory
# batch sizes to measure, from 2, as batch norm fails for a single image if a map is 1 x 1. On a CPU the bytes saved by
# autograd are counted and grow linearly; on a GPU memory also depends on the kernels chosen, which needs more points
PROBES_CUDA, PROBES_CPU = (2, 4, 8, 16), (2, 3)
SHARE_CUDA, SHARE_CPU = 0.8, 0.6  # of the free memory; the rest is for the loss, other programs and loader processes
MOST_CUDA, MOST_CPU = 1024, 64  # limits if memory allows more; nbs, the nominal batch size, is 64
# memory of a training step on a CPU, including gradients of the maps and copies in the kernels' own layouts, divided by
# the bytes saved by autograd: measured 1.33 to 1.49 in float32, and 1.8 in bfloat16 because of casts
CPU_FACTOR = 1.5
STATE = 3  # copies of the weights kept in training: the EMA weights and up to two moments of the optimizer


def choose_batch(per_image: float, fixed: float, budget: float, most: int) -> int:
    """Return the largest batch with `fixed + batch * per_image <= budget` bytes, from 1 to `most` images.

    From STEP images on, the batch is a multiple of STEP. Raises ValueError if `per_image` is not above 0.
    """
    if not per_image > 0:
        raise ValueError(f"an image takes {per_image} bytes")
    batch = int(max(min((budget - fixed) / per_image, most), 1))
    return batch // STEP * STEP if batch >= STEP else batch


def memory_line(batches: Sequence[int], peaks: Sequence[int]) -> tuple[float, float]:
    """Return the bytes per image and the fixed bytes: a least-squares line through peaks measured at `batches`.

    Raises ValueError for fewer than two points or a line that does not rise.
    """
    if len(batches) < 2:
        raise ValueError("fewer than two batch sizes fit into memory")
    per_image, fixed = np.polyfit(batches, peaks, 1)
    if not per_image > 1e-9 * abs(fixed):  # rounding gives a level line a tiny slope
        raise ValueError("the memory did not grow with the batch")
    return float(per_image), float(fixed)


def check_train_batch_size(
    model: nn.Module, imgsz: int, device: torch.device, images: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> int:  # fmt: skip
    """Return a batch size for training `model` on square images of `imgsz` pixels; log the measurement in one line.

    images: size of the training set, an upper limit. autocast: returns the context for forward passes. The model, its
    batch norm statistics and the random generators are not changed. If measuring fails, logs a warning and returns 16
    (or `images`, if smaller).
    """
    try:
        if device.type == "cuda":
            chosen, measured = _for_cuda(model, imgsz, device, images, autocast)
        else:
            chosen, measured = _for_cpu(model, imgsz, device, images, autocast)
    except (RuntimeError, ValueError, AssertionError) as e:  # AssertionError: a torch built without CUDA
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        chosen = max(min(FALLBACK, images), 1)
        LOGGER.warning(f"--batch-size -1: the memory could not be measured ({reason}); using {chosen}")
        return chosen
    LOGGER.info(f"batch size {chosen} (--batch-size -1): {measured}")
    return chosen


def _for_cuda(
    model: nn.Module, imgsz: int, device: torch.device, images: int, autocast: Callable[[], AbstractContextManager]
) -> tuple[int, str]:
    batches, peaks = measure_cuda(model, imgsz, device, autocast)
    per_image, fixed = memory_line(batches, peaks)
    fixed = max(fixed, 0.0) + STATE * _bytes(model.parameters())
    torch.cuda.empty_cache()  # memory cached by torch counts as free
    free = torch.cuda.mem_get_info(device)[0]
    chosen = choose_batch(per_image, fixed, SHARE_CUDA * free, min(MOST_CUDA, images))
    return chosen, _line(per_image, imgsz, fixed, SHARE_CUDA, free, f"{device}, {len(batches)} batch sizes measured")


def _for_cpu(
    model: nn.Module, imgsz: int, device: torch.device, images: int, autocast: Callable[[], AbstractContextManager]
) -> tuple[int, str]:
    free = available_memory()
    if free is None:
        raise ValueError("the system does not report its free memory")
    free //= local_world_size()  # shared by the training processes on this machine
    per_image, fixed = memory_line(*measure_cpu(model, imgsz, device, autocast))
    per_image *= CPU_FACTOR
    fixed += (STATE + 1) * _bytes(model.parameters())  # + 1: the gradients
    chosen = choose_batch(per_image, fixed, SHARE_CPU * free, min(MOST_CPU, images))
    return chosen, _line(per_image, imgsz, fixed, SHARE_CPU, free, f"at most {MOST_CPU} on a CPU")


def _line(per_image: float, imgsz: int, fixed: float, share: float, free: float, note: str) -> str:
    return (f"{per_image / 2**20:.1f} MiB per image at {imgsz} px and {fixed / 2**20:.0f} MiB fixed, within "
            f"{share:.0%} of {free / 2**30:.1f} GiB free ({note})")  # fmt: skip


def memory_suffices(
    model: nn.Module, imgsz: int, images: float, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> bool:
    """Whether the free memory of a CPU surely suffices to train on this number of images at once."""
    free = available_memory()
    if free is None:
        return False
    try:
        per_image, fixed = memory_line(*measure_cpu(model, imgsz, torch.device("cpu"), autocast))
    except ValueError:  # too small to be measured
        return True
    return fixed + per_image * CPU_FACTOR * images < SHARE_CPU * free


def measure_cuda(
    model: nn.Module, imgsz: int, device: torch.device, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> tuple[list[int], list[int]]:
    """Return the batch sizes of PROBES_CUDA that fit, and the peak bytes of a forward and backward pass of each."""
    twin = _twin(model, device)
    batches: list[int] = []
    peaks: list[int] = []
    with torch.random.fork_rng(devices=[device]):
        try:
            for batch in PROBES_CUDA:
                twin.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                before = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
                with autocast():
                    output = twin(_images(batch, imgsz, device))
                sum(t.float().mean() for t in _tensors(output)).backward()
                del output
                batches.append(batch)
                peaks.append(torch.cuda.max_memory_allocated(device) - before)
        except torch.cuda.OutOfMemoryError:  # the smaller batch sizes may be enough for a line
            pass
    return batches, peaks


def measure_cpu(
    model: nn.Module, imgsz: int, device: torch.device, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> tuple[list[int], list[int]]:
    """Return the batch sizes of PROBES_CPU, and the bytes that autograd saves for the backward pass of each."""
    twin = _twin(model, device)
    with torch.random.fork_rng(devices=[]):
        kept = [_kept_bytes(twin, _images(batch, imgsz, device), autocast) for batch in PROBES_CPU]
    return list(PROBES_CPU), kept


def _kept_bytes(model: nn.Module, images: Tensor, autocast: Callable[[], AbstractContextManager]) -> int:
    """Return the bytes saved for the backward pass; each storage counts once, weights and buffers do not count."""
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # held by the graph, so that its address is not reused

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast():
        output = model(images)
        total = sum(kept.values())
        del output
    return total


def _twin(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy to measure with, because a forward pass in training mode changes batch norm statistics."""
    return copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()


def _images(batch: int, imgsz: int, device: torch.device) -> Tensor:
    return torch.zeros(batch, 3, imgsz, imgsz, device=device).contiguous(memory_format=torch.channels_last)


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors in a model's output, a tensor or nested lists of tensors."""
    return [output] if isinstance(output, Tensor) else [t for part in output for t in _tensors(part)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
