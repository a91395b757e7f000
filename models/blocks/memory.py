"""Replacements for torch operations whose backward pass is slow on a CPU. Their results are the same as torch's.

`python my_tools/benchmark.py` measures the time they save.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS_LAST = torch.channels_last


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Merge two channels-last maps (b, n, h, w) into one (b, 2n, h, w) with alternating channels a0 b0 a1 b1 ..."""
    return (_Interleave.apply if _has_gradient(a, b) else _interleaved)(a, b)


def deinterleave(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate two channels-last maps along the channels, then put the even channels first and the odd ones last."""
    return (_Deinterleave.apply if _has_gradient(a, b) else _deinterleaved)(a, b)


def dense_gradient(x: Tensor) -> Tensor:
    """Return x, registered with a hook that makes its gradient contiguous in memory (on CPUs only).

    The gradient of an input of a concatenation is a slice with gaps. With such a gradient, torch's CPU kernels take six
    to twelve times as long for the backward passes of SiLU and batch norm, which come next.
    """
    if x.requires_grad and x.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_compiling():
        x.register_hook(_dense_like_channels_last if _is_channels_last(x) else Tensor.contiguous)
    return x


def is_channels_last(*maps: Tensor) -> bool:
    """Whether all maps are in channels-last memory format, or slices along the channels of maps that are."""
    return all(x.ndim == 4 and x.stride(1) == 1 and not x.is_contiguous() for x in maps)


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=CHANNELS_LAST)


def _dense_like_channels_last(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=CHANNELS_LAST)


def _has_gradient(*maps: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in maps) and not torch.jit.is_tracing()


def _interleaved(a: Tensor, b: Tensor) -> Tensor:
    pair = torch.stack((a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)), 4)
    return pair.flatten(3).permute(0, 3, 1, 2)


def _deinterleaved(a: Tensor, b: Tensor) -> Tensor:
    odd = a.shape[1] % 2  # if a has an odd width, the even channels of the concatenation are the odd channels of b
    return _dense_like_channels_last(torch.cat((a[:, ::2], b[:, odd::2], a[:, 1::2], b[:, 1 - odd :: 2]), 1))


class _Interleave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return _interleaved(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _dense_like_channels_last(grad[:, ::2]), _dense_like_channels_last(grad[:, 1::2])


class _Deinterleave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.widths = a.shape[1], b.shape[1]
        return _deinterleaved(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(_dense_like_channels_last, _interleaved(*grad.chunk(2, 1)).split(ctx.widths, 1)))


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
    """Return the gradient of the input x (b, c, h, w) of a depthwise convolution, computed in float32."""
    stride, padding, dilation, groups = geometry
    # x in float32 would only provide shape and memory format; with these, the result is channels-last like x
    like_x = torch.empty_like(x, dtype=torch.float32)
    return torch.ops.aten.convolution_backward(
        grad.float(), like_x, weight.float(), None, stride, padding, dilation, False, [0, 0], groups,
        [True, False, False],
    )[0].to(x.dtype)


class _DepthwiseConvolution(torch.autograd.Function):
    """Depthwise convolution in bfloat16 whose input gradient is computed in float32."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        needs_x, *needs = ctx.needs_input_grad[:3]
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, weight.shape[:1], stride, padding, dilation, False, [0, 0], groups, [False, *needs]
        )
        of_x = _input_gradient(grad, x, weight, ctx.geometry) if needs_x else None
        return (of_x, of_weight, of_bias, *[None] * len(ctx.geometry))


class StridedDepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with a faster backward pass under bfloat16 autocast on a CPU; same parameters, same output."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = self.stride, self.padding, self.dilation, self.groups
        if torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and x.device.type == "cpu":
            return _DepthwiseConvolution.apply(x, weight, bias, *geometry)
        return F.conv2d(x, weight, bias, *geometry)


def replace_strided_depthwise(model: nn.Module) -> nn.Module:
    """Replace a model's depthwise convolutions with a stride above 1 by `StridedDepthwiseConv2d`. Returns the model.

    For training in bfloat16 on a CPU, where oneDNN has no fast kernel for the input gradient of these convolutions: it
    takes 20 to 40 times as long as in float32, which was a third of a training step of ShuffleNetV2.
    """
    for module in list(model.modules()):
        for name, conv in list(module.named_children()):
            strided = type(conv) is nn.Conv2d and conv.groups == conv.in_channels > 1 and max(conv.stride) > 1
            if strided and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
                new = StridedDepthwiseConv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                                             conv.padding, conv.dilation, conv.groups, device="meta")  # fmt: skip
                new.weight, new.bias = conv.weight, conv.bias
                setattr(module, name, new.train(conv.training))
    return model
