"""Convolutions for inference on a CPU: each with its activation in one call of oneDNN, weights laid out for it once."""

from __future__ import annotations

import functools
import threading

import torch
from torch import Tensor, nn

from models.common import Conv
from utils.system.console import LOGGER

ACTIVATIONS = {nn.SiLU: "swish", nn.ReLU: "relu", nn.Hardswish: "hardswish", nn.Sigmoid: "sigmoid"}
LAYING_OUT = threading.Lock()  # a network may be called by several threads at once


class PackedConv2d(nn.Module):
    """A convolution and what follows it, equal to `activation(conv(x))`, for maps of one dtype.

    Its weights are no parameters. The first map that comes decides in which of oneDNN's layouts they are from then on:
    the one that is fastest for its size, and right for all.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none") -> None:
        super().__init__()
        self.activation, self.dtype = activation, conv.weight.dtype
        self.geometry = [list(v) for v in (conv.padding, conv.stride, conv.dilation)]
        self.groups, self.stride = conv.groups, conv.stride
        reach = conv.dilation[1] * (conv.kernel_size[1] - 1) + 1 - 2 * conv.padding[1]
        self.two_columns = conv.stride[1] + reach if conv.stride[1] > 1 else 0  # width of an input that makes two
        self.weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.laid_out = False
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        narrow = self.dtype == torch.bfloat16 and x.shape[3] < self.two_columns
        if narrow:  # oneDNN gets a strided convolution to a single column wrong (3.13: other numbers each time)
            x = nn.functional.pad(x, (0, self.two_columns - x.shape[3]))
        if not self.laid_out:
            self._lay_out(list(x.shape))
        y = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.geometry, self.groups, self.activation, [], ""
        )
        return y[..., :1] if narrow else y

    def _lay_out(self, shape: list[int]) -> None:
        with LAYING_OUT:
            if not self.laid_out:
                self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                    self.weight, *self.geometry, self.groups, shape
                )
                self.laid_out = True

    def extra_repr(self) -> str:
        return f"stride={self.stride}, groups={self.groups}, activation={self.activation}"


@torch.no_grad()
def pack(model: nn.Module) -> nn.Module:
    """Put `PackedConv2d` in the place of a fused model's convolutions, where this torch has what it needs.

    The model must be on the CPU and of the dtype it will run in. It is changed in place, and returned.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or not _is_available(parameter.dtype):  # without parameters it is packed already
        return model
    for module in list(model.modules()):
        if isinstance(module, Conv) and isinstance(module.bn, nn.Identity):
            module.conv, module.act = _packed(module.conv, module.act)
            continue
        before = ""  # the name of a convolution after which nothing has been done yet
        for name, child in list(module.named_children()):
            if isinstance(module, nn.Sequential) and before and type(child) in ACTIVATIONS:
                packed, rest = _packed(getattr(module, before), child)
                setattr(module, before, packed)
                setattr(module, name, rest)
            before = name if isinstance(child, nn.Conv2d) else before if isinstance(child, nn.Identity) else ""
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, _packed(child, nn.Identity())[0])
    return model


def _packed(conv: nn.Module, activation: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A convolution with as much of an activation in it as oneDNN knows; and what is left to be done."""
    plain = type(conv).forward is nn.Conv2d.forward and conv.padding_mode == "zeros"
    if not plain or isinstance(conv.padding, str):
        return conv, activation
    if type(activation) in ACTIVATIONS:
        return PackedConv2d(conv, ACTIVATIONS[type(activation)]), nn.Identity()
    return PackedConv2d(conv), activation


@functools.cache
def _is_available(dtype: torch.dtype) -> bool:
    """Whether oneDNN, as torch offers it to its own compiler, gives what the usual operations give."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.random.fork_rng(devices=()):  # a training's random numbers go on as if nothing had been
        conv = nn.Conv2d(8, 8, 3, padding=1).to(dtype)
    x = torch.linspace(-1, 1, 8 * 16).reshape(1, 8, 4, 4).to(dtype)
    try:
        return torch.allclose(PackedConv2d(conv, "swish")(x), nn.functional.silu(conv(x)), atol=0.05)
    except (AttributeError, RuntimeError) as e:
        LOGGER.warning(f"torch {torch.__version__} has no fused convolutions ({str(e).splitlines()[0]}): inference is "
                       "somewhat slower")  # fmt: skip
        return False
