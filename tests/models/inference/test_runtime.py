"""What a loaded detector is asked to do, in which number format, and what it makes of its input."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.blocks.memory import replace_strided_depthwise
from models.inference.runtime import Runtime, load_runtime, to_input, warm_up
from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.system import precision

CPU = torch.device("cpu")
EVERY = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def network() -> DetectionModel:
    """Untrained, with statistics in its norms and a head whose answers differ from place to place."""
    torch.manual_seed(0)
    model = DetectionModel("yolov5_shufflenet.yaml", nc=2).eval()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
        for conv in model.model[-1].m:
            conv.weight.normal_(0, 0.1)
    return model


@pytest.fixture
def model(network: DetectionModel) -> DetectionModel:
    return copy.deepcopy(network)


def picture(*size: int) -> Tensor:
    return torch.randint(0, 256, size or (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the CPU of a test has for bfloat16."""
    monkeypatch.setattr(precision, "cpu_bf16_units", lambda: request.param)
    return request.param


# --- number formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "amp", "dtype", "said"),
    [
        ("AMX", "auto", torch.bfloat16, "bfloat16, as this CPU has AMX"),
        ("", "auto", torch.float32, "float32, as this CPU has no bfloat16 units"),
        ("AMX", "off", torch.float32, "float32 (--amp off)"),
        ("", "bf16", torch.bfloat16, "bfloat16 (--amp bf16), scores may be a few hundredths off those of float32"),
    ],
    indirect=["units"],
)
def test_formats(units: str, amp: str, dtype: torch.dtype, said: str, model: DetectionModel) -> None:
    with torch.no_grad():
        expected = model(picture() / 255)[0]
    runtime = Runtime(model, CPU, amp=amp)
    assert runtime.dtype == dtype and runtime.reason.startswith(said)
    boxes, maps = runtime.forward(picture())
    assert boxes.dtype == torch.float32 and [m.dtype for m in maps] == [dtype] * 3
    away = (runtime.predict(picture()) - expected).abs()
    assert away[..., :4].max() < (2 if dtype == torch.bfloat16 else 2e-3)
    assert away[..., 4:].max() < (0.01 if dtype == torch.bfloat16 else 1e-5)


def test_float32_unless_asked(model: DetectionModel, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", weights_content(model, 320))
    assert Runtime(model, CPU).dtype == load_runtime(tmp_path / "w.pt", CPU).dtype == torch.float32
    runtime = load_runtime(tmp_path / "w.pt", CPU, amp="bf16")
    assert (runtime.dtype, runtime.imgsz, runtime.stride, runtime.device) == (torch.bfloat16, 320, 32, CPU)


@pytest.mark.parametrize("amp", ["off", "auto", "bf16"])
def test_half_is_for_gpus(amp: str, model: DetectionModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        runtime = Runtime(model, CPU, half=True, amp=amp)
    (warning,) = caplog.messages
    assert "--half is for GPUs" in warning and runtime.dtype == torch.float32
    assert runtime.forward(picture())[1][0].dtype == torch.float32


@pytest.mark.parametrize(("amp", "message"), [("fp16", "--amp fp16 is for CUDA"), ("bf61", "did you mean 'bf16'")])
def test_formats_that_are_not_there(amp: str, message: str, model: DetectionModel) -> None:
    with pytest.raises(UserError, match=message):
        Runtime(model, CPU, amp=amp)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_anchors_are_not_rounded(amp: str, model: DetectionModel) -> None:
    head = model.model[-1]
    with torch.no_grad():
        head.anchors += 0.01  # in bfloat16 2.51 is 2.515625
        for conv in head.m:
            conv.weight.zero_()
            conv.bias.zero_()
    anchors = head.anchors.clone()
    assert not torch.equal(anchors.bfloat16().float(), anchors)
    runtime = Runtime(model, CPU, amp=amp)
    assert runtime.model.model[-1].anchors.dtype == torch.float32
    # where the head says nothing, a box has the size of its anchor
    sizes = runtime.predict(picture(1, 3, 32, 32))[0, :, 2:4]
    expected = torch.cat([(anchors[i] * head.stride[i]).repeat_interleave(cells, 0)
                          for i, cells in enumerate((16, 4, 1))])  # fmt: skip
    assert torch.equal(sizes, expected)


# --- input and output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_pixels_are_rounded_once(dtype: torch.dtype) -> None:
    """All values a pixel can have: the same as if they had been float32 in between, and as numpy has them."""
    x = to_input(EVERY, CPU, dtype)
    assert x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, to_input(EVERY, CPU).to(dtype))
    assert torch.equal(x, (EVERY.double() / 255).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_floats_are_taken_as_they_are(dtype: torch.dtype) -> None:
    given = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    x = to_input(given.float(), CPU, dtype)
    assert x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, given.float().to(dtype))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["usual", "last"])
@pytest.mark.parametrize("given", [EVERY, EVERY / 255], ids=["uint8", "float"])
def test_the_callers_images_stay_as_they_are(given: Tensor, layout: torch.memory_format) -> None:
    given = given.contiguous(memory_format=layout)
    before = given.clone()
    to_input(given, CPU)
    assert torch.equal(given, before) and given.dtype == before.dtype


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_predictions(amp: str, model: DetectionModel) -> None:
    runtime, x = Runtime(model, CPU, amp=amp), picture(2, 3, 64, 96)
    boxes = runtime.predict(x)
    assert boxes.shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 7) and not boxes.requires_grad
    torch.testing.assert_close(runtime.predict(x / 255), boxes, rtol=0.01, atol=0.01)
    with torch.no_grad():
        decoded, maps = runtime.forward(x)
        assert torch.equal(decoded, boxes) and [tuple(m.shape) for m in maps] == [(2, 3, h, w, 7) for h, w in
                                                                                ((8, 12), (4, 6), (2, 3))]  # fmt: skip
        assert runtime.forward(x, augment=True)[1] is None
    more = runtime.predict(x, augment=True)
    assert more.shape[1] > 2 * boxes.shape[1] and torch.equal(more[:, : boxes.shape[1]], boxes)


def test_warming_up_takes_any_size(model: DetectionModel) -> None:
    seen: list[tuple[int, ...]] = []
    runtime = Runtime(model, CPU)
    runtime.model.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape)))
    warm_up(runtime, 64, 96)
    assert seen == [(1, 3, 64, 96)]


def test_a_network_in_training_is_scored_by_its_copy(model: DetectionModel) -> None:
    """As after each epoch: the network goes on as it was."""
    trained = replace_strided_depthwise(model).train()
    kinds, keys = [type(m) for m in trained.modules()], list(trained.state_dict())
    with torch.no_grad():
        expected = copy.deepcopy(trained).eval()(picture() / 255)[0]
    runtime = Runtime(copy.deepcopy(trained), CPU)
    torch.testing.assert_close(runtime.predict(picture()), expected, rtol=1e-4, atol=2e-3)
    assert [type(m) for m in trained.modules()] == kinds and list(trained.state_dict()) == keys and trained.training


def test_a_second_runtime_of_the_same_network(model: DetectionModel) -> None:
    expected = Runtime(model, CPU).predict(picture())
    assert torch.equal(Runtime(model, CPU).predict(picture()), expected)
