"""How weights are updated: parameter groups, learning-rate schedule, warm-up, smoothed weights, early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from utils.errors import UserError


def create_optimizer(model: nn.Module, name: str, lr: float, momentum: float, decay: float) -> Optimizer:
    """An optimizer with three groups, in YOLOv5's order: biases, weights (these alone decay), batch norm weights."""
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
    # one kernel for all tensors: a light model has hundreds of small ones
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    if name == "SGD":
        return SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    return {"Adam": Adam, "AdamW": AdamW}[name](groups, lr=lr, betas=(momentum, 0.999), fused=fused)


def lr_factor(epochs: int, lrf: float, cosine: bool) -> Callable[[float], float]:
    """The schedule: epoch -> factor on the first learning rate, from 1 down to lrf, straight or along a cosine."""
    if cosine:
        return lambda epoch: (1 - math.cos(epoch * math.pi / epochs)) / 2 * (lrf - 1) + 1
    return lambda epoch: (1 - epoch / epochs) * (1 - lrf) + lrf


def warmup_steps(warmup_epochs: float, batches: int, epochs: int) -> int:
    """Batches of warm-up: at least 100 as in YOLOv5, but at most a quarter of a run too short for that."""
    if not warmup_epochs:
        return 0
    return max(round(warmup_epochs * batches), min(100, epochs * batches // 4))


def set_rates(optimizer: Optimizer, part: float, lr: float, hyp: Mapping[str, float]) -> None:
    """Set learning rate and momentum for a batch.

    part: how much of the warm-up is over, 0 to 1. lr: what the schedule says for this epoch; during warm-up rates rise
    to it from 0 (biases: fall from `warmup_bias_lr`), and momentum rises from `warmup_momentum`.
    """
    for group in optimizer.param_groups:
        start = hyp["warmup_bias_lr"] if group["kind"] == "bias" else 0.0
        group["lr"] = start + part * (lr - start)
        momentum = hyp["warmup_momentum"] + part * (hyp["momentum"] - hyp["warmup_momentum"])
        if "momentum" in group:
            group["momentum"] = momentum


class ModelEMA:
    """An exponential moving average of a model's weights and buffers; `ema` is the smoothed model.

    The decay rises to `decay` over about `tau` updates, so that the first weights are soon forgotten; `updates` are
    those an earlier run has made.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0) -> None:
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = updates
        self.decay, self.tau = decay, tau

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        self.updates += 1
        share = 1 - self.decay * (1 - math.exp(-self.updates / self.tau))
        old, new = _tensors(self.ema), _tensors(model)
        pairs = [(o, n) for o, n in zip(old, new, strict=True) if o.is_floating_point()]
        torch._foreach_lerp_([o for o, _ in pairs], [n for _, n in pairs], share)
        for o, n in zip(old, new, strict=True):
            if not o.is_floating_point():
                o.copy_(n)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


class EarlyStopping:
    """Says when `patience` epochs have passed without a better fitness; patience 0 never stops."""

    def __init__(self, patience: int = 30, best_fitness: float = 0.0, best_epoch: int = 0) -> None:
        self.patience, self.best_fitness, self.best_epoch = patience, best_fitness, best_epoch

    def __call__(self, epoch: int, fitness: float) -> bool:
        if fitness >= self.best_fitness:
            self.best_fitness, self.best_epoch = fitness, epoch
        return bool(self.patience) and epoch - self.best_epoch >= self.patience

    def state(self) -> dict[str, Any]:
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}


def strip_optimizer(f: str | Path = "best.pt", s: str | Path = "") -> None:
    """Refuse: a checkpoint without its optimizer is another file here, never the same one made smaller.

    Raises UserError that says which file to take.
    """
    raise UserError(f"{f}: is left as it is; a run's best.pt never holds an optimizer, and "
                    "my_tools/convert_weights.py writes a last.pt as weights alone")  # fmt: skip
