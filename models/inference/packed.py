"""Convolutions for CPU inference: oneDNN runs each one fused with its activation, on weights reordered once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from models.common import Conv
from utils.system.console import LOGGER

ACTIVATIONS = {nn.SiLU: "swish", nn.ReLU: "relu", nn.Hardswish: "hardswish", nn.Sigmoid: "sigmoid"}
LAYING_OUT = threading.Lock()  # a network may be called by several threads at once


class PackedConv2d(nn.Module):
    """A convolution fused with its activation, equal to `activation(conv(x))`, for feature maps of one dtype.

    Its weights are not parameters. The first call reorders them to the oneDNN layout that is fastest for the size of
    its input; that layout is correct for all sizes.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none", bias: Tensor | None = None) -> None:
        """bias: replaces that of `conv`; it may be float32, with weights of any dtype."""
        super().__init__()
        self.activation, self.dtype = activation, conv.weight.dtype
        self.geometry = [list(v) for v in (conv.padding, conv.stride, conv.dilation)]
        self.groups, self.stride = conv.groups, conv.stride
        reach = conv.dilation[1] * (conv.kernel_size[1] - 1) + 1 - 2 * conv.padding[1]
        self.two_columns = conv.stride[1] + reach if conv.stride[1] > 1 else 0  # input width for two output columns
        self.weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.laid_out = False
        bias = conv.bias if bias is None else bias
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(b, c_in, h, w) to (b, c_out, h', w'), channels-last, in the dtype of the weights."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        narrow = self.dtype == torch.bfloat16 and x.shape[3] < self.two_columns
        if narrow:  # oneDNN 3.13 gives wrong, varying values for a strided convolution with one output column
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
        """The settings that `print(module)` shows."""
        return f"stride={self.stride}, groups={self.groups}, activation={self.activation}"


@torch.no_grad()
def pack(model: nn.Module, biases: Mapping[nn.Module, Tensor] = MappingProxyType({})) -> nn.Module:
    """Replace the convolutions of a fused model with `PackedConv2d`, if this version of torch supports it.

    The model must be on the CPU and have the dtype it will run in. It is modified in place and returned.
    biases: replace those of some convolutions; they may be more precise than the model.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or not _is_available(parameter.dtype):  # a model without parameters is already packed
        return model
    for module in list(model.modules()):
        if isinstance(module, Conv) and isinstance(module.bn, nn.Identity):
            module.conv, module.act = _packed(module.conv, module.act, biases)
            continue
        before = ""  # the name of a convolution directly before the current child, or empty
        for name, child in list(module.named_children()):
            if isinstance(module, nn.Sequential) and before and type(child) in ACTIVATIONS:
                packed, rest = _packed(getattr(module, before), child, biases)
                setattr(module, before, packed)
                setattr(module, name, rest)
            before = name if isinstance(child, nn.Conv2d) else before if isinstance(child, nn.Identity) else ""
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, _packed(child, nn.Identity(), biases)[0])
    return model


def _packed(
    conv: nn.Module, activation: nn.Module, biases: Mapping[nn.Module, Tensor]
) -> tuple[nn.Module, nn.Module]:  # fmt: skip
    """Return the convolution, fused with the activation if oneDNN supports it, and the activation left to apply."""
    plain = type(conv).forward is nn.Conv2d.forward and conv.padding_mode == "zeros"
    if not plain or isinstance(conv.padding, str):
        return conv, activation
    if type(activation) in ACTIVATIONS:
        return PackedConv2d(conv, ACTIVATIONS[type(activation)], biases.get(conv)), nn.Identity()
    return PackedConv2d(conv, bias=biases.get(conv)), activation


@functools.cache
def _is_available(dtype: torch.dtype) -> bool:
    """Whether the oneDNN operations of torch's compiler exist and give the same result as the usual operations."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.random.fork_rng(devices=()):  # leaves the random state of a training unchanged
        conv = nn.Conv2d(8, 8, 3, padding=1).to(dtype)
    x = torch.linspace(-1, 1, 8 * 16).reshape(1, 8, 4, 4).to(dtype)
    try:
        y = PackedConv2d(conv, "swish", conv.bias.float())(x)
        return torch.allclose(y, nn.functional.silu(conv(x)), atol=0.05)
    except (AttributeError, RuntimeError) as e:
        LOGGER.warning(f"torch {torch.__version__} has no fused convolutions ({str(e).splitlines()[0]}): inference is "
                       "slightly slower")  # fmt: skip
        return False
