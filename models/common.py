"""Blocks that a model yaml can name. Names and state-dict keys are those of YOLOv5, torchvision and the papers.

Shapes are (b, c, h, w). All blocks keep the batch dimension first and support channels-last tensors and bfloat16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.blocks.memory import deinterleave, dense_gradient, interleave, is_channels_last
from models.registry import register

Activation = bool | nn.Module
Pair = int | tuple[int, int]  # one number, or height and width


def autopad(k: Pair, p: Pair | None = None, d: int = 1) -> Pair:
    """Return the padding with which a k x k kernel of dilation d keeps the size of a feature map (`p` if given).

    For a kernel (height, width), the padding is a pair too.
    """
    if p is not None:
        return p
    return tuple(autopad(side, None, d) for side in k) if isinstance(k, (tuple, list)) else (d * (k - 1) + 1) // 2


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of g = `groups` groups of n channels: output channel j*g + i is input channel i*n + j.

    x and the output: (b, g*n, h, w). From ShuffleNet (Zhang et al., 2018). Only reshape and transpose are used, so that
    the operation can be traced and exported.
    """
    b, c, h, w = x.shape
    if is_channels_last(x):
        # the same operation on (b, h, w, c): it copies once, and the result stays channels-last
        y = x.permute(0, 2, 3, 1).reshape(b, h, w, groups, c // groups).transpose(3, 4)
        return y.reshape(b, h, w, c).permute(0, 3, 1, 2)
    return x.reshape(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def shuffled_cat(a: Tensor, b: Tensor, in_turns: bool) -> Tensor:
    """Concatenate two maps along the channels and shuffle the result.

    in_turns: alternate the channels of a and b, which must have equally many (2 groups). Otherwise the even channels of
    the concatenation come first, then the odd ones (as many groups as half of all channels). Equal to
    `channel_shuffle(torch.cat((a, b), 1), groups)`.
    """
    if is_channels_last(a, b):
        return interleave(a, b) if in_turns else deinterleave(a, b)
    y = torch.cat((a, b), 1)
    return channel_shuffle(y, 2 if in_turns else y.shape[1] // 2)


@register()
class Conv(nn.Module):
    """Convolution without bias, batch norm, activation (SiLU unless the yaml sets another one with `activation:`)."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: Pair = 1,
        s: Pair = 1,
        p: Pair | None = None,
        g: int = 1,
        d: int = 1,
        act: Activation = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, autopad(k, p, d), groups=g, dilation=d, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act is True else act if isinstance(act, nn.Module) else nn.Identity()
        self.default_act = act is True

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h / s, w / s)."""
        return dense_gradient(self.act(self.bn(self.conv(x))))


@register()
class DWConv(Conv):
    """Depthwise convolution, with the greatest common divisor of c1 and c2 as the number of groups."""

    def __init__(self, c1: int, c2: int, k: Pair = 1, s: Pair = 1, d: int = 1, act: Activation = True) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


@register()
class Bottleneck(nn.Module):
    """1x1 then 3x3 convolution; the input is added if `shortcut` is set and c1 equals c2 (ResNet, 2016)."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, c2, 3, 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h, w)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@register(repeats=True)
class C3(nn.Module):
    """Cross-stage partial block with three convolutions and n bottlenecks (CSPNet, Wang et al., 2020; YOLOv5)."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h, w)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@register()
class SPPF(nn.Module):
    """Spatial pyramid pooling (He et al., 2014): three max-pools in sequence, equal to pools of k, 2k-1 and 3k-2."""

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * 4, c2, 1, 1)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h, w)."""
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


@register(channels="sum", example=(1,))
class Concat(nn.Module):
    """Concatenate a list of maps along `dimension`."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        """List of (b, c_i, h, w) -> (b, sum of c_i, h, w) for dimension 1."""
        return torch.cat([dense_gradient(m) for m in x], self.d)


# --- ShuffleNetV2 backbone (Ma et al., 2018) ------------------------------------------------------------------------


@register()
class CRM(nn.Module):
    """ShuffleNetV2's stem: k x k convolution of stride s, batch norm, ReLU, then a 3x3 max-pool of stride 2."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(c1, c2, k, s, autopad(k), bias=False), nn.BatchNorm2d(c2), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h / (2 * s), w / (2 * s))."""
        return self.maxpool(self.conv1(x))


@register()
class InvertedResidual(nn.Module):
    """ShuffleNetV2 unit, with torchvision's layout.

    stride 1: half of the channels pass through unchanged, the other half goes through 1x1, depthwise 3x3 and 1x1
    convolutions; inp and oup must be equal. stride 2 or 3: both branches process all channels. The two halves are then
    concatenated and shuffled. Raises ValueError for another stride, an odd oup, or inp != oup at stride 1.
    """

    def __init__(self, inp: int, oup: int, stride: int = 1) -> None:
        super().__init__()
        if stride not in (1, 2, 3):
            raise ValueError(f"InvertedResidual: the stride is {stride}, it must be 1, 2 or 3")
        if oup % 2:
            raise ValueError(f"InvertedResidual: the output width {oup} is odd, it must be even")
        if stride == 1 and inp != oup:
            raise ValueError(f"InvertedResidual: at stride 1 the output width {oup} must be the input width {inp}")
        self.stride = stride
        half = oup // 2
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(inplace=True),
            )
        else:
            self.branch1 = nn.Sequential()
        self.branch2 = nn.Sequential(
            nn.Conv2d(inp if stride > 1 else half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inp, h, w) -> (b, oup, h / stride, w / stride)."""
        x1, x2 = x.chunk(2, dim=1) if self.stride == 1 else (x, x)
        return shuffled_cat(self.branch1(x1), self.branch2(x2), in_turns=True)


@register()
class StemBlock(nn.Module):
    """PeleeNet's stem (Wang et al., 2018), stride 4: a 3x3/2 convolution, then a convolution parallel to a max-pool."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: Pair = 3,
        s: Pair = 2,
        p: Pair | None = None,
        g: int = 1,
        d: int = 1,
        act: Activation = True,
    ) -> None:
        super().__init__()
        self.stem_1 = Conv(c1, c2, k, s, p, g, d, act=act)
        self.stem_2a = Conv(c2, c2 // 2, 1, 1, act=act)
        self.stem_2b = Conv(c2 // 2, c2, 3, 2, act=act)
        self.stem_2p = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
        self.stem_3 = Conv(c2 * 2, c2, 1, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h / (2 * s), w / (2 * s))."""
        x = self.stem_1(x)
        return self.stem_3(torch.cat((self.stem_2b(self.stem_2a(x)), self.stem_2p(x)), 1))


# --- slim neck (Li et al., "Slim-neck by GSConv", 2022) --------------------------------------------------------------


@register()
class GSConv(nn.Module):
    """Convolution to c2 / 2 channels, 5x5 depthwise convolution of its output; both are concatenated and shuffled.

    The shuffle is that of the published weights: the even channels of the concatenation first, then the odd ones.
    Raises ValueError if the output width c2 is odd.
    """

    def __init__(self, c1: int, c2: int, k: Pair = 1, s: Pair = 1, g: int = 1, act: Activation = True) -> None:
        super().__init__()
        if c2 % 2:
            raise ValueError(f"GSConv: the output width {c2} is odd, it must be even")
        half = c2 // 2
        self.cv1 = Conv(c1, half, k, s, g=g, act=act)
        self.cv2 = Conv(half, half, 5, 1, g=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h / s, w / s)."""
        x1 = self.cv1(x)
        return shuffled_cat(x1, self.cv2(x1), in_turns=False)


@register()
class GSConvns(GSConv):
    """GSConv with a normative shuffle: a 1x1 convolution, then ReLU, instead of the fixed shuffle (Li et al., 2022).

    The weights of the 1x1 convolution are initialized to the fixed shuffle and then trained.
    """

    def __init__(self, c1: int, c2: int, k: Pair = 1, s: Pair = 1, g: int = 1, act: Activation = True) -> None:
        super().__init__(c1, c2, k, s, g, act)
        self.shuf = nn.Conv2d(c2, c2, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        order = channel_shuffle(torch.eye(c2).reshape(1, c2, c2, 1), c2 // 2)
        self.shuf.weight = nn.Parameter(order.reshape(c2, c2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h / s, w / s)."""
        x1 = self.cv1(x)
        return self.act(self.shuf(torch.cat((x1, self.cv2(x1)), 1)))


@register()
class GSBottleneck(nn.Module):
    """Two GSConv (1x1, then k x k without activation), added to a 1x1 convolution of the input."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.conv_lighting = nn.Sequential(GSConv(c1, hidden, 1, 1), GSConv(hidden, c2, k, s, act=False))
        self.shortcut = Conv(c1, c2, 1, s, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h / s, w / s)."""
        return self.conv_lighting(x) + self.shortcut(x)


@register()
class GSBottleneckC(GSBottleneck):
    """Cheaper GSBottleneck: the shortcut is a depthwise k x k convolution instead of a 1x1 convolution."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, 3, s, e)
        self.shortcut = DWConv(c1, c2, k, s, act=False)


@register(repeats=True)
class VoVGSCSP(nn.Module):
    """One-shot aggregation with n GSBottleneck: cv3(cat(cv2(x), bottlenecks(cv1(x)))).

    `shortcut` and `g` are ignored; they are accepted because published yaml files pass them.
    """

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.gsb = nn.Sequential(*(self.bottleneck(hidden) for _ in range(n)))
        self.cv3 = Conv(2 * hidden, c2, 1)

    @staticmethod
    def bottleneck(width: int) -> nn.Module:
        """Return one of the n bottlenecks."""
        return GSBottleneck(width, width, e=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c1, h, w) -> (b, c2, h, w)."""
        return self.cv3(torch.cat((self.cv2(x), self.gsb(self.cv1(x))), 1))


@register(repeats=True)
class VoVGSCSPC(VoVGSCSP):
    """Cheaper VoVGSCSP: its bottlenecks are GSBottleneckC with half the inner width and a 1x1 depthwise shortcut.

    n and e are as in VoVGSCSP. The published block always had one bottleneck and no index in its state-dict keys.
    """

    @staticmethod
    def bottleneck(width: int) -> nn.Module:
        """Return one of the n bottlenecks."""
        return GSBottleneckC(width, width, k=1)


@register()
class SlimNeck(nn.Module):
    """Cheaper convolution: grouped k x k, then 1x1 across the groups; batch norm after each, one activation at the end.

    Keeps the size of the map at stride 1 (the published block had no padding and shrank it). There is no activation
    between the two convolutions, so that they can be initialized from a trained one (`models/slimming/surgery.py`).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.grouped = Conv(in_channels, in_channels, kernel_size, stride, g=groups, act=False)
        self.pointwise = Conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) -> (b, out_channels, h / stride, w / stride)."""
        return self.pointwise(self.grouped(x))


@register(repeats=True, example=(32, True, 4))
class C3Slim(C3):
    """C3 with a SlimNeck of `groups` groups instead of the 3x3 convolution in each bottleneck.

    Raises ValueError if the hidden width is not a multiple of `groups`.
    """

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, groups: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, 1, e)
        hidden = int(c2 * e)
        for block in self.m:
            block.cv2 = SlimNeck(hidden, hidden, 3, 1, groups)


def __getattr__(name: str) -> type[nn.Module]:
    """Resolve YOLOv5's old import paths on first use. A module-level import would be circular."""
    from importlib import import_module

    places = {"DetectMultiBackend": "models.inference.backend", "AutoShape": "models.inference.hub"}
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(places[name]), name)
