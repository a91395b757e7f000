"""Least-squares fits of convolutions to given outputs, and batch norm statistics for the fitted layers.

Regressions are solved on sums over all pixels, in float64. The targets of a block are always its values before the
activation, which are a linear function of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.common import Conv, GSConv, SlimNeck
from models.slimming.surgery import places

RIDGE = 1e-4  # times the inputs' mean variance: keeps regressions on nearly equal channels well-conditioned
ITERATIONS = 30  # of L-BFGS, for a SlimNeck's grouped kernel

Pairs = Iterable[tuple[Tensor, Tensor]]


@dataclass
class Moments:
    """Means and centred second moments of the inputs x and targets z of a convolution, in float64, for each group.

    x (g, d), z (g, o), xx (g, d, d), xz (g, d, o), zz (g, o), with g groups, d inputs under the kernel (channels per
    group times kernel area) and o output channels per group. zz has the variances only.
    """

    x: Tensor
    z: Tensor
    xx: Tensor
    xz: Tensor
    zz: Tensor


@torch.no_grad()
def moments_of(conv: nn.Conv2d, pairs: Pairs, groups: int) -> Moments:
    """Compute the moments of a convolution's inputs and targets over all pixels, as if it had `groups` groups."""
    count, total = 0, [0.0] * 5
    for xs, zs in pairs:
        for x, z in zip(xs, zs, strict=True):  # one image at a time, as unfolding makes k * k copies of a map
            if conv.kernel_size == (1, 1) and conv.stride == (1, 1):
                p = x.reshape(groups, -1, x[0].numel())
            else:
                p = nn.functional.unfold(x[None].contiguous(), conv.kernel_size, 1, conv.padding, conv.stride)[0]
                p = p.reshape(groups, -1, p.shape[-1])
            t = z.reshape(groups, -1, p.shape[-1])
            count += p.shape[-1]
            parts = p.sum(-1), t.sum(-1), p @ p.mT, p @ t.mT, t.square().sum(-1)
            total = [a + b.double() for a, b in zip(total, parts, strict=True)]
    x, z, xx, xz, zz = (t / count for t in total)
    return Moments(x, z, xx - x[:, :, None] * x[:, None], xz - x[:, :, None] * z[:, None], zz - z * z)


def drawn_to(m: Moments, kernel: Tensor) -> Moments:
    """Return the moments with a ridge penalty towards a kernel (g, d, o).

    This adds the moments of weak white noise with the kernel's outputs as targets. A regression on the result stays
    near the kernel in directions that the inputs do not determine.
    """
    weight = RIDGE * m.xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)[:, None, None]
    noise = weight * torch.eye(m.xx.shape[-1], dtype=m.xx.dtype, device=m.xx.device)
    return Moments(m.x, m.z, m.xx + noise, m.xz + weight * kernel, m.zz + weight[:, 0] * kernel.square().sum(1))


@torch.no_grad()
def folded_kernel(block: Conv) -> Tensor:
    """Return the kernel of a Conv times its batch norm's scale, as one matrix per group (g, d, o), in float64."""
    scale = block.bn.weight / torch.sqrt(block.bn.running_var + block.bn.eps)
    kernel = (block.conv.weight * scale[:, None, None, None]).double()
    return kernel.reshape(block.conv.groups, -1, kernel[0].numel()).mT


@torch.no_grad()
def regress(block: Conv, pairs: Pairs) -> None:
    """Set the kernel and batch norm of a Conv to the least-squares map from inputs to targets before its activation.

    In directions that the inputs do not determine, the kernel stays near its present value.
    """
    conv = block.conv
    m = drawn_to(moments_of(conv, pairs, conv.groups), folded_kernel(block))
    kernel = torch.linalg.solve(m.xx, m.xz)  # g, d, o
    conv.weight.copy_(kernel.mT.reshape(conv.weight.shape))
    set_offset(block.bn, (m.z - (kernel * m.x[:, :, None]).sum(1)).flatten())


def set_offset(bn: nn.BatchNorm2d, offset: Tensor) -> None:
    """Make a batch norm only add `offset` in eval mode."""
    bn.running_mean.zero_()
    bn.running_var.fill_(1)
    bn.weight.fill_(math.sqrt(1 + bn.eps))
    bn.bias.copy_(offset)


def regress_slim(block: SlimNeck, old: Conv, pairs: Pairs) -> None:
    """Fit both kernels of a SlimNeck that replaces the Conv `old` to targets before its activation.

    The fit starts from the present kernels. For any grouped kernel, the best 1x1 kernel has a closed form, so the error
    is a function of the grouped kernel alone (variable projection, Golub and Pereyra, 1973); L-BFGS minimizes it.
    """
    conv = block.grouped.conv
    m = drawn_to(moments_of(old.conv, pairs, 1), folded_kernel(old))
    groups, d = conv.groups, conv.weight[0].numel()
    xx, xz = m.xx.reshape(groups, d, -1), m.xz.reshape(groups, d, -1)

    def between(kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Return the second moments (c, c) of the grouped kernel's outputs, and with the targets (c, o)."""
        half = (kernel @ xx).reshape(-1, groups, d)  # second moments of its outputs with the inputs
        own = half.transpose(0, 1) @ kernel.mT  # g, c, size
        return own.transpose(0, 1).reshape(len(half), -1), (kernel @ xz).flatten(0, 1)

    kernel = conv.weight.detach().double().reshape(groups, -1, d).requires_grad_(True)
    optimizer = torch.optim.LBFGS([kernel], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        own, shared = between(kernel)
        value = 1 - (shared * torch.linalg.solve(own, shared)).sum() / m.zz.sum().clamp(min=1e-12)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    with torch.no_grad():
        kernel = kernel / kernel.norm(dim=-1, keepdim=True)
        pointwise = torch.linalg.solve(*between(kernel))  # c, o
        conv.weight.copy_(kernel.reshape(conv.weight.shape))
        set_offset(block.grouped.bn, torch.zeros_like(block.grouped.bn.bias))
        block.pointwise.conv.weight.copy_(pointwise.T[:, :, None, None])
        mean = (kernel @ m.x.reshape(groups, d, 1)).flatten()
        set_offset(block.pointwise.bn, m.z[0] - mean @ pointwise)


def regress_gsconv(block: GSConv, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Fit the dense half of a GSConv, then the depthwise half on the outputs of the dense half."""
    dense, cheap = places(pairs[0][1].shape[1])
    regress(block.cv1, ((x, z[:, dense]) for x, z in pairs))
    regress(block.cv2, ((block.cv1(x), z[:, cheap]) for x, z in pairs))


@torch.no_grad()
def settle(blocks: Sequence[nn.Module], run: Callable[[], None]) -> None:
    """Set the batch norm statistics of blocks to those of the inputs in `run`; their outputs stay the same."""
    sums: dict[nn.BatchNorm2d, list[Tensor | int]] = {}

    def note(bn: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        x = args[0]
        parts = x[:, 0].numel(), x.sum((0, 2, 3)).double(), x.square().sum((0, 2, 3)).double()
        sums[bn] = [a + b for a, b in zip(sums.get(bn, (0, 0, 0)), parts, strict=True)]

    norms = [m for block in blocks for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(note) for m in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for bn, (count, first, second) in sums.items():
        mean = first / count
        _restate(bn, mean.float(), (second / count - mean * mean).clamp(min=0).float())


def _restate(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    """Set the statistics of a batch norm, and adapt its weight and bias so that its output stays the same."""
    slope = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    bn.bias.add_(slope * (mean - bn.running_mean))
    bn.weight.copy_(slope * torch.sqrt(var + bn.eps))
    bn.running_mean.copy_(mean)
    bn.running_var.copy_(var)


@torch.no_grad()
def unexplained(pairs: Pairs) -> float:
    """Return 1 - R^2 of outputs against targets over all channels: 0 is exact, 1 is no better than the mean."""
    error, count, total, squares = 0.0, 0, 0.0, 0.0
    for y, t in pairs:
        error += float((y - t).double().square().sum())
        count += t[:, 0].numel()
        total = total + t.sum((0, 2, 3)).double()
        squares = squares + t.square().sum((0, 2, 3)).double()
    return error / max(float((squares - total * total / count).sum()), 1e-12)
