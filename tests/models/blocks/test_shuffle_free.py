"""The shuffle-free form of networks: the same outputs, no shuffle left."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.blocks.shuffle_free import Reorder, permute_inputs
from models.yolo import DetectionModel

SHUFFLED = ("yolov5_shufflenet", "yolov5_stem_shufflenet", "yolov5_shufflenet_slimneck", "yolov5lite_s",
            "yolov5n_gsconv", "yolov5n_slimneck", "yolov5s_slimneck_c")  # fmt: skip
HEAD = [[10, 13, 16, 30, 33, 23]]


class Operations(TorchDispatchMode):
    """Counts what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def lively(cfg: str | dict) -> DetectionModel:
    """A network in which each channel differs from the next: norms at random, a head that does not hide it."""
    torch.manual_seed(0)
    model = DetectionModel(cfg).eval()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
                m.weight.uniform_(0.5, 2)
                m.bias.normal_(0, 0.3)
        for conv in model.model[-1].m:
            conv.weight.normal_(0, 0.1)
    return model


@torch.no_grad()
def raw_maps(model: DetectionModel, x: Tensor) -> Tensor:
    return torch.cat([m.flatten() for m in model(x)[1]])


@torch.no_grad()
def shuffles(model: DetectionModel, x: Tensor) -> int:
    with Operations() as seen:
        model(x)
    return seen.counts["transpose"] + seen.counts["index_select"]  # the head has permute, not transpose


@pytest.mark.parametrize("name", [*SHUFFLED, "yolov5n"])
def test_the_same_without_shuffles(name: str) -> None:
    model = lively(name + ".yaml")
    x = torch.rand(2, 3, int(model.stride.max()) * 2, int(model.stride.max()))
    deployed = copy.deepcopy(model).deploy()
    expected = raw_maps(model, x)
    assert expected.std() > 0.1
    torch.testing.assert_close(raw_maps(deployed, x), expected, rtol=1e-4, atol=1e-4)
    last = deployed.to(memory_format=torch.channels_last)
    torch.testing.assert_close(raw_maps(last, x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
    assert (shuffles(model, x) > 0) == (name in SHUFFLED)
    assert shuffles(deployed, x) == 0


def config(*rows: list, detect: int = -1, width: int = 16) -> dict:
    backbone = [[-1, 1, "Conv", [width, 3, 2]]]
    return {"nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": HEAD, "backbone": backbone,
            "head": [*rows, [[detect], 1, "Detect", ["nc", "anchors"]]]}  # fmt: skip


UNIT2, UNIT1 = [-1, 1, "InvertedResidual", [32, 2]], [-1, 3, "InvertedResidual", [32, 1]]
UNUSUAL = {
    "an odd half": ([[-1, 1, "InvertedResidual", [24, 2]], [-1, 5, "InvertedResidual", [24, 1]]], 0),
    "no unit of stride 2": ([[-1, 4, "InvertedResidual", [16, 1]]], 0),
    "a unit of stride 2 alone": ([UNIT2], 0),
    "several of stride 2 in one row": ([[-1, 2, "InvertedResidual", [32, 2]], UNIT1], 0),
    "one of stride 1 after another row of them": ([UNIT2, UNIT1, UNIT1], 0),
    "read by a later layer too": ([UNIT2, UNIT1, [[-1, 1], 1, "Concat", [1]]], 1),
    "two stages": ([UNIT2, UNIT1, [-1, 1, "InvertedResidual", [48, 2]], [-1, 2, "InvertedResidual", [48, 1]]], 0),
    "read by a grouped convolution": ([UNIT2, UNIT1, [-1, 1, "DWConv", [32, 3]]], 1),
    "read by a shortcut": ([UNIT2, UNIT1, [-1, 1, "Bottleneck", [32]]], 1),
    "read by pooling": ([UNIT2, UNIT1, [-1, 1, "nn.MaxPool2d", [2]]], 0),
    "GSConv in a row": ([[-1, 3, "GSConv", [32, 3, 1]]], 0),
    "GSConv with groups": ([[-1, 1, "GSConv", [32, 3, 1]], [-1, 1, "GSConv", [32, 3, 1, 4]]], 1),
    "normative shuffle": ([[-1, 1, "GSConv", [32]], [-1, 1, "GSConvns", [32]]], 0),
    "bottlenecks": ([[-1, 1, "GSConv", [32]], [-1, 2, "GSBottleneck", [32]]], 0),
    "cheap bottlenecks": ([[-1, 1, "GSConv", [32]], [-1, 1, "GSBottleneckC", [32]]], 0),
    "a wider cheap bottleneck": ([[-1, 1, "GSBottleneckC", [32]]], 0),
    "cheap one-shot aggregation": ([[-1, 3, "VoVGSCSPC", [32]], [-1, 1, "VoVGSCSP", [32]]], 0),
    "concatenated beside one in order": ([UNIT2, UNIT1, [0, 1, "Conv", [8, 3, 2]], [[-1, -2], 1, "Concat", [1]],
                                          [-1, 1, "SPPF", [32]]], 0),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "gathers"), UNUSUAL.values(), ids=UNUSUAL)
def test_any_config_gives_the_same(rows: list, gathers: int) -> None:
    model = lively(config(*rows))
    x = torch.rand(2, 3, 64, 64)
    deployed = copy.deepcopy(model).deploy()
    torch.testing.assert_close(raw_maps(deployed, x), raw_maps(model, x), rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, Reorder) for m in deployed.modules()) == gathers


def test_a_wrong_order_would_be_seen() -> None:
    model = lively("yolov5_shufflenet.yaml")
    deployed = copy.deepcopy(model).deploy()
    x = torch.rand(1, 3, 64, 64)
    head = deployed.model[-1].m[0]
    permute_inputs(head, torch.arange(head.in_channels).roll(1))
    assert (raw_maps(deployed, x) - raw_maps(model, x)).abs().max() > 0.05
