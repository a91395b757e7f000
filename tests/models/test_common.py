"""Every registered block, by table: shape and stride, gradient, state dict, fusing, channels-last, bfloat16."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from models import yolo  # noqa: F401  registers Detect too
from models.blocks.fuse import fuse_batch_norms
from models.common import (
    C3,
    CRM,
    Conv,
    GSBottleneck,
    GSBottleneckC,
    GSConv,
    GSConvns,
    InvertedResidual,
    SlimNeck,
    StemBlock,
    VoVGSCSP,
    VoVGSCSPC,
    channel_shuffle,
)
from models.registry import BLOCKS, find_block

PLAIN = sorted(n for n, b in BLOCKS.items() if b.channels in ("out", "same"))
WIDTH = 32
STRIDES = {"CRM": 4, "StemBlock": 4, "nn.Upsample": 0.5, "nn.MaxPool2d": 2}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    block = BLOCKS[name]
    args = list(block.example)
    if block.channels == "out":
        args = [WIDTH, args[0], *([2] if block.repeats else []), *args[1:]]
    module = block.cls(*args)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):  # statistics that a wrong fold would show
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    return module


def some_input() -> torch.Tensor:
    return torch.rand(2, WIDTH, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PLAIN)
def test_shape_and_stride(name: str) -> None:
    y = build(name)(some_input())
    stride = STRIDES.get(name, 1)
    assert y.shape == (2, WIDTH, 16 / stride, 24 / stride)


@pytest.mark.parametrize("name", PLAIN)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    module, x = build(name), some_input().requires_grad_()
    (module(x) ** 2).sum().backward()
    assert x.grad.abs().sum() > 0
    dead = [k for k, p in module.named_parameters() if p.grad is None]
    assert not dead


@pytest.mark.parametrize("name", PLAIN)
def test_state_dict_round_trip(name: str) -> None:
    a, b = build(name).eval(), build(name).eval()
    with torch.no_grad():
        for p in b.parameters():
            p.zero_()
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(some_input()), b(some_input()))


@pytest.mark.parametrize("name", PLAIN)
def test_fusing_changes_nothing_but_the_batch_norms(name: str) -> None:
    module = build(name).eval()
    before = module(some_input())
    fused = fuse_batch_norms(copy.deepcopy(module))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(some_input()), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_channels_last_gives_the_same_and_stays(name: str) -> None:
    module, x = build(name).eval(), some_input()
    expected = module(x)
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    y = last(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grown = last.train()(x.contiguous(memory_format=torch.channels_last).requires_grad_())
    (grown**2).sum().backward()


@pytest.mark.parametrize("name", PLAIN)
def test_channels_last_trains_the_same(name: str) -> None:
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        module = build(name).double().to(memory_format=layout).train()
        x = some_input().double().contiguous(memory_format=layout).requires_grad_()
        (module(x) ** 2).sum().backward()
        found.append([x.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    for usual, last in zip(*found, strict=True):
        torch.testing.assert_close(last, usual)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", PLAIN)
def test_tracing(name: str) -> None:
    module = build(name).eval().to(memory_format=torch.channels_last)
    x, file = some_input().contiguous(memory_format=torch.channels_last), io.BytesIO()
    torch.jit.save(torch.jit.trace(module, x), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), module(x))


@pytest.mark.parametrize("name", PLAIN)
def test_bfloat16(name: str) -> None:
    module, x = build(name).eval(), some_input()
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert (y.float() - expected).abs().max() <= 0.06 * expected.abs().max()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (CRM(3, 32), (1, 32, 16, 16)),
        (StemBlock(3, 32), (1, 32, 16, 16)),
        (Conv(3, 8, 3, 2), (1, 8, 32, 32)),
        (InvertedResidual(3, 16, 2), (1, 16, 32, 32)),
        (GSConv(3, 16, 3, 2), (1, 16, 32, 32)),
        (VoVGSCSP(3, 16, 2), (1, 16, 64, 64)),
        (GSConvns(3, 16, 3, 2), (1, 16, 32, 32)),
        (GSBottleneckC(3, 16, 3, 2), (1, 16, 32, 32)),
        (VoVGSCSPC(3, 16, 2), (1, 16, 64, 64)),
        (SlimNeck(3, 9, kernel_size=3, groups=3), (1, 9, 64, 64)),
        (SlimNeck(3, 9, 5, stride=2), (1, 9, 32, 32)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_shapes_of_the_article(module: nn.Module, expected: tuple[int, ...]) -> None:
    assert module(torch.zeros(1, 3, 64, 64)).shape == expected


def test_positional_act_is_an_activation_not_a_dilation() -> None:
    assert isinstance(GSConv(8, 8, 1, 1, 1, False).cv1.act, nn.Identity)
    assert isinstance(StemBlock(3, 8, 3, 2, None, 1, 1, False).stem_3.act, nn.Identity)


def test_channel_shuffle_order() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_gsconv_puts_even_channels_first() -> None:
    module = GSConv(4, 8).eval()
    x = torch.rand(1, 4, 5, 5)
    x1 = module.cv1(x)
    both = torch.cat((x1, module.cv2(x1)), 1)
    torch.testing.assert_close(module(x), torch.cat((both[:, 0::2], both[:, 1::2]), 1))


def test_inverted_residual_equals_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", reason="needs a torchvision that loads", exc_type=Exception)
    from torchvision.models.shufflenetv2 import InvertedResidual as Theirs

    assert torchvision
    for inp, stride in ((16, 1), (8, 2)):
        ours, theirs = InvertedResidual(inp, 16, stride).eval(), Theirs(inp, 16, stride).eval()
        theirs.load_state_dict(ours.state_dict())
        x = torch.rand(1, inp, 8, 8)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InvertedResidual(16, 32, 1), "must be the input width 16"),
        (lambda: InvertedResidual(16, 15, 2), "odd"),
        (lambda: InvertedResidual(16, 16, 4), "stride is 4"),
        (lambda: GSConv(8, 7), "odd"),
        (lambda: find_block("InvertedResidul"), "did you mean 'InvertedResidual'"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_c3_and_bottleneck_shortcut() -> None:
    block = C3(8, 8, 1, shortcut=True)
    assert block.m[0].add and not C3(8, 8, 1, shortcut=False).m[0].add


def test_gsbottleneck_default_kernel_is_three() -> None:
    assert GSBottleneck(8, 8).conv_lighting[1].cv1.conv.kernel_size == (3, 3)


@pytest.mark.parametrize(("k", "s"), [(1, 1), (3, 2)])
def test_normative_shuffle_starts_as_the_fixed_one(k: int, s: int) -> None:
    """The published form built a module in place of an activation, and ignored k and s."""
    plain, trained = GSConv(4, 8, k, s).eval(), GSConvns(4, 8, k, s).eval()
    trained.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(trained(x), plain(x).relu())
    assert trained.shuf.weight.requires_grad and "shuf.weight" in trained.state_dict()


def test_cheap_blocks_are_the_published_ones() -> None:
    block = GSBottleneckC(8, 16, 1, 1)
    assert block.shortcut.conv.groups == 8 and block.shortcut.conv.kernel_size == (1, 1)
    assert block.conv_lighting[1].cv1.conv.kernel_size == (3, 3)  # k is that of the convolution beside
    bottlenecks = VoVGSCSPC(8, 16, 3).gsb
    assert len(bottlenecks) == 3 and all(isinstance(b, GSBottleneckC) for b in bottlenecks)
    inner = bottlenecks[0].conv_lighting[0].cv1.conv
    assert (inner.in_channels, 2 * inner.out_channels) == (8, 4)  # GSConv makes one half of its width densely


def test_slim_neck_has_no_activation_between_its_convolutions() -> None:
    module = SlimNeck(4, 6, groups=4).eval()
    composed = nn.Sequential(module.grouped.conv, module.grouped.bn, module.pointwise.conv, module.pointwise.bn)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(module(x), nn.functional.silu(composed(x)))
