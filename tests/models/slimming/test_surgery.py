"""Light layers from trained ones: the best kernels, the untouched rest, fits to data, and which layers are chosen."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.common import C3, C3Slim, Conv, GSConv, SlimNeck, VoVGSCSP
from models.slimming.least_squares import regress, regress_slim, settle, unexplained
from models.slimming.reconstruct import SideBySide, fit_block, fit_layer, held_bytes, parts, polish, sources
from models.slimming.surgery import (
    KINDS,
    Swap,
    combined,
    groups_of,
    parse_layers,
    places,
    plan_swaps,
    separate,
    slim_config,
    start_from,
    transplant,
    unexplained_kernel,
)
from models.yolo import DetectionModel
from utils.errors import UserError

CFG = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [16, 6, 2, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 2, "C3", [32]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "SPPF", [32, 5]],
    ],
    "head": [
        [-1, 1, "Conv", [32, 1, 1]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [32, False]],
        [-1, 1, "Conv", [32, 3, 2]],
        [[-1, 5], 1, "Concat", [1]],
        [-1, 1, "C3", [32, False]],
        [[8, 11], 1, "Detect", ["nc", "anchors"]],
    ],
}


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module in eval mode with batch norms as after a training."""
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in ((m.running_mean, -0.3, 0.3), (m.running_var, 0.3, 1.0), (m.weight, 0.7, 1.5),
                                 (m.bias, -0.3, 0.3)):  # fmt: skip
                t.data.uniform_(low, high, generator=g)
    return module.eval().requires_grad_(False)


def network(cfg: dict = CFG) -> DetectionModel:
    torch.manual_seed(0)
    model = lively(DetectionModel(copy.deepcopy(cfg)))
    model.names = {0: "red", 1: "blue"}
    return model


def images(batches: int = 3, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batches, 4, 3, 8, 8, generator=g)
    return [nn.functional.interpolate(b, size=(64, 64), mode="bilinear") for b in coarse]


def maps(width: int, batches: int = 3, side: int = 12) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(4, width, side, side, generator=g) for _ in range(batches)]


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_a_separable_kernel_is_found_exactly(groups: int) -> None:
    torch.manual_seed(0)
    block = SlimNeck(8, 12, 3, groups=groups)
    kernel = combined(block)
    block.grouped.conv.weight.data, block.pointwise.conv.weight.data = separate(kernel, groups)
    torch.testing.assert_close(combined(block), kernel, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("groups", "k"), [(8, 3), (4, 3), (2, 5), (8, 1)])
def test_another_kernel_is_approximated_as_well_as_its_rank_allows(groups: int, k: int) -> None:
    weight = torch.randn(12, 8, k, k, generator=torch.Generator().manual_seed(0))
    block = SlimNeck(8, 12, k, groups=groups)
    block.grouped.conv.weight.data, block.pointwise.conv.weight.data = separate(weight, groups)
    size, best = 8 // groups, 0.0
    for g in range(groups):
        matrix = weight[:, g * size : (g + 1) * size].reshape(12, -1).double().numpy()
        best += (np.linalg.svd(matrix, compute_uv=False)[size:] ** 2).sum()
    assert (combined(block) - weight).square().sum().item() == pytest.approx(best, rel=1e-4, abs=1e-9)


def test_more_rank_than_there_is_is_no_trouble() -> None:
    weight = torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    block = SlimNeck(8, 2, 1, groups=1)
    block.grouped.conv.weight.data, block.pointwise.conv.weight.data = separate(weight, 1)
    torch.testing.assert_close(combined(block), weight)


@pytest.mark.parametrize(("stride", "groups", "width"), [(1, 8, 8), (2, 8, 8), (1, 1, 8), (2, 1, 8), (1, 1, 6)])
def test_a_slim_layer_gives_what_the_convolution_gave(stride: int, groups: int, width: int) -> None:
    """groups 8: a kernel that is separable; 1: any kernel."""
    torch.manual_seed(0)
    old = lively(Conv(8, width, 3, stride))
    if groups == 8:
        old.conv.weight.data = combined(SlimNeck(8, width, 3, groups=8)).detach()
    new = lively(SlimNeck(8, width, 3, stride, groups), seed=5)
    x = maps(8)[0]
    assert unexplained([(new(x), old(x))]) > 0.1
    start_from(new, old)
    torch.testing.assert_close(new(x), old(x), rtol=1e-4, atol=1e-5)
    assert unexplained_kernel(new, old) < 1e-8


def test_one_group_of_all_channels_gives_the_same_c3() -> None:
    torch.manual_seed(0)
    old, new = lively(C3(16, 16, 2)), lively(C3Slim(16, 16, 2, True, 1), seed=3)
    start_from(new, old)
    torch.testing.assert_close(new(maps(16)[0]), old(maps(16)[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", [True, False])
def test_the_dense_half_of_a_gsconv_is_exact(act: bool) -> None:
    torch.manual_seed(0)
    old, new = lively(Conv(8, 12, 3, 2, act=act)), lively(GSConv(8, 12, 3, 2, act=act), seed=2)
    start_from(new, old)
    dense, cheap = places(12)
    x = maps(8)[0]
    torch.testing.assert_close(new(x)[:, dense], old(x)[:, dense])
    assert not torch.allclose(new(x)[:, cheap], old(x)[:, cheap], atol=0.1)
    assert sorted([*dense.tolist(), *cheap.tolist()]) == list(range(12))
    energy = old.conv.weight.square().sum((1, 2, 3))
    assert unexplained_kernel(new, old) == pytest.approx(float(energy[cheap].sum() / energy.sum()))


def test_a_vovgscsp_starts_with_the_branches_of_the_c3() -> None:
    torch.manual_seed(0)
    old, new = lively(C3(16, 16, 1)), lively(VoVGSCSP(16, 16, 1), seed=2)
    start_from(new, old)
    x = maps(16)[0]
    torch.testing.assert_close(new.cv1(x), old.cv1(x))
    torch.testing.assert_close(new.cv2(x), old.cv2(x))
    a, b = maps(8)[:2]
    torch.testing.assert_close(new.cv3(torch.cat((b, a), 1)), old.cv3(torch.cat((a, b), 1)))


# --- fits to data ----------------------------------------------------------------------------------------------------


def test_regression_finds_a_linear_map_and_its_offset() -> None:
    torch.manual_seed(0)
    truth, block = nn.Conv2d(6, 4, 3, 2, 1, groups=2), lively(Conv(6, 4, 3, 2, g=2))
    xs = maps(6)
    with torch.no_grad():
        pairs = [(x, truth(x)) for x in xs]
        regress(block, pairs)
        torch.testing.assert_close(block.bn(block.conv(xs[0])), pairs[0][1], rtol=1e-3, atol=1e-3)


def test_regression_stays_where_it_is_if_that_is_exact() -> None:
    torch.manual_seed(0)
    block = lively(Conv(6, 4, 3))
    xs = [x[:1, :, :3, :3] for x in maps(6)]  # fewer pixels than numbers in the kernel
    before = [block.bn(block.conv(x)) for x in maps(6)]
    regress(block, [(x, block.bn(block.conv(x)).clone()) for x in xs])
    torch.testing.assert_close(block.bn(block.conv(maps(6)[0])), before[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("groups", [8, 4])
def test_both_kernels_of_a_slim_layer_are_fitted(groups: int) -> None:
    """Targets that a SlimNeck can make are made, from another start; the 1x1 kernel alone could not."""
    torch.manual_seed(0)
    truth, block, old = (lively(SlimNeck(8, 8, 3, groups=groups)), lively(SlimNeck(8, 8, 3, groups=groups), seed=1),
                         lively(Conv(8, 8, 3)))  # fmt: skip
    block.grouped.conv.weight.data = truth.grouped.conv.weight + 0.05 * torch.randn_like(truth.grouped.conv.weight)
    pairs = [(x, truth.pointwise.bn(truth.pointwise.conv(truth.grouped(x)))) for x in maps(8)]
    alone = copy.deepcopy(block)
    regress(alone.pointwise, [(alone.grouped(x), z) for x, z in pairs])
    regress_slim(block, old, pairs)
    one, both = (unexplained((b.pointwise.bn(b.pointwise.conv(b.grouped(x))), z) for x, z in pairs)
                 for b in (alone, block))  # fmt: skip
    assert both < one / 10


PAIRS = [
    lambda: (Conv(8, 12, 3, 2), SlimNeck(8, 12, 3, 2, 8)),
    lambda: (Conv(8, 12, 3, 2), GSConv(8, 12, 3, 2)),
    lambda: (Conv(8, 12, 1), GSConv(8, 12, 1)),
    lambda: (C3(8, 16, 2, False), C3Slim(8, 16, 2, False, 8)),
    lambda: (C3(16, 16, 2), VoVGSCSP(16, 16, 2)),
    lambda: (C3(16, 16, 1, False), VoVGSCSP(16, 16, 1, False)),
]


@pytest.mark.parametrize("pair", PAIRS, ids=("SlimNeck", "GSConv", "GSConv-1x1", "C3Slim", "VoVGSCSP", "VoVGSCSP-1"))
def test_a_fit_to_data_explains_more_than_the_kernels(pair: Callable[[], tuple[nn.Module, nn.Module]]) -> None:
    """Also where the light network hands on other inputs than the original."""
    torch.manual_seed(0)
    old, new = pair()
    lively(old), lively(new, seed=1)
    start_from(new, old)
    theirs = maps(next(old.parameters()).shape[1])
    inputs = [(0.8 * y + 0.1, y) for y in theirs]
    before = unexplained((new(x), old(y)) for x, y in inputs)
    fit_block(new, old, inputs)
    after = unexplained((new(x), old(y)) for x, y in inputs)
    assert after < 0.9 * before and after < 1


def test_batch_norms_settle_without_a_change() -> None:
    torch.manual_seed(0)
    block, xs = lively(C3Slim(8, 8, 1, True, 4)), maps(8, batches=2)
    before = [block(x) for x in xs]
    settle([block], lambda: [block(x) for x in xs])
    for x, y in zip(xs, before, strict=True):
        torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)
    both, bn = torch.cat(xs), block.m[0].cv2.grouped.bn
    met = block.m[0].cv2.grouped.conv(block.m[0].cv1(block.cv1(both)))
    torch.testing.assert_close(bn.running_mean, met.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bn.running_var, met.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    expected = block(both)
    torch.testing.assert_close(block.train()(both), expected, rtol=1e-3, atol=1e-4)  # training starts from the same


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (None, 1.0)])
def test_unexplained_share(shift: float | None, expected: float) -> None:
    t = maps(4)
    ys = [x + shift if shift is not None else torch.cat(t).mean((0, 2, 3), keepdim=True).expand_as(x) for x in t]
    assert unexplained(zip(ys, t, strict=True)) == pytest.approx(expected, abs=1e-6)


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", sorted(KINDS))
def test_untouched_layers_keep_their_tensors_and_the_original_is_left(to: str) -> None:
    model = network()
    model.model[-1].anchors *= 1.5
    state = {k: v.clone() for k, v in model.state_dict().items()}
    swaps, _ = plan_swaps(model, to, parse_layers("neck", model.yaml), 8)
    slim = transplant(model, swaps)
    new = {f"model.{s.index}." for s in swaps}
    theirs = slim.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
        if not key.startswith(tuple(new)):
            assert torch.equal(theirs[key], value), key
    assert slim.names == model.names and [type(slim.model[s.index]).__name__ for s in swaps] == [s.new for s in swaps]
    again = DetectionModel(slim.yaml)
    again.load_state_dict(theirs)
    assert again.yaml["anchors"][0] == [15, 19.5, 24, 45]


def test_a_network_of_one_group_gives_the_same() -> None:
    model = network()
    swaps = [Swap(3, "Conv", "SlimNeck", (32, 3, 2, 1)), Swap(8, "C3", "C3Slim", (32, False, 1)),
             Swap(9, "Conv", "SlimNeck", (32, 3, 2, 1))]  # fmt: skip
    slim, x = transplant(model, swaps), images()[0]
    torch.testing.assert_close(slim(x)[0], model(x)[0], rtol=1e-3, atol=1e-3)
    walk = SideBySide(slim.requires_grad_(False), model, 3, images())
    assert max(fit_layer(walk, s).unexplained for s in swaps) < 2e-3
    torch.testing.assert_close(slim(x)[0], model(x)[0], rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize("to", sorted(KINDS))
def test_fitting_a_network_brings_it_nearer(to: str) -> None:
    model, x = network(), images(1, seed=9)[0]
    swaps, _ = plan_swaps(model, to, parse_layers("all", model.yaml))
    slim = transplant(model, swaps).requires_grad_(False)

    def distance() -> float:
        return sum(unexplained([(a, b)]) for a, b in zip(raw(slim, x), raw(model, x), strict=True))

    start = distance()
    walk = SideBySide(slim, model, swaps[0].index, images(4))
    fits = [fit_layer(walk, s) for s in swaps]
    fitted = distance()
    before, after = polish(walk, [s.index for s in swaps], 5)
    assert fitted < 0.7 * start and all(f.kept for f in fits)
    assert after <= before < 1 and not any(p.requires_grad for p in slim.parameters())
    # what the walk held is what the networks give
    last = len(model.model) - 1
    for source in sources(model.model[last]):
        taken = []
        handle = model.model[source].register_forward_hook(lambda m, a, y, taken=taken: taken.append(y))
        model(images(4)[0])
        handle.remove()
        torch.testing.assert_close(walk.outputs[0][1][source], taken[0])


def raw(model: DetectionModel, x: Tensor) -> list[Tensor]:
    return [y.flatten(1, 3).permute(0, 2, 1)[..., None] for y in model(x)[1]]


def test_polishing_that_does_no_good_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    slim = transplant(model, [Swap(9, "Conv", "SlimNeck", (32, 3, 2, 8))]).requires_grad_(False)
    walk = SideBySide(slim, model, 9, images())
    fit_layer(walk, Swap(9, "Conv", "SlimNeck", (32, 3, 2, 8)))
    state = copy.deepcopy(slim.state_dict())
    monkeypatch.setattr("models.slimming.reconstruct.LEARNING_RATE", 10.0)
    before, after = polish(walk, [9], 5)
    assert before == after
    assert all(torch.equal(v, state[k]) for k, v in slim.state_dict().items())


def test_a_layer_above_the_limit_becomes_the_original_again() -> None:
    model = network()
    swap = Swap(9, "Conv", "SlimNeck", (32, 3, 2, 32))
    slim = transplant(model, [swap]).requires_grad_(False)
    fit = fit_layer(SideBySide(slim, model, 9, images()), swap, 1e-9)
    assert not fit.kept and fit.unexplained > 1e-9 and fit.parameters < model.model[9].np
    assert torch.equal(slim(images()[0])[0], model(images()[0])[0])


@pytest.mark.parametrize(("batches", "fitting", "measuring"),
                         [(1, [0], [0]), (2, [0], [1]), (16, [*range(14)], [14, 15])])  # fmt: skip
def test_parts(batches: int, fitting: list[int], measuring: list[int]) -> None:
    n = list(range(batches))
    assert ([n[p] for p in parts(batches)]) == [fitting, measuring]


def test_memory_grows_with_the_image() -> None:
    model = network()
    assert held_bytes(model, [8], 128) == 4 * held_bytes(model, [8], 64)
    # layer 8 reads 7 (64 wide, stride 4), a later one 5 (32 wide, stride 8); both networks have them
    assert held_bytes(model, [8], 64) == 4 * (2 * (64 * 16 * 16 + 32 * 8 * 8) + 4 * 32 * 16 * 16)


# --- choosing layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("neck", [5, 6, 7, 8, 9, 10, 11]),
        ("all", list(range(12))),
        (" Neck ", [5, 6, 7, 8, 9, 10, 11]),
        ("3", [3]),
        ("1-3,8", [1, 2, 3, 8]),
        ("8, 9-10, 9", [8, 9, 10]),
        ("12", [12]),
    ],
)
def test_layers(text: str, expected: list[int]) -> None:
    assert parse_layers(text, CFG) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("13", "there is no layer 13; this model has layers 0 to 12, neck is 5-11"),
        ("1-40", "there is no layer 40"),
        ("9-3", "runs backwards; give 3-9"),
        ("head", "'head' is not neck, all"),
        ("1,,2", "'' is not neck"),
        ("", "'' is not neck"),
        ("-1", "'-1' is not neck"),
    ],
)
def test_wrong_layers(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_layers(text, CFG)


@pytest.mark.parametrize(
    ("to", "row", "expected"),
    [
        ("slimneck", ["Conv", [32, 3, 1]], ("GSConv", (32, 3, 1))),
        ("slimneck", ["Conv", [32]], ("GSConv", (32,))),
        ("slimconv", ["Conv", [32, 3]], ("SlimNeck", (32, 3, 1, 4))),
        ("slimconv", ["Conv", [33, 3]], ("SlimNeck", (33, 3, 1, 4))),
        ("slimneck", ["C3", [64]], ("VoVGSCSP", (64,))),
        ("slimconv", ["C3", [32]], ("C3Slim", (32, True, 2))),
        ("slimconv", ["C3", [32, "False"]], ("C3Slim", (32, "False", 2))),
        ("slimconv", ["C3", [32, False, 1, 1.0]], ("C3Slim", (32, False, 4, 1.0))),
        ("slimneck", ["Conv", [33, 3]], "its width 33 is odd"),
        ("slimneck", ["Conv", [32, 3, 1, 1]], r"its row \[32, 3, 1, 1\] has more than width, kernel and stride"),
        ("slimconv", ["Conv", [32, 1, 1]], "a 1x1 convolution has nothing to separate"),
        ("slimneck", ["C3", [34]], "its hidden width 17 is odd"),
        ("slimconv", ["C3", [32, True, 2]], "already has groups"),
        ("slimconv", ["SPPF", [32, 5]], "SPPF has no light form; only Conv and C3 have"),
        ("slimneck", ["GSConv", [32, 3, 1]], "GSConv has no light form"),
    ],
)
def test_what_a_row_becomes(to: str, row: list, expected: tuple | str) -> None:
    cfg = {"nc": 2, "channel_multiple": 1, "anchors": CFG["anchors"][:1],
           "backbone": [[-1, 1, "Conv", [32, 3, 4]], [-1, 1, *row]],
           "head": [[-1, 1, "Conv", [64, 3, 2]], [[2], 1, "Detect", ["nc", "anchors"]]]}  # fmt: skip
    model = network(cfg)
    swaps, left = plan_swaps(model, to, [1, 2], 8)
    if isinstance(expected, str):
        assert [s.index for s in swaps] == [2]
        assert left.keys() == {1}
        with pytest.raises(UserError, match=f"--to {to} can replace: 1 {row[0]}: .*{expected}"):
            plan_swaps(model, to, [1], 8)
    else:
        assert (swaps[0].new, swaps[0].args) == expected and not left
        DetectionModel(slim_config(model, swaps))


def test_what_is_several_or_not_lighter_stays() -> None:
    cfg = {**CFG, "backbone": [*CFG["backbone"][:3], [-1, 2, "Conv", [32, 3, 2]], [-1, 1, "Conv", [8, 1, 1]]],
           "head": [[-1, 1, "Conv", [16, 1, 1]], [[2, 5], 1, "Detect", ["nc", "anchors"]]]}  # fmt: skip
    swaps, left = plan_swaps(network(cfg), "slimneck", [1, 3, 4, 5])
    assert [s.index for s in swaps] == [1, 4]
    assert left == {3: "several blocks in one row", 5: "GSConv would have 296 parameters in place of 160"}


def test_layers_without_weights_are_not_told_about() -> None:
    swaps, left = plan_swaps(network(), "slimconv", list(range(13)))
    assert left.keys() == {0, 4, 5, 12} and {s.index for s in swaps} == {1, 2, 3, 8, 9, 11}
    with pytest.raises(UserError, match="no layer there has weights"):
        plan_swaps(network(), "slimconv", [6, 7])


@pytest.mark.parametrize(("width", "size", "groups"), [(32, 1, 32), (32, 8, 4), (24, 16, 2), (7, 3, 7), (8, 100, 1)])
def test_groups(width: int, size: int, groups: int) -> None:
    assert groups_of(width, size) == groups
