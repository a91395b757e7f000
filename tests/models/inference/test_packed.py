"""Convolutions in oneDNN's layout: the same network, faster; what it cannot take stays as it is."""

from __future__ import annotations

import copy
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from models.blocks.fuse import fuse_batch_norms
from models.blocks.memory import StridedDepthwiseConv2d
from models.common import Conv
from models.inference import packed
from models.inference.packed import PackedConv2d, pack
from models.yolo import DetectionModel
from utils.files import model_yamls
from utils.settings.config import load_model_cfg

LAST = torch.channels_last
# the rows of the network on the right, only more and wider: seconds to build, and no other convolution in them
LARGER = {"yolov5m": "yolov5s", "yolov5l": "yolov5s", "yolov5x": "yolov5s",
          "yolov5m_slimneck": "yolov5s_slimneck", "yolov5l_slimneck": "yolov5s_slimneck"}  # fmt: skip
CONFIGS = sorted(set(model_yamls()) - set(LARGER))

needs_onednn = pytest.mark.skipif(not packed._is_available(torch.float32), reason="this torch has no such convolutions")


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Whether the operations are there is asked again in the test and after it."""
    packed._is_available.cache_clear()
    yield
    packed._is_available.cache_clear()


def lively(cfg: str | dict, dtype: torch.dtype = torch.float32) -> DetectionModel:
    """A fused network in which each channel differs from the next: norms at random, a head that does not hide it."""
    torch.manual_seed(0)
    model = DetectionModel(cfg).eval()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
                m.weight.uniform_(0.5, 2)
                m.bias.normal_(0, 0.3)
        for conv in (m for m in model.model[-1].modules() if isinstance(m, nn.Conv2d) and m.bias is not None):
            conv.weight.normal_(0, 0.1)
    constants = dict(model.model[-1].named_buffers(recurse=False))
    head = model.fuse().to(dtype=dtype, memory_format=LAST).model[-1]
    for name, constant in constants.items():
        setattr(head, name, constant)
    return model


def images(batch: int, height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=rng).contiguous(memory_format=LAST)


@torch.no_grad()
def decoded(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)[0]


def assert_same_boxes(found: Tensor, expected: Tensor) -> None:
    assert expected[..., :4].std() > 1 and expected[..., 4:].std() > 1e-4
    torch.testing.assert_close(found[..., :4], expected[..., :4], rtol=0, atol=1e-3)
    torch.testing.assert_close(found[..., 4:], expected[..., 4:], rtol=0, atol=1e-4)


def kinds(model: nn.Module) -> Counter:
    return Counter(type(m) for m in model.modules())


# --- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("large", "small"), LARGER.items())
def test_what_is_left_out_has_the_same_rows(large: str, small: str) -> None:
    a, b = load_model_cfg(large + ".yaml"), load_model_cfg(small + ".yaml")
    assert (a["backbone"], a["head"], a.get("activation")) == (b["backbone"], b["head"], b.get("activation"))


@needs_onednn
@pytest.mark.parametrize("name", CONFIGS)
def test_every_network_gives_the_same(name: str) -> None:
    model = lively(name + ".yaml")
    x = images(2, 128, 128)
    expected, before = decoded(model, x), kinds(model)
    assert pack(model) is model
    assert_same_boxes(decoded(model, x), expected)
    after = kinds(model)
    assert after[nn.Conv2d] == 0 and after[PackedConv2d] == before[nn.Conv2d] > 50
    assert not any(after[kind] for kind in packed.ACTIVATIONS)


@needs_onednn
def test_one_network_takes_all_sizes_and_batches() -> None:
    model = lively("yolov5_shufflenet.yaml")
    inputs = [images(*size) for size in ((1, 64, 96), (3, 128, 64), (1, 160, 160), (3, 32, 32), (1, 64, 96))]
    expected = [decoded(model, x) for x in inputs]
    pack(model)
    for x, boxes in zip(inputs, expected, strict=True):
        assert_same_boxes(decoded(model, x), boxes)
        assert_same_boxes(decoded(model, x.contiguous()), boxes)


@needs_onednn
@pytest.mark.parametrize("prepare", [lambda m: m.to(memory_format=torch.contiguous_format), lambda m: m.deploy()],
                         ids=["not channels-last", "without shuffles"])  # fmt: skip
def test_networks_in_another_form(prepare) -> None:
    model, x = lively("yolov5_shufflenet_slimneck.yaml"), images(1, 64, 128)
    expected = decoded(model, x)
    model = pack(prepare(model))
    assert kinds(model)[nn.Conv2d] == 0
    assert_same_boxes(decoded(model, x), expected)


@needs_onednn
def test_a_network_with_its_batch_norms() -> None:
    torch.manual_seed(0)
    model, x = DetectionModel("yolov5_shufflenet.yaml", nc=2).eval(), images(1, 64, 64)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
    expected = decoded(model, x)
    torch.testing.assert_close(decoded(pack(model), x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["yolov5_shufflenet", "yolov5n", "yolov5n_slimneck"])
def test_bfloat16(name: str) -> None:
    x = images(2, 64, 96)
    expected, model = decoded(lively(name + ".yaml"), x), lively(name + ".yaml", torch.bfloat16)
    rounded = decoded(model, x.bfloat16())
    boxes = decoded(pack(model), x.bfloat16())
    assert boxes.dtype == torch.float32
    error, plain = ((b - expected).abs() for b in (boxes, rounded))
    assert error[..., :4].max() < 2 and error[..., :4].mean() < 0.05 and error[..., 4:].max() < 0.01
    assert error.mean() < 1.2 * plain.mean()


# --- convolutions and what follows them ------------------------------------------------------------------------------

FUSED = {"nn.SiLU()": nn.SiLU, "nn.ReLU()": nn.ReLU, "nn.Hardswish()": nn.Hardswish}
BESIDE = {"nn.LeakyReLU(0.1)": nn.LeakyReLU, "nn.Mish()": nn.Mish, "nn.ReLU6()": nn.ReLU6, "nn.ELU(0.5)": nn.ELU,
          "nn.GELU()": nn.GELU}  # fmt: skip


@needs_onednn
@pytest.mark.parametrize(("text", "kind"), [*FUSED.items(), *BESIDE.items()])
def test_activations_of_a_yaml(text: str, kind: type[nn.Module]) -> None:
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 2, "C3", [16]], [-1, 1, "GSConv", [24, 3, 2]]]
    head = [[[-1], 1, "Detect", ["nc", "anchors"]]]
    cfg = {"nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": [[10, 13, 16, 30, 33, 23]],
           "activation": text, "backbone": rows, "head": head}  # fmt: skip
    model, x = lively(cfg), images(2, 32, 48)
    expected, count = decoded(model, x), kinds(model)[kind]
    assert count > 5
    assert_same_boxes(decoded(pack(model), x), expected)
    assert kinds(model)[nn.Conv2d] == 0 and kinds(model)[kind] == (0 if text in FUSED else count)


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, **options})


@needs_onednn
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"stride": 2}, {"groups": 8}, {"groups": 8, "stride": 2}, {"groups": 2},
     {"dilation": 2, "padding": 2}, {"kernel_size": (1, 3), "padding": (0, 1)}, {"stride": (2, 1)}, {"padding": 0},
     {"kernel_size": 1, "padding": 0}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("act", [nn.SiLU, nn.ReLU, nn.Hardswish, nn.Sigmoid])
@torch.no_grad()
def test_one_convolution(options: dict, act: type[nn.Module]) -> None:
    torch.manual_seed(0)
    block, x = nn.Sequential(conv(**options), act()), torch.randn(2, 8, 9, 12)
    expected = block(x)
    pack(block)
    assert (type(block[0]), type(block[1])) == (PackedConv2d, nn.Identity) and not list(block.parameters())
    torch.testing.assert_close(block(x), expected)
    assert block(x).is_contiguous(memory_format=LAST)


@needs_onednn
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: (conv(), nn.Identity(), nn.ReLU()), "PackedConv2d Identity Identity"),  # a folded batch norm
        (lambda: (conv(), nn.BatchNorm2d(8), nn.ReLU()), "PackedConv2d BatchNorm2d ReLU"),
        (lambda: (conv(), nn.MaxPool2d(2), nn.ReLU()), "PackedConv2d MaxPool2d ReLU"),
        (lambda: (conv(), nn.ReLU(), nn.SiLU()), "PackedConv2d Identity SiLU"),
        (lambda: (conv(), conv(), nn.ReLU()), "PackedConv2d PackedConv2d Identity"),
        (lambda: (nn.ReLU(), conv()), "ReLU PackedConv2d"),
        (lambda: (conv(), nn.Mish()), "PackedConv2d Mish"),
        (lambda: (conv(), type("ReLU", (nn.ReLU,), {})()), "PackedConv2d ReLU"),
        (lambda: (nn.ConvTranspose2d(8, 8, 2), nn.ReLU()), "ConvTranspose2d ReLU"),
        (lambda: (StridedDepthwiseConv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU()), "PackedConv2d Identity"),
        (lambda: (conv(padding_mode="reflect"), nn.ReLU()), "Conv2d ReLU"),
        (lambda: (conv(padding_mode="circular"), nn.ReLU()), "Conv2d ReLU"),
        (lambda: (conv(padding="same"), nn.ReLU()), "Conv2d ReLU"),
        (lambda: (conv(padding="valid"), nn.ReLU()), "Conv2d ReLU"),
        (lambda: (type("Own", (nn.Conv2d,), {"forward": lambda self, x: x + 1})(8, 8, 3), nn.ReLU()), "Own ReLU"),
    ],
)
@torch.no_grad()
def test_what_becomes_of_a_sequence(make, expected: str) -> None:
    torch.manual_seed(0)
    block, x = nn.Sequential(*make(), conv(kernel_size=1, padding=0)).eval(), torch.randn(1, 8, 8, 8)
    before = block(x)
    pack(block)
    assert [type(m).__name__ for m in block] == [*expected.split(), "PackedConv2d"]
    torch.testing.assert_close(block(x), before)


@needs_onednn
@torch.no_grad()
def test_an_activation_of_several_convolutions() -> None:
    act = nn.ReLU()
    blocks = nn.ModuleList(Conv(8, 8, act=act) for _ in range(2)).eval()
    for block in blocks:
        block.bn = nn.Identity()
    x = torch.randn(1, 8, 4, 4)
    expected = [block(x) for block in blocks]
    pack(blocks)
    for block, y in zip(blocks, expected, strict=True):
        assert isinstance(block.conv, PackedConv2d) and isinstance(block.act, nn.Identity)
        torch.testing.assert_close(block(x), y)


@needs_onednn
@torch.no_grad()
def test_maps_of_another_dtype() -> None:
    layer = PackedConv2d(conv())
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer(x.float()))


@needs_onednn
def test_what_it_says_of_itself() -> None:
    assert repr(PackedConv2d(conv(stride=2, groups=8), "relu")) == (
        "PackedConv2d(stride=(2, 2), groups=8, activation=relu)"
    )


# --- a torch without them --------------------------------------------------------------------------------------------


def broken(error: Exception | None):
    """Another `forward`: one that fails, or answers wrongly."""
    def forward(self: PackedConv2d, x: Tensor) -> Tensor:
        if error:
            raise error
        return torch.zeros(1, 8, 4, 4)

    return forward


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AttributeError("there is no such object\nmore"), "has no fused convolutions (there is no such object): inf"),
        (RuntimeError("not for this CPU"), "has no fused convolutions (not for this CPU): inference is"),
        (None, ""),
    ],
)
def test_a_torch_without_the_operation(
    error: Exception | None, said: str, asked_anew: None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(PackedConv2d, "__init__", lambda self, *a: nn.Module.__init__(self))
    monkeypatch.setattr(PackedConv2d, "forward", broken(error))
    model = lively("yolov5_shufflenet.yaml")
    twin, x = copy.deepcopy(model), images(1, 64, 64)
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        assert pack(model) is model and pack(pack(model)) is model
    assert kinds(model) == kinds(twin) and torch.equal(decoded(model, x), decoded(twin, x))
    assert len(caplog.messages) == bool(said) and all(said in m and "\n" not in m for m in caplog.messages)


def test_a_torch_without_onednn(
    asked_anew: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    block = nn.Sequential(conv(), nn.ReLU())
    assert type(pack(block)[0]) is nn.Conv2d and type(block[1]) is nn.ReLU and not caplog.messages


# --- what it must not touch ------------------------------------------------------------------------------------------


@needs_onednn
def test_random_numbers_go_on_as_if_nothing_had_been(asked_anew: None) -> None:
    """A run that is stopped and resumed packs its model once more than one that was not."""
    block = nn.Sequential(conv(), nn.ReLU())
    state = torch.get_rng_state()
    pack(block)
    assert torch.equal(torch.get_rng_state(), state)


@needs_onednn
@torch.no_grad()
def test_packing_twice_is_packing_once() -> None:
    block, x = nn.Sequential(conv(), nn.ReLU()), torch.randn(1, 8, 4, 4)
    expected = pack(block)(x)
    assert torch.equal(pack(block)(x), expected)


@pytest.mark.parametrize("size", [(8, 2), (5, 1), (2, 8), (1, 5), (8, 3)])
@torch.no_grad()
def test_the_narrowest_maps_in_bfloat16(size: tuple[int, int]) -> None:
    """A stride of 2 leaves one column of a map: a picture 20 times as high as it is wide."""
    torch.manual_seed(0)
    plain, x = nn.Conv2d(256, 256, 3, 2, 1).bfloat16(), torch.randn(1, 256, *size).bfloat16()
    expected = copy.deepcopy(plain).float()(x.float())
    layer = pack(nn.Sequential(plain))
    for _ in range(4):
        torch.full((1 << 20,), torch.nan)  # what is freed here lies where the operation may look
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.02)


def test_fusing_draws_no_random_numbers() -> None:
    """A run that is stopped while it validates fuses its model once more than one that was not."""
    block = nn.Sequential(conv(), nn.BatchNorm2d(8)).eval()
    state = torch.get_rng_state()
    assert isinstance(fuse_batch_norms(block)[1], nn.Identity)
    assert torch.equal(torch.get_rng_state(), state)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_that_meet_in_a_new_network_get_what_one_gets(dtype: torch.dtype) -> None:
    """The first map that comes lays the weights out, which must happen once."""
    x = images(1, 64, 64).to(dtype)
    with torch.inference_mode():
        expected = pack(lively("yolov5_shufflenet.yaml", dtype))(x)[0]
        for _ in range(5):
            network, start = pack(lively("yolov5_shufflenet.yaml", dtype)), threading.Barrier(4)
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda _, n=network, s=start: (s.wait(), call(n, x))[1], range(4)))
            assert all(torch.equal(f, expected) for f in found)


def call(network: nn.Module, x: Tensor) -> Tensor:
    """What inference mode gives; it is a thread's own."""
    with torch.inference_mode():
        return network(x)[0]
