"""Operations with their own way to the gradients: the results of torch's, in memory without gaps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.blocks.fuse import fuse_batch_norms
from models.blocks.memory import (
    StridedDepthwiseConv2d,
    deinterleave,
    dense_gradient,
    interleave,
    replace_strided_depthwise,
)
from models.common import Concat, Conv, channel_shuffle, shuffled_cat
from models.yolo import DetectionModel

LAST, USUAL = torch.channels_last, torch.contiguous_format
ORDERS = [(True, 4, 4), (True, 3, 3), (False, 4, 4), (False, 5, 5), (False, 5, 7), (False, 4, 6)]
EVEN = [order for order in ORDERS if order[0] or order[1] % 2 == 0]  # torch.cat takes every other of 5 for NCHW


def some_maps(*widths: int, layouts: tuple = (LAST,) * 2, seed: int = 0) -> list[Tensor]:
    """Double maps (2, width, 3, 5) that gradients are asked of."""
    rng = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, n, 3, 5, generator=rng, dtype=torch.float64) for n in widths]
    return [x.contiguous(memory_format=m).requires_grad_() for x, m in zip(maps, layouts, strict=False)]


def plainly(a: Tensor, b: Tensor, in_turns: bool) -> Tensor:
    both = torch.cat((a, b), 1)
    return channel_shuffle(both, 2 if in_turns else both.shape[1] // 2)


def same(x: Tensor) -> Tensor:
    """A copy with its own place in the graph: hooks there see what is handed to it."""
    return x * 1


# --- two maps as one, shuffled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layouts", [(LAST, LAST), (USUAL, USUAL), (LAST, USUAL)], ids=["last", "usual", "mixed"])
@pytest.mark.parametrize(("in_turns", "width_a", "width_b"), ORDERS)
def test_shuffled_cat_is_a_concatenation_and_a_shuffle(
    in_turns: bool, width_a: int, width_b: int, layouts: tuple
) -> None:
    inputs = some_maps(width_a, width_b, layouts=layouts)
    y, expected = shuffled_cat(*inputs, in_turns), plainly(*inputs, in_turns)
    assert torch.equal(y, expected) and torch.equal(shuffled_cat(*(x.detach() for x in inputs), in_turns), expected)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(torch.autograd.grad(y, inputs, weight), torch.autograd.grad(expected, inputs, weight),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("in_turns", [True, False])
def test_the_half_that_passes_a_unit(in_turns: bool) -> None:
    """ShuffleNetV2's units of stride 1 put together a part of a wider map and what they made of the other."""
    (x,) = some_maps(8)
    first, second = x.chunk(2, 1)
    second = second.exp().contiguous(memory_format=LAST)
    y, expected = shuffled_cat(first, second, in_turns), plainly(first, second, in_turns)
    assert torch.equal(y, expected) and y.is_contiguous(memory_format=LAST)
    weight = torch.randn_like(y)
    for ours, theirs in zip(torch.autograd.grad(y, x, weight, retain_graph=True),
                            torch.autograd.grad(expected, x, weight), strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("in_turns", "width_a", "width_b"), EVEN)
def test_channels_last_maps_and_gradients_stay_dense(
    in_turns: bool, width_a: int, width_b: int, trained: tuple[bool, bool]
) -> None:
    seen: list[Tensor] = []
    inputs = [same(x) if needed else x.detach() for x, needed in zip(some_maps(width_a, width_b), trained, strict=True)]
    for x in inputs:
        if x.requires_grad:
            x.register_hook(seen.append)
    y = shuffled_cat(*inputs, in_turns)
    assert y.is_contiguous(memory_format=LAST) and y.requires_grad == any(trained)
    if any(trained):
        y.backward(torch.randn_like(y))
    assert len(seen) == sum(trained) and all(g.is_contiguous(memory_format=LAST) for g in seen)


@pytest.mark.parametrize(
    ("function", "widths"),
    [(interleave, (2, 2)), (interleave, (3, 3)), (deinterleave, (2, 2)), (deinterleave, (3, 3)),
     (deinterleave, (1, 3))],
)  # fmt: skip
def test_gradients_are_those_of_the_values(function: Callable, widths: tuple[int, int]) -> None:
    assert torch.autograd.gradcheck(function, some_maps(*widths))


# --- gradients without gaps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [LAST, USUAL], ids=["last", "usual"])
@pytest.mark.parametrize("elsewhere", ["", "jit.is_tracing", "compiler.is_compiling"])
def test_dense_gradient(layout: torch.memory_format, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if elsewhere:  # there the graph is written down, and hooks have no place in it
        module, name = elsewhere.split(".")
        monkeypatch.setattr(getattr(torch, module), name, lambda: True)
    x, other = some_maps(4, 3, layouts=(layout, layout))
    before, after = [], []
    y = same(x)
    y.register_hook(before.append)
    assert dense_gradient(y) is y
    y.register_hook(after.append)
    both = torch.cat((y, other), 1)
    weight = torch.randn_like(both)
    both.backward(weight)
    assert torch.equal(x.grad, weight[:, :4])
    assert not before[0].is_contiguous(memory_format=layout)
    assert after[0].is_contiguous(memory_format=layout) == (not elsewhere)


def test_without_a_gradient_there_is_nothing_to_do() -> None:
    x, y = some_maps(4, 4)[0].detach(), some_maps(4, 4)[0]
    with torch.no_grad():
        y = same(y)
    assert dense_gradient(x) is x and dense_gradient(y) is y and not (x.requires_grad or y.requires_grad)


@pytest.mark.parametrize("layout", [LAST, USUAL], ids=["last", "usual"])
@pytest.mark.parametrize("concatenated", [lambda a, b: torch.cat((a, b), 1), lambda a, b: Concat()([a, b])],
                         ids=["torch.cat", "Concat"])  # fmt: skip
def test_what_reaches_activation_and_norm_after_a_concatenation(
    concatenated: Callable, layout: torch.memory_format
) -> None:
    seen: dict[str, Tensor] = {}
    x = some_maps(4, layouts=(layout,))[0].detach()
    first, second = (Conv(4, 6).double().to(memory_format=layout) for _ in range(2))
    for name, module in (("act", first.act), ("bn", first.bn), ("other", second.act)):
        module.register_full_backward_hook(lambda m, into, out, name=name: seen.update({name: out[0]}))
    y = concatenated(first(x), second(x))
    y.backward(torch.randn_like(y))
    assert set(seen) == {"act", "bn", "other"}
    assert all(g.is_contiguous(memory_format=layout) for g in seen.values())


def test_a_concatenation_of_what_is_no_convolution() -> None:
    """As in a neck, where an upsampled map meets another."""
    seen: list[Tensor] = []
    x, other = some_maps(4, 3)
    up, low = nn.Upsample(scale_factor=2), nn.AvgPool2d(1)
    up.register_full_backward_hook(lambda m, into, out: seen.append(out[0]))
    y = Concat()([up(x), low(torch.cat([torch.cat([other] * 2, 2)] * 2, 3))])
    y.backward(torch.randn_like(y))
    assert seen[0].is_contiguous(memory_format=LAST)


# --- depthwise convolutions with a stride ----------------------------------------------------------------------------

GEOMETRIES = {  # in, out, kernel, stride, padding, dilation, bias
    "ShuffleNetV2": (8, 8, 3, 2, 1, 1, False),
    "bias": (8, 8, 3, 2, 1, 1, True),
    "5x5": (6, 6, 5, 2, 2, 1, False),
    "stride 3, no padding": (6, 6, 3, 3, 0, 1, True),
    "dilated": (6, 6, 3, 2, 2, 2, False),
    "twice as many": (4, 8, 3, 2, 1, 1, True),
    "one direction": (4, 4, (3, 1), (2, 1), (1, 0), 1, False),
}


def pair(name: str) -> tuple[nn.Conv2d, StridedDepthwiseConv2d, Tensor, Tensor]:
    """The same convolution twice, an input and a gradient of the output; all are exact in bfloat16."""
    torch.manual_seed(0)
    c_in, c_out, k, s, p, d, bias = GEOMETRIES[name]
    plain = nn.Conv2d(c_in, c_out, k, s, p, d, groups=c_in, bias=bias).to(memory_format=LAST)
    with torch.no_grad():
        for v in plain.parameters():
            v.copy_(v.bfloat16())
    ours = copy.deepcopy(plain)
    replace_strided_depthwise(holder := nn.Sequential(ours))
    x = torch.randn(3, c_in, 13, 16).bfloat16().float().contiguous(memory_format=LAST)
    return plain, holder[0], x, torch.randn_like(plain(x)).bfloat16().float()


def gradients(conv: nn.Conv2d, x: Tensor, weight: Tensor, bfloat16: bool) -> list[Tensor]:
    """The output, and the gradients of input and parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        y = conv(x)
    return [y, *torch.autograd.grad(y, [x, *conv.parameters()], weight.to(y))]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_as_exact_as_torch_in_bfloat16(name: str) -> None:
    plain, ours, x, weight = pair(name)
    assert type(ours) is StridedDepthwiseConv2d
    exact = gradients(copy.deepcopy(plain).double(), x.double(), weight, bfloat16=False)
    theirs, found = gradients(plain, x, weight, bfloat16=True), gradients(ours, x, weight, bfloat16=True)
    assert found[0].dtype == torch.bfloat16 and torch.equal(found[0], theirs[0])
    assert [g.dtype for g in found[1:]] == [torch.float32] * (len(exact) - 1)
    for e, t, f in zip(exact[1:], theirs[1:], found[1:], strict=True):
        assert (f - e).norm() <= min(1.01 * (t - e).norm() + 1e-9, 0.005 * e.norm())
    assert found[1].is_contiguous(memory_format=LAST)


class InputGradients(TorchDispatchMode):
    """Notes the formats in which input gradients of convolutions are worked out."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution_backward and args[-1][0]:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_the_slow_kernel_is_not_called() -> None:
    plain, ours, x, weight = pair("ShuffleNetV2")
    for conv, dtype in ((plain, torch.bfloat16), (ours, torch.float32)):
        with InputGradients() as seen:
            gradients(conv, x, weight, bfloat16=True)
        assert seen.dtypes == [dtype]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_without_autocast_it_is_torchs(name: str) -> None:
    plain, ours, x, weight = pair(name)
    for a, b in zip(gradients(ours, x, weight, False), gradients(plain, x, weight, False), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("trained", ["x", "weight", "bias", "x weight", "x bias", "weight bias", ""])
def test_only_what_is_trained_gets_a_gradient(trained: str) -> None:
    plain, ours, x, weight = pair("bias")
    found = []
    for conv in (plain, ours):
        leaves = {"x": x.clone(), "weight": conv.weight, "bias": conv.bias}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in trained.split()).grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(leaves["x"])
        assert y.requires_grad == bool(trained)
        if trained:
            y.backward(weight.to(y))
        found.append({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None})
    assert found[0].keys() == found[1].keys() == set(trained.split())
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=0.02, atol=0.02)


def test_in_evaluation_under_autocast() -> None:
    plain, ours, x, _ = pair("bias")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), plain(x))


def is_strided_depthwise(m: nn.Module) -> bool:
    return isinstance(m, nn.Conv2d) and m.groups == m.in_channels and m.stride[0] > 1


@pytest.mark.parametrize(
    ("cfg", "count"), [("yolov5_shufflenet.yaml", 6), ("yolov5lite_s.yaml", 6), ("yolov5n.yaml", 0)]
)
def test_a_network_keeps_its_parameters_and_outputs(cfg: str, count: int) -> None:
    torch.manual_seed(0)
    model = DetectionModel(cfg, nc=2)
    model.model[0].requires_grad_(False)
    twin, parameters = copy.deepcopy(model), dict(model.named_parameters())
    keys, kinds = list(model.state_dict()), {k: type(m) for k, m in model.named_modules()}
    expected = {k for k, m in model.named_modules() if is_strided_depthwise(m)}
    assert replace_strided_depthwise(model.eval()) is model
    assert {k for k, m in model.named_modules() if type(m) is not kinds[k]} == expected and len(expected) == count
    assert all(type(m) is StridedDepthwiseConv2d for k, m in model.named_modules() if k in expected)
    assert list(model.state_dict()) == keys and not any(m.training for m in model.modules())
    assert all(p is parameters[k] for k, p in model.named_parameters())
    assert copy.deepcopy(model).load_state_dict(twin.state_dict()) and twin.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x)[0], twin.eval()(x)[0])
        assert torch.equal(copy.deepcopy(model).fuse()(x)[0], twin.fuse()(x)[0])


def test_a_step_of_training_is_that_of_the_plain_network() -> None:
    torch.manual_seed(0)
    plain = DetectionModel("yolov5_shufflenet.yaml", nc=2).to(memory_format=LAST).train()
    ours, exact = replace_strided_depthwise(copy.deepcopy(plain)), copy.deepcopy(plain)
    x = torch.rand(4, 3, 64, 64).contiguous(memory_format=LAST)
    found = []
    for model, enabled in ((exact, False), (plain, True), (ours, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            maps = model(x)
        sum((m.float() ** 2).mean() for m in maps).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    exact, theirs, ours = found
    assert (ours - theirs).norm() < 0.1 * theirs.norm()
    assert (ours - exact).norm() < 1.02 * (theirs - exact).norm() < exact.norm()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, 1, 1, groups=4),
        nn.Conv2d(4, 4, 3, 2, 1, groups=2),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.Conv2d(4, 4, 3, 2, 1, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, 2, "valid", groups=4),
        type("Own", (nn.Conv2d,), {})(4, 4, 3, 2, 1, groups=4),
    ],
    ids=["no stride", "grouped", "dense", "one channel", "reflected border", "padding in words", "a class of its own"],
)
def test_others_are_left_alone(conv: nn.Conv2d) -> None:
    assert replace_strided_depthwise(nn.Sequential(conv))[0] is conv


def test_batch_norms_fold_into_it() -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(4)).eval()
    nn.init.uniform_(block[1].running_var, 0.5, 2)
    x = torch.rand(1, 4, 8, 8)
    expected = block(x)
    fused = fuse_batch_norms(replace_strided_depthwise(block))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(x), expected)
