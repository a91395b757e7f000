"""--batch-size -1: the arithmetic, what is measured, and that measuring leaves the model as it was."""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from models.yolo import Model
from utils.training import autobatch
from utils.training.autobatch import check_train_batch_size, choose_batch, measure_cpu, measure_cuda, memory_line

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("per_image", "fixed", "budget", "most", "batch"),
    [
        (10, 0, 320, 1000, 32),
        (10, 0, 319, 1000, 24),
        (10, 100, 320, 1000, 16),
        (10, 0, 79, 1000, 7),  # below 8 every number counts
        (10, 0, 5, 1000, 1),  # one image, even if it will not fit
        (10, 500, 320, 1000, 1),
        (10, 0, 1e12, 64, 64),
        (10, 0, 1e12, 63, 56),
        (10, 0, 1e12, 5, 5),
        (10, 0, 1e12, 0, 1),
        (0.5, 0, 20, 1000, 40),
    ],
)
def test_choose_batch(per_image: float, fixed: float, budget: float, most: int, batch: int) -> None:
    assert choose_batch(per_image, fixed, budget, most) == batch


@pytest.mark.parametrize("per_image", [0, -1, float("nan")])
def test_an_image_takes_memory(per_image: float) -> None:
    with pytest.raises(ValueError, match="an image takes"):
        choose_batch(per_image, 0, 100, 64)


@pytest.mark.parametrize(
    ("batches", "peaks", "line"),
    [
        ([2, 4], [120, 140], (10, 100)),
        ([2, 4, 8], [20, 40, 80], (10, 0)),
        ([2, 4, 8, 16], [25, 35, 85, 155], (9.565, 3.261)),  # not on a line: least squares
    ],
)
def test_memory_line(batches: list[int], peaks: list[int], line: tuple[float, float]) -> None:
    assert memory_line(batches, peaks) == pytest.approx(line, abs=0.001)


@pytest.mark.parametrize(("batches", "peaks"), [([], []), ([2], [10]), ([2, 4], [10, 10]), ([2, 4], [20, 10])])
def test_memory_line_needs_growth(batches: list[int], peaks: list[int]) -> None:
    with pytest.raises(ValueError):
        memory_line(batches, peaks)


class Twice(nn.Module):
    """Keeps one map for two products, and views of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.ones(1, requires_grad=True)
        return (x * x).transpose(2, 3) * x.transpose(2, 3)


class TrainingOnly(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sigmoid() if self.training else x


MAP = 32 * 32 * 4  # bytes of one channel of a 32 px image in float32


@pytest.mark.parametrize(
    ("model", "maps"),
    [
        (nn.Conv2d(3, 5, 1), 3),  # keeps its input; the weights do not count
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sigmoid()), 3 + 5),  # and the sigmoid its output
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 7, 1), nn.Sigmoid()), 3 + 5 + 7),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)), 3 + 5),  # one map, kept by both
        (Twice(), 3 + 3 + 3),  # the input, x and x * x
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Identity(), TrainingOnly()).eval(), 3 + 5),  # measured as it trains
    ],
)
def test_each_kept_map_counts_once(model: nn.Module, maps: int) -> None:
    per_image, fixed = memory_line(*measure_cpu(model, 32, CPU))
    assert per_image == pytest.approx(maps * MAP, rel=0.01) and abs(fixed) < 0.01 * MAP


def test_lower_precision_takes_half_and_a_copy_of_the_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3))
    per_image, fixed = memory_line(*measure_cpu(model, 32, CPU, lambda: torch.autocast("cpu", torch.bfloat16)))
    assert per_image == pytest.approx((3 * 32**2 + 32 * 30**2) * 2)
    assert fixed == pytest.approx((32 * 3 + 64 * 32) * 9 * 2, rel=0.05)


def test_measuring_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(autobatch, "available_memory", lambda: 2**30)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout()).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    with caplog.at_level(logging.INFO, logger="yolov5"):
        check_train_batch_size(model, 64, CPU, 100)
    assert torch.equal(torch.random.get_rng_state(), state) and not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert len(caplog.records) == 1 and "MiB per image at 64 px" in caplog.text and "60% of 1.0 GiB" in caplog.text


@pytest.mark.parametrize(
    ("free", "images", "batch"),
    [
        (10 * 2**30, 1000, 64),  # more trains no faster on a CPU
        (10 * 2**30, 20, 16),
        (10 * 2**30, 3, 3),
        (39 * 24 * MAP, 1000, 16),  # 60 % of it is 23.4 images, of 16 maps times 1.5 each
        (0, 1000, 1),
        (None, 1000, 16),  # the system does not tell
        (None, 5, 5),
    ],
)
def test_cpu(free: int | None, images: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autobatch, "available_memory", lambda: free)
    monkeypatch.setattr(autobatch, "measure_cpu", lambda *args: ([2, 3], [32 * MAP, 48 * MAP]))
    assert check_train_batch_size(nn.Conv2d(3, 1, 1), 32, CPU, images) == batch


def test_larger_images_get_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autobatch, "available_memory", lambda: 150 * 2**20)
    model = Model("yolov5_shufflenet.yaml")
    batches = [check_train_batch_size(model, size, CPU, 1000) for size in (64, 128, 160)]
    assert 64 >= batches[0] > batches[1] > batches[2] > 1


@pytest.mark.parametrize(
    ("per_image", "free", "images", "batch"),
    [
        (2**20, 100 * 2**20, 1000, 72),  # 80 % of it, less the MiB beside the images
        (2**20, 10 * 2**20, 1000, 6),
        (2**20, 2**40, 1000, 1000),
        (2**20, 2**40, 9999, 1024),
    ],
)
def test_cuda(per_image: int, free: int, images: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = ([2, 4, 8], [2**20 + n * per_image for n in (2, 4, 8)])
    monkeypatch.setattr(autobatch, "measure_cuda", lambda *args: points)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**41))
    assert check_train_batch_size(nn.Conv2d(3, 1, 1), 32, CUDA, images) == batch


@pytest.mark.parametrize(("points", "images", "batch"), [(([2], [100]), 1000, 16), (([2, 4], [9, 9]), 10, 10)])
def test_cuda_falls_back(
    points: tuple[list[int], list[int]], images: int, batch: int,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(autobatch, "measure_cuda", lambda *args: points)
    assert check_train_batch_size(nn.Conv2d(3, 1, 1), 32, CUDA, images) == batch
    assert "could not be measured" in caplog.text and caplog.records[0].levelno == logging.WARNING


def test_out_of_memory_ends_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            if len(x) > 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return [super().forward(x)]

    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    for name, value in (("empty_cache", None), ("reset_peak_memory_stats", None), ("memory_allocated", 30)):
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    peaks = iter((130, 230, 330))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))
    assert measure_cuda(Greedy(3, 1, 1), 32, CPU) == ([2, 4], [100, 200])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_line_on_a_gpu_foretells_a_larger_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("yolov5_shufflenet.yaml").to(CUDA)
    per_image, fixed = memory_line(*measure_cuda(model, 320, CUDA))
    monkeypatch.setattr(autobatch, "PROBES_CUDA", (48,))
    _, (peak,) = measure_cuda(model, 320, CUDA)
    assert 0.7 < (fixed + 48 * per_image) / peak < 1.4
    assert check_train_batch_size(model, 320, CUDA, 40) == 16  # one probe makes no line
    monkeypatch.undo()
    assert check_train_batch_size(model, 320, CUDA, 40) == 40


@pytest.mark.parametrize(("free", "images", "enough"), [(2**40, 64, True), (2**20, 64, False), (None, 1, False)])
def test_whether_the_memory_suffices(
    free: int | None, images: int, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autobatch, "available_memory", lambda: free)
    assert autobatch.memory_suffices(Model("yolov5_shufflenet.yaml"), 64, images) is enough
