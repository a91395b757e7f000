"""Arguments in the rows of a model yaml as people write them: the right module, or one line naming the argument."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.common import Conv
from models.row_arguments import parse_activation
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.settings.config import load_model_cfg


def with_row(*row: object, **keys: object) -> dict:
    """The config of yolov5n with another first row."""
    cfg = {**load_model_cfg("yolov5n.yaml"), **keys}
    return {**cfg, "backbone": [[-1, 1, *row], *cfg["backbone"][1:]]}


def first(cfg: dict) -> nn.Module:
    return DetectionModel(cfg, nc=1).model[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nn.ReLU()", nn.ReLU(inplace=True)),
        ("nn.ReLU", nn.ReLU(inplace=True)),
        ("ReLU", nn.ReLU(inplace=True)),
        ("torch.nn.ReLU6()", nn.ReLU6(inplace=True)),
        ("nn.ReLU(inplace=True)", nn.ReLU(inplace=True)),
        ("nn.ReLU(True)", nn.ReLU(inplace=True)),
        (" nn.SiLU( inplace = False ) ", nn.SiLU(inplace=True)),
        ("nn.LeakyReLU(0.1)", nn.LeakyReLU(0.1, inplace=True)),
        ("nn.LeakyReLU(1e-1, inplace=True)", nn.LeakyReLU(0.1, inplace=True)),
        ("nn.LeakyReLU(negative_slope=.2)", nn.LeakyReLU(0.2, inplace=True)),
        ("nn.ELU(alpha=2)", nn.ELU(2.0, inplace=True)),
        ("nn.GELU()", nn.GELU()),
        ("nn.Identity()", nn.Identity()),
        (None, None),
    ],
)
def test_activations(text: str | None, expected: nn.Module | None) -> None:
    assert repr(parse_activation(text)) == repr(expected)
    if text:
        assert repr(first(with_row("Conv", [64, 6, 2, 2, 1, 1, text])).act) == repr(expected)


@pytest.mark.parametrize(
    "text",
    ["nn.Evil()", "nn.ReLU().__class__", "nn.LeakyReLU(0.1)(2)", "nn.LeakyReLU(a)", "nn.LeakyReLU(1.2.3)",
     "nn.LeakyReLU(0.1, 0.2)", "nn.ReLU(0.1)", "nn.ELU(negative_slope=1)", "nn.GELU('tanh')", "nn.ReLU(())", "", "(",
     "x" * 10**6, "nn.ReLU(" + "True," * 10**5 + ")", "nn.LeakyReLU(__import__('os').system('true'))"],
)  # fmt: skip
def test_activations_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="activation") as e:
        parse_activation(text)
    assert len(str(e.value)) < 400
    with pytest.raises(UserError, match="layer 0 .*"):
        first(with_row("Conv", [64, 6, 2, 2, 1, 1, text]))


@pytest.mark.parametrize(
    ("args", "kernel", "stride", "padding"),
    [
        ([64, [3, 3], 2], (3, 3), (2, 2), (1, 1)),
        ([64, [3, 3], [2, 2], [1, 1], 1, [1, 1]], (3, 3), (2, 2), (1, 1)),
        ([64, [5, 3], 2], (5, 3), (2, 2), (2, 1)),
        ([64, [1, 7], 2, [0, 3]], (1, 7), (2, 2), (0, 3)),
        ([64, 3, 2, "None"], (3, 3), (2, 2), (1, 1)),
        ([64, 3, 2, None], (3, 3), (2, 2), (1, 1)),
    ],
)
def test_kernels(args: list, kernel: tuple, stride: tuple, padding: tuple) -> None:
    conv = first(with_row("Conv", args)).conv
    assert (conv.kernel_size, conv.stride, conv.padding) == (kernel, stride, padding)


def test_a_square_pair_gives_the_same_network() -> None:
    torch.manual_seed(0)
    one = DetectionModel(with_row("Conv", [64, 3, 2]), nc=1).eval()
    two = DetectionModel(with_row("Conv", [64, [3, 3], [2, 2]]), nc=1).eval()
    two.load_state_dict(one.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(one(x)[0], two(x)[0])


@pytest.mark.parametrize(
    "row", [("DWConv", [64, [3, 3], 2, 1, "nn.ReLU()"]), ("StemBlock", [32, [3, 3], 2, None, 1, 1, "nn.ReLU()"]),
            ("GSConv", [32, [3, 3], 2, 1, "nn.ReLU()"]), ("GSConvns", [32, 3, 2, 1, "nn.ReLU()"])],
)  # fmt: skip
def test_every_block_with_an_act_takes_its_text(row: tuple) -> None:
    convs = [m for m in first(with_row(*row)).modules() if isinstance(m, Conv)]
    assert convs and all(isinstance(m.act, nn.ReLU) for m in convs)


def test_each_copy_has_its_own_activation_and_the_yaml_key_leaves_it() -> None:
    cfg = with_row("Conv", [64, 3, 2, None, 1, 1, "nn.ReLU()"], activation="nn.Mish()")
    cfg["backbone"][1] = [-1, 9, "Conv", [64, 3, 1, None, 1, 1, "nn.ReLU()"]]
    cfg["backbone"][2] = [-1, 1, "Conv", [64, 3, 2]]
    layers = DetectionModel(cfg, nc=1).model
    acts = [conv.act for conv in layers[1]]
    assert isinstance(layers[0].act, nn.ReLU) and isinstance(layers[2].act, nn.Mish)
    assert len(acts) == 3 and len(set(map(id, acts))) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("Conv", [64, 6, 2, "2"]), "argument 'p' is the text '2', it must be a whole number; the arguments of Conv "
         "are: k, s, p, g, d, act"),
        (("Conv", [64, "3", 2]), "argument 'k' is the text '3', it must be a whole number"),
        (("Conv", [64, 3.0, 2]), "argument 'k' is 3.0, it must be a whole number"),
        (("Conv", [64, {"k": 3}, 2]), "argument 'k' is {'k': 3}, it must be a whole number"),
        (("Conv", [64, [3, 3, 3], 2]), "argument 'k' is [3, 3, 3], it must be a whole number or two"),
        (("Conv", [64, [3, "3"], 2]), "argument 'k' is [3, '3'], it must be a whole number or two"),
        (("Conv", [64, None, 2]), "(with k None, s 2)"),
        (("Conv", [32, 3, 2, "None", 1, "nn.LeakyReLU(0.1)"]), "argument 'd' is the text 'nn.LeakyReLU(0.1)'"),
        (("Conv", [32, 3, 2, None, [1, 2]]), "argument 'g' is [1, 2], it must be one whole number"),
        (("Conv", [32, 3, 2, None, 1, 1, ["nn.ReLU()"]]), "argument 'act' is ['nn.ReLU()'], it must be an activation"),
        (("Conv", [32, 3, 2, None, 1, 1, "relu"]), "'act' is wrong: unknown activation 'relu' (did you mean 'ReLU'"),
        (("C3", [32, "no"]), "argument 'shortcut' is the text 'no', it must be True or False"),
        (("C3", [32, False, 1, "0.5"]), "argument 'e' is the text '0.5', it must be a number"),
        (("InvertedResidual", [32, "2"]), "argument 'stride' is the text '2'"),
        (("CRM", [32, [3, 5], 2]), "argument 'k' is [3, 5], it must be one whole number"),
        (("Conv", [64, [100000, 100001], 2]), "it needs 480,004,800,032 parameters"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(row: tuple, message: str) -> None:
    with pytest.raises(UserError) as e:
        first(with_row(*row))
    assert message in str(e.value) and "layer 0 " in str(e.value) and "yolov5n.yaml" in str(e.value)
    assert "\n" not in str(e.value)


def test_what_torch_takes_is_left_to_it() -> None:
    assert first(with_row("Conv", [64, 3, 1, "same"])).conv.padding == "same"
    assert first(with_row("nn.Upsample", [None, "2", "nearest"])).scale_factor == 2
    assert first(with_row("nn.MaxPool2d", [[2, 2]])).kernel_size == [2, 2]
    assert isinstance(first(with_row("Conv", [64, 3, 2, None, 1, 1, "None"])).act, nn.Identity)


@pytest.mark.parametrize(
    ("keys", "ch", "channels"), [({}, None, 3), ({"ch": 1}, None, 1), ({"ch": 1}, 3, 3), ({}, 4, 4)]
)
def test_input_channels(keys: dict, ch: int | None, channels: int) -> None:
    model = DetectionModel(with_row("Conv", [64, 6, 2, 2], **keys), ch=ch, nc=1)
    assert model.model[0].conv.in_channels == model.yaml["ch"] == channels
