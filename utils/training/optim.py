"""Optimization: parameter groups, learning rate schedule, warm-up, EMA of the weights, early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from utils.errors import UserError


def create_optimizer(model: nn.Module, name: str, lr: float, momentum: float, decay: float) -> Optimizer:
    """Return an optimizer with YOLOv5's three groups: biases, weights (only these with decay), batch norm weights."""
    norms = tuple(v for k, v in nn.__dict__.items() if isinstance(v, type) and "Norm" in k)
    biases, weights, scales = [], [], []
    for module in model.modules():
        for key, p in module.named_parameters(recurse=False):
            if not p.requires_grad:
                continue
            (biases if key == "bias" else scales if isinstance(module, norms) else weights).append(p)
    groups = [
        {"params": biases, "weight_decay": 0.0, "kind": "bias"},
        {"params": weights, "weight_decay": decay, "kind": "weight"},
        {"params": scales, "weight_decay": 0.0, "kind": "norm"},
    ]
    groups = [g for g in groups if g["params"]]
    # one kernel for all tensors, as a light model has hundreds of small ones
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    if name in ("SGD", "auto"):
        return SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    return {"Adam": Adam, "AdamW": AdamW}[name](groups, lr=lr, betas=(momentum, 0.999), fused=fused)


def lr_factor(epochs: int, lrf: float, cosine: bool) -> Callable[[float], float]:
    """Return a function from epoch to learning rate factor, which falls from 1 to lrf, linearly or as a cosine."""
    if cosine:
        return lambda epoch: (1 - math.cos(epoch * math.pi / epochs)) / 2 * (lrf - 1) + 1
    return lambda epoch: (1 - epoch / epochs) * (1 - lrf) + lrf


def warmup_steps(warmup_epochs: float, batches: int, epochs: int) -> int:
    """Return the number of warm-up batches: at least 100 as in YOLOv5, or a quarter of the run if that is less."""
    if not warmup_epochs:
        return 0
    return max(round(warmup_epochs * batches), min(100, epochs * batches // 4))


def set_rates(optimizer: Optimizer, part: float, lr: float, hyp: Mapping[str, float]) -> None:
    """Set the learning rates and the momentum for a batch.

    part: completed fraction of the warm-up, 0 to 1. lr: the scheduled rate of this epoch; during warm-up, rates rise to
    it from 0 (those of biases fall to it from `warmup_bias_lr`), and momentum rises from `warmup_momentum`.
    """
    for group in optimizer.param_groups:
        start = hyp["warmup_bias_lr"] if group["kind"] == "bias" else 0.0
        group["lr"] = start + part * (lr - start)
        momentum = hyp["warmup_momentum"] + part * (hyp["momentum"] - hyp["warmup_momentum"])
        if "momentum" in group:
            group["momentum"] = momentum


class ModelEMA:
    """Exponential moving average of a model's weights and buffers; `ema` is the averaged model.

    The decay rises towards `decay` over about `tau` updates, so that the initial weights soon lose their influence.
    updates: number of updates already made, when training is resumed.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0) -> None:
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = updates
        self.decay, self.tau = decay, tau
        self._model: nn.Module | None = None  # of the last update, and the pairs of its tensors and the averaged ones
        self._averaged = self._copied = ([], [])

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the current weights; integer buffers are copied."""
        self.updates += 1
        share = 1 - self.decay * (1 - math.exp(-self.updates / self.tau))
        if self._model is not model:  # collecting hundreds of tensors takes as long as averaging them
            pairs = list(zip(_tensors(self.ema), _tensors(model), strict=True))
            self._model = model
            self._averaged = _unzipped(p for p in pairs if p[0].is_floating_point())
            self._copied = _unzipped(p for p in pairs if not p[0].is_floating_point())
        torch._foreach_lerp_(*self._averaged, share)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _unzipped(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    pairs = list(pairs)
    return [old for old, _ in pairs], [new for _, new in pairs]


class EarlyStopping:
    """Returns True once `patience` epochs have passed without a better fitness; with patience 0, never."""

    def __init__(self, patience: int = 30, best_fitness: float = 0.0, best_epoch: int = 0) -> None:
        self.patience, self.best_fitness, self.best_epoch = patience, best_fitness, best_epoch

    def __call__(self, epoch: int, fitness: float) -> bool:
        if fitness >= self.best_fitness:
            self.best_fitness, self.best_epoch = fitness, epoch
        return bool(self.patience) and epoch - self.best_epoch >= self.patience

    def state(self) -> dict[str, Any]:
        """Return the best fitness and its epoch, for a checkpoint."""
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}


def strip_optimizer(f: str | Path = "best.pt", s: str | Path = "") -> None:
    """Always raise UserError, with the file to use instead: checkpoints are never overwritten by a stripped version."""
    raise UserError(f"{f}: is left as it is; best.pt never contains an optimizer, and "
                    "my_tools/convert_weights.py saves the weights of a last.pt without it")  # fmt: skip
