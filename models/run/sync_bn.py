"""Batch norm synchronised over processes: its statistics are those of the batches of all processes together.

On GPUs torch's own `SyncBatchNorm` is used; it does not support CPUs, so this module contains a small one for CPUs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class _Total(torch.autograd.Function):
    """Sum over processes. Every input contributes to the output of every process, so the gradients are summed too."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all processes in training; same state-dict keys, same result in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w). All processes must call it in training."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        values = x.float()
        size = values.new_full((1,), values.numel() / values.shape[1])
        sums = _Total.apply(torch.cat((values.sum((0, 2, 3)), size)))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        # centre the values first: mean(x^2) - mean(x)^2 would lose a small variance to rounding
        values = values - mean[:, None, None]
        variance = _Total.apply(values.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        y = values * scale[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace, in place, every batch norm of a model by one synchronised over all processes. Returns the model."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm  # keeps tensors and settings, changes only the forward pass
    return model
