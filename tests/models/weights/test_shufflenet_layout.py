"""ShuffleNetV2 in its authors' layout, in a plain implementation, against our backbone with its converted weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import with_random_norms
from torch import Tensor, nn

from models.weights.imagenet import load_backbone
from models.weights.shufflenet_layout import as_torchvision, is_authors_layout
from models.yolo import Model
from utils.errors import UserError

STAGES = (4, 8, 4)


class Unit(nn.Module):
    """The authors' unit: it shuffles at its start, and the even channels pass on."""

    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        half = oup // 2
        given = inp if stride == 2 else half
        self.stride = stride
        self.branch_main = nn.Sequential(
            nn.Conv2d(given, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())  # fmt: skip
        self.branch_proj = nn.Sequential(
            nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False), nn.BatchNorm2d(inp),
            nn.Conv2d(inp, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()) if stride == 2 else None  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        return torch.cat((x[:, ::2], self.branch_main(x[:, 1::2])), 1)


class Authors(nn.Module):
    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]),
                                        nn.ReLU())  # fmt: skip
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for k, count in enumerate(STAGES):
            units = [Unit(widths[k] if not n else widths[k + 1], widths[k + 1], 1 if n else 2) for n in range(count)]
            setattr(self, f"stage{k + 2}", nn.Sequential(*units))
        self.conv_last = nn.Conv2d(widths[-1], 1024, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.maxpool(self.first_conv(x)), []
        for k in range(len(STAGES)):
            x = getattr(self, f"stage{k + 2}")(x)
            found.append(x)
        return found


def authors(widths: tuple[int, ...]) -> Authors:
    torch.manual_seed(0)
    model = Authors(widths).eval()
    return with_random_norms(model)


def ours(model: Model, x: Tensor) -> list[Tensor]:
    """The outputs of the layers before each stride, and of the last layer of the backbone."""
    found, places = [], {len(model.yaml["backbone"]) - 1}
    layers = list(model.model)[: len(model.yaml["backbone"])]
    places |= {i - 1 for i, m in enumerate(layers) if i > 1 and getattr(m, "stride", 1) == 2}
    for i, m in enumerate(layers):
        x = m(x)
        if i in places:
            found.append(x)
    return found[-3:]


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize(
    ("cfg", "widths"),
    [("yolov5_shufflenet_x0_5.yaml", (24, 48, 96, 192)), ("yolov5_shufflenet_x1_0.yaml", (24, 116, 232, 464)),
     ("yolov5_shufflenet_x1_5.yaml", (24, 176, 352, 704)), ("yolov5_shufflenet_x2_0.yaml", (24, 244, 488, 976))],
)  # fmt: skip
def test_every_stage_gives_the_same_in_another_order(cfg: str, widths: tuple[int, ...], features: bool) -> None:
    theirs = authors(widths)
    state = theirs.state_dict()
    if features:
        starts = {2: 0, 3: STAGES[0], 4: STAGES[0] + STAGES[1]}
        state = {
            k if not k.startswith("stage") else f"features.{starts[int(k[5])] + int(k.split('.')[1])}."
            + k.split(".", 2)[2]: v for k, v in state.items()}  # fmt: skip
    assert is_authors_layout(state)
    model = Model(cfg, nc=2).eval()
    load_backbone(model, state, "x.pth")
    _, orders = as_torchvision(state)
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for expected, found, order in zip(theirs(x), ours(model, x), orders, strict=True):
            assert sorted(order.tolist()) == list(range(len(order)))
            torch.testing.assert_close(found, expected[:, order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("stage3.2.branch_main.0.weight"), "stage3.2.branch2.0.weight is missing"),
        (lambda s: s.update({"stage2.1.branch_main.5.weight": torch.zeros(3, 24, 1, 1)}), "is 3 x 24 x 1 x 1"),
        (lambda s: s.update({"stage2.0.branch_main.5.weight": torch.zeros(0)}), "not a state dict|does not fit|widths"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("stage4")], "not a state dict"),
        (lambda s: s.update({"stage2.9.branch_main.x": torch.zeros(3)}), "does not fit|not a state dict"),
        (lambda s: s.update({"stage2.0.branch_main.5.weight": torch.tensor(1.0)}), "not a state dict|does not fit"),
        (lambda s: s.update({"stage2.0.branch_main.5.weight": torch.zeros(23, 24, 1, 1)}), "x.pth: .* writes 23 chan"),
        (lambda s: s.update({"stage2.0.branch_main.5.weight": torch.zeros(22, 24, 1, 1)}), "widths"),
        (lambda s: s["stage4.3.branch_main.6.bias"].fill_(torch.nan), "not finite"),
    ],
)
def test_damaged_files_are_told(change: object, message: str, tmp_path: Path) -> None:
    state = dict(authors((24, 48, 96, 192)).state_dict())
    change(state)
    with pytest.raises(UserError, match=message) as e:
        load_backbone(Model("yolov5_shufflenet_x0_5.yaml", nc=2), state, "x.pth")
    assert "\n" not in str(e.value)
