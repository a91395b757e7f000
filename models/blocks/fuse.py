"""Folding of batch norms into the convolutions before them, for inference."""

from __future__ import annotations

import torch
from torch import nn


def fold_batch_norm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that computes `bn(conv(x))` in eval mode."""
    fused = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        device="meta",  # skips the initialization, which would draw random numbers
    )  # fmt: skip
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    bias = conv.bias if conv.bias is not None else torch.zeros_like(bn.running_mean)
    fused.weight = nn.Parameter(conv.weight * scale.reshape(-1, 1, 1, 1), requires_grad=False)
    fused.bias = nn.Parameter((bias - bn.running_mean) * scale + bn.bias, requires_grad=False)
    return fused


@torch.no_grad()
def fuse_batch_norms(model: nn.Module) -> nn.Module:
    """Fold, in place, every batch norm whose preceding sibling module is a convolution. Returns `model`."""
    for module in model.modules():
        previous = ""
        for name, child in list(module.named_children()):
            conv = getattr(module, previous) if previous else None
            if isinstance(child, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
                setattr(module, previous, fold_batch_norm(conv, child))
                setattr(module, name, nn.Identity())
            previous = name
    return model
