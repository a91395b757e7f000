"""A network in training in memory that several processes share, for `models.run.parallel`."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class SharedNetwork:
    """Moves the parameters and batch norm statistics of a network to shared memory, and builds a twin of it.

    The optimizer, the EMA and checkpoints use `model`; each process computes with its own `twin`. The twin shares the
    parameters but has its own statistics, which the process resets before each forward pass. With dtype bfloat16, its
    convolution weights are bfloat16 copies, which `refresh` makes at once; autocast would convert them one by one.

    parameters: those of `model` that are trained. inputs: their counterparts in `twin`. statistics, own_statistics: the
    running statistics of all batch norms of `model` and of `twin` (n,).
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.twin = copy.deepcopy(model).train()
        names = _in_order(model, dtype)
        every, twins = dict(model.named_parameters()), dict(self.twin.named_parameters())
        self.parameters = [every[n] for n in names if every[n].requires_grad]
        weights = shared(sum(p.numel() for p in every.values()))
        move_into(weights, [every[n] for n in names])
        for name in names:
            twins[name].data = every[name].data
        halved = [n for n in names if _is_halved(model, n, dtype)]
        self._halves = shared(sum(every[n].numel() for n in halved), torch.bfloat16)
        self._wholes = weights[: len(self._halves)]
        for name, half in zip(halved, views(self._halves, [every[n] for n in halved]), strict=True):
            module, _, key = name.rpartition(".")
            twins[name] = nn.Parameter(half)
            setattr(self.twin.get_submodule(module), key, twins[name])
        self.inputs = [twins[n] for n in names if every[n].requires_grad]
        self.statistics, self._batches_seen = _flat_statistics(model, torch.zeros)
        self.own_statistics, _ = _flat_statistics(self.twin, torch.zeros)
        sizes = torch.tensor([2 * m.num_features for m in _norms(model)], dtype=torch.long)
        self._decay = 1 - torch.tensor([m.momentum for m in _norms(model)]).repeat_interleave(sizes)

    def refresh(self) -> None:
        """Convert the convolution weights to bfloat16 again; to be called after each change of the parameters."""
        self._halves.copy_(self._wholes)

    def add_statistics(self, new: Tensor) -> None:
        """Update the running statistics with those of a batch, `own_statistics` after a forward pass from zeros."""
        self.statistics.mul_(self._decay).add_(new)
        self._batches_seen += 1


def has_running_means(model: nn.Module) -> bool:
    """Whether all statistics of batch norms are exponential means, as usual (and not cumulative averages)."""
    return all(m.momentum is not None for m in _norms(model))


def shared(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return zeros (size,) in memory that is shared with processes forked later, and not limited by /dev/shm."""
    return torch.frombuffer(mmap.mmap(-1, max(size, 1) * dtype.itemsize), dtype=dtype)[:size]


def views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return consecutive pieces of a flat tensor, with the shapes and memory formats of the tensors in `like`."""
    pieces = flat.split([t.numel() for t in like])
    return [piece.as_strided(t.shape, t.stride()) for piece, t in zip(pieces, like, strict=True)]


def move_into(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Move the data of tensors to consecutive pieces of a flat tensor."""
    for view, t in zip(views(flat, tensors), tensors, strict=True):
        view.copy_(t.data)
        t.data = view


def _in_order(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """Return the names of all parameters: those kept in bfloat16 too, other trained ones, those not trained."""
    def place(item: tuple[str, nn.Parameter]) -> int:
        name, parameter = item
        return 0 if _is_halved(model, name, dtype) else 1 if parameter.requires_grad else 2

    return [name for name, _ in sorted(model.named_parameters(), key=place)]


def _is_halved(model: nn.Module, name: str, dtype: torch.dtype) -> bool:
    """Whether the twin keeps a parameter in bfloat16: the trained weight of a plain convolution."""
    module, _, key = name.rpartition(".")
    conv = model.get_submodule(module)
    plain = isinstance(conv, nn.Conv2d) and type(conv).forward is nn.Conv2d.forward and not conv._forward_pre_hooks
    return dtype == torch.bfloat16 and plain and key == "weight" and conv.weight.requires_grad


def _flat_statistics(model: nn.Module, new: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
    """Move the running statistics of all batch norms to one tensor, made by `new`, their batch counts to another."""
    norms = _norms(model)
    running = [t for m in norms for t in (m.running_mean, m.running_var)]
    statistics, batches_seen = new(sum(t.numel() for t in running)), torch.zeros(len(norms), dtype=torch.long)
    move_into(statistics, running)
    move_into(batches_seen, [m.num_batches_tracked for m in norms])
    return statistics, batches_seen


def _norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
