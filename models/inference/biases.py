"""Biases that make up for the rounding of a network's weights to bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.yolo import PROBE_SIZE, DetectionModel

GREY = 114 / 255


@torch.no_grad()
def corrected_biases(model: DetectionModel) -> dict[nn.Module, Tensor]:
    """Return a float32 bias (c_out,) for each convolution with a bias, for use with the weights rounded to bfloat16.

    Rounding the weights shifts the mean of an output channel by the sum of their errors times the mean inputs, which
    the bias takes back (bias correction, Nagel et al. 2019). The mean inputs are those that a grey image causes.
    model: fused, float32, in eval mode; it is not changed.
    """
    means: dict[nn.Module, Tensor] = {}
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    handles = [m.register_forward_pre_hook(lambda m, x: means.update({m: x[0].mean((0, 2, 3))})) for m in convs]
    image = torch.full((1, model.yaml["ch"], PROBE_SIZE, PROBE_SIZE), GREY)
    try:
        model(image.to(next(model.parameters()).device, memory_format=torch.channels_last))
    finally:
        for handle in handles:
            handle.remove()
    return {conv: conv.bias + _shift(conv, mean) for conv, mean in means.items()}


def _shift(conv: nn.Conv2d, mean: Tensor) -> Tensor:
    """Return what an output channel loses on average when the weights are rounded, (c_out,); mean: of the inputs."""
    errors = (conv.weight - conv.weight.bfloat16()).sum((2, 3))  # (c_out, c_in / groups)
    errors = errors.reshape(conv.groups, -1, errors.shape[1])
    return (errors * mean.reshape(conv.groups, 1, -1)).sum(2).flatten()
