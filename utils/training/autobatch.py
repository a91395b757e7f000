"""`--batch-size -1`: the batch size that the memory of the machine allows, from what a few images are seen to take."""

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
STEP = 8  # larger batches are multiples of it: GPU kernels work in such tiles; powers of two would waste up to a half
# batches to measure; batch norm cannot take a single image where a map is 1 x 1. What autograd keeps is counted, not
# observed, and lies on a straight line; what a GPU takes varies with the kernels chosen, so more points are needed
PROBES_CUDA, PROBES_CPU = (2, 4, 8, 16), (2, 3)
SHARE_CUDA, SHARE_CPU = 0.8, 0.6  # of the free memory; the rest is for the loss, other programs, loader processes
MOST_CUDA, MOST_CPU = 1024, 64  # where memory alone would allow any number; nbs, the nominal batch size, is 64
# what a step on a CPU takes, with the gradients of the maps and copies in the kernels' own layouts, against what
# autograd keeps: measured 1.33 to 1.49 in float32, 1.8 in bfloat16, where casts add to it
CPU_FACTOR = 1.5
STATE = 3  # copies of the weights that come with training: smoothed weights and up to two moments


def choose_batch(per_image: float, fixed: float, budget: float, most: int) -> int:
    """The largest batch with `fixed + batch * per_image <= budget` bytes, at least 1 and at most `most` images.

    From STEP images on it is a multiple of STEP. Raises ValueError if `per_image` is not above 0.
    """
    if not per_image > 0:
        raise ValueError(f"an image takes {per_image} bytes")
    batch = int(max(min((budget - fixed) / per_image, most), 1))
    return batch // STEP * STEP if batch >= STEP else batch


def memory_line(batches: Sequence[int], peaks: Sequence[int]) -> tuple[float, float]:
    """Bytes per image and bytes beside, the straight line through peaks measured at some batch sizes (least squares).

    Raises ValueError for fewer than two points or a line that does not rise.
    """
    if len(batches) < 2:
        raise ValueError("fewer than two batch sizes fitted into the memory")
    per_image, fixed = np.polyfit(batches, peaks, 1)
    if not per_image > 1e-9 * abs(fixed):  # a level line rises by what rounding leaves
        raise ValueError("the memory did not grow with the batch")
    return float(per_image), float(fixed)


def check_train_batch_size(
    model: nn.Module, imgsz: int, device: torch.device, images: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> int:  # fmt: skip
    """Return a batch size for training `model` on squares of `imgsz` pixels; says in one line what was measured.

    images: in the training set; the batch is no larger. autocast: the context that forward passes run in. The model,
    its batch norm statistics and the random generators are left as they are. 16 if measuring fails, with a warning.
    """
    try:
        if device.type == "cuda":
            chosen, measured = _for_cuda(model, imgsz, device, images, autocast)
        else:
            chosen, measured = _for_cpu(model, imgsz, device, images, autocast)
    except (RuntimeError, ValueError, AssertionError) as e:  # AssertionError: a torch built without CUDA
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        chosen = max(min(FALLBACK, images), 1)
        LOGGER.warning(f"--batch-size -1: the memory could not be measured ({reason}); {chosen} is used")
        return chosen
    LOGGER.info(f"batch size {chosen} (--batch-size -1): {measured}")
    return chosen


def _for_cuda(
    model: nn.Module, imgsz: int, device: torch.device, images: int, autocast: Callable[[], AbstractContextManager]
) -> tuple[int, str]:
    batches, peaks = measure_cuda(model, imgsz, device, autocast)
    per_image, fixed = memory_line(batches, peaks)
    fixed = max(fixed, 0.0) + STATE * _bytes(model.parameters())
    torch.cuda.empty_cache()  # what torch holds back for itself counts as free
    free = torch.cuda.mem_get_info(device)[0]
    chosen = choose_batch(per_image, fixed, SHARE_CUDA * free, min(MOST_CUDA, images))
    return chosen, _line(per_image, imgsz, fixed, SHARE_CUDA, free, f"{device}, {len(batches)} batches measured")


def _for_cpu(
    model: nn.Module, imgsz: int, device: torch.device, images: int, autocast: Callable[[], AbstractContextManager]
) -> tuple[int, str]:
    free = available_memory()
    if free is None:
        raise ValueError("the system does not tell how much is free")
    free //= local_world_size()  # the processes that train together share it
    per_image, fixed = memory_line(*measure_cpu(model, imgsz, device, autocast))
    per_image *= CPU_FACTOR
    fixed += (STATE + 1) * _bytes(model.parameters())  # and the gradients
    chosen = choose_batch(per_image, fixed, SHARE_CPU * free, min(MOST_CPU, images))
    return chosen, _line(per_image, imgsz, fixed, SHARE_CPU, free, f"at most {MOST_CPU} on a CPU")


def _line(per_image: float, imgsz: int, fixed: float, share: float, free: float, note: str) -> str:
    return (f"{per_image / 2**20:.1f} MiB per image at {imgsz} px and {fixed / 2**20:.0f} MiB beside, of {share:.0%} "
            f"of {free / 2**30:.1f} GiB free ({note})")  # fmt: skip


def measure_cuda(
    model: nn.Module, imgsz: int, device: torch.device, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> tuple[list[int], list[int]]:
    """Batch sizes of PROBES_CUDA that fitted, and the most bytes that a forward and backward pass of each took."""
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
        except torch.cuda.OutOfMemoryError:  # the sizes before this one are enough for a line
            pass
    return batches, peaks


def measure_cpu(
    model: nn.Module, imgsz: int, device: torch.device, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> tuple[list[int], list[int]]:
    """The batch sizes of PROBES_CPU, and the bytes that autograd keeps for the backward pass of each."""
    twin = _twin(model, device)
    with torch.random.fork_rng(devices=[]):
        kept = [_kept_bytes(twin, _images(batch, imgsz, device), autocast) for batch in PROBES_CPU]
    return list(PROBES_CPU), kept


def _kept_bytes(model: nn.Module, images: Tensor, autocast: Callable[[], AbstractContextManager]) -> int:
    """Bytes that a forward pass leaves for the backward pass, each storage once, weights and buffers not counted."""
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # the graph holds it, so that its address is not used twice

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast():
        output = model(images)
        total = sum(kept.values())
        del output
    return total


def _twin(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy to measure with: a pass in training mode changes a model's batch norm statistics."""
    return copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()


def _images(batch: int, imgsz: int, device: torch.device) -> Tensor:
    return torch.zeros(batch, 3, imgsz, imgsz, device=device).contiguous(memory_format=torch.channels_last)


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in what a model returns, which may be one, or lists of them."""
    return [output] if isinstance(output, Tensor) else [t for part in output for t in _tensors(part)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
