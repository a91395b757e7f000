"""Starting from other weights: what fits is taken, head rows by class name, and it is said what was not."""

from __future__ import annotations

import pytest
import torch

from models.weights.checkpoint import weights_content
from models.weights.transfer import merge_head, same_classes, transfer_weights
from models.yolo import Model
from utils.errors import UserError
from utils.settings.dataset import load_data

HEAD = "model.21.m.0"


def named(names: list[str], cfg: str = "yolov5_shufflenet.yaml", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = Model(cfg, nc=len(names))
    model.names = dict(enumerate(names))
    return model


def rows(model: Model, part: str = "weight") -> torch.Tensor:
    tensor = model.state_dict()[f"{HEAD}.{part}"]
    return tensor.reshape(3, 5 + len(model.names), -1)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (["person", "car"], ["car", "person"], {0: 1, 1: 0}),
        (["tvmonitor", "sofa"], ["couch", "x", "tv"], {0: 2, 1: 0}),
        (["aeroplane", "motorbike"], ["airplane", "motorcycle"], {0: 0, 1: 1}),
        (["Potted Plant"], ["potted_plant"], {0: 0}),
        (["diningtable", "train"], ["dining table", "Train"], {0: 0, 1: 1}),
        (["cat"], ["caterpillar"], {}),
        (["0", "1"], ["a", "b"], {}),
        (["a", "b"], ["0", "1"], {}),
        (["0", "1", "A"], ["A", "1", "0"], {0: 2, 1: 1, 2: 0}),
        (["a", "A", "b"], ["A", "b", "a"], {0: 2, 1: 0, 2: 1}),
        (["sofa", "couch"], ["couch", "sofa"], {0: 1, 1: 0}),
        (["sofa", "couch"], ["couch"], {1: 0}),
        (["left", "le-ft"], ["LEFT"], {0: 0}),
        ([], ["a"], {}),
    ],
)
def test_same_classes(ours: list[str], theirs: list[str], expected: dict[int, int]) -> None:
    assert same_classes(dict(enumerate(ours)), dict(enumerate(theirs))) == expected


def test_all_twenty_voc_classes_are_among_cocos() -> None:
    coco = """person bicycle car motorcycle airplane bus train boat bird cat dog horse sheep cow bottle chair couch tv
              potted-plant dining-table traffic-light""".replace("-", " ").split()
    coco = [*coco[:18], "potted plant", "dining table", "traffic light"]
    assert len(same_classes(load_data("VOC.yaml").names, dict(enumerate(coco)))) == 20


def test_merge_head_row_by_row() -> None:
    own = torch.arange(2 * 7.0)  # two anchors, two classes
    new = 100 + torch.arange(2 * 8.0)  # two anchors, three classes
    merged = merge_head(own, new, 2, {1: 0})
    assert merged.tolist() == [100, 101, 102, 103, 104, 5, 105, 108, 109, 110, 111, 112, 12, 113]


def test_head_rows_of_shared_names_are_carried_over(caplog: pytest.LogCaptureFixture) -> None:
    source, target = named(["green", "RED", "blue"]), named(["blue", "white", "red", "black"], seed=1)
    fresh = rows(target).clone()
    with caplog.at_level("INFO"):
        result = transfer_weights(target, weights_content(source, 64, half=False), "a.pt")
    theirs, ours = rows(source), rows(target)
    assert torch.equal(ours[:, :5], theirs[:, :5])
    assert torch.equal(ours[:, 5], theirs[:, 7]) and torch.equal(ours[:, 7], theirs[:, 6])
    assert torch.equal(ours[:, [6, 8]], fresh[:, [6, 8]])
    assert torch.equal(rows(target, "bias")[:, 5], rows(source, "bias")[:, 7])
    assert result.classes == {"blue": "blue", "red": "RED"} and len(result.parts) == 6
    assert "classes by name: blue, red from RED; not loaded: model.21.anchors" in caplog.text


def test_classes_in_another_order_change_places() -> None:
    """As many classes, so the shapes fit; taken as they are, each class would begin as another."""
    source, target = named(["a", "b"]), named(["b", "a"], seed=1)
    transfer_weights(target, weights_content(source, 64, half=False), "a.pt")
    assert torch.equal(rows(target)[:, 5], rows(source)[:, 6]) and torch.equal(rows(target)[:, 6], rows(source)[:, 5])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(["a", "b"], ["a", "b"]), (["a", "b"], ["0", "1"]), (["0", "1"], ["a", "b"]), (["0", "1"], ["0", "1"]),
     (["7", "a", "A", "le-ft", "left"],) * 2],
)  # fmt: skip
def test_the_same_names_or_none_take_the_head_as_it_is(theirs: list[str], ours: list[str]) -> None:
    source, target = named(theirs), named(ours, seed=1)
    result = transfer_weights(target, weights_content(source, 64, half=False), "a.pt")
    assert not result.parts and torch.equal(rows(target), rows(source))


def test_as_many_classes_of_which_some_are_others() -> None:
    source, target = named(["a", "x"]), named(["a", "y"], seed=1)
    fresh = rows(target).clone()
    transfer_weights(target, weights_content(source, 64, half=False), "a.pt")
    assert torch.equal(rows(target)[:, 5], rows(source)[:, 5]) and torch.equal(rows(target)[:, 6], fresh[:, 6])


@pytest.mark.parametrize("names", [["x", "y", "z"], ["x", "y"]])
def test_no_shared_name_takes_boxes_and_objectness(names: list[str]) -> None:
    source, target = named(["a", "b"]), named(names, seed=1)
    fresh = rows(target).clone()
    transfer_weights(target, weights_content(source, 64, half=False), "a.pt")
    assert torch.equal(rows(target)[:, :5], rows(source)[:, :5]) and torch.equal(rows(target)[:, 5:], fresh[:, 5:])


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"]])
def test_a_fresh_head(names: list[str]) -> None:
    source, target = named(["a", "b"]), named(names, seed=1)
    fresh = rows(target).clone()
    result = transfer_weights(target, weights_content(source, 64), "a.pt", fresh_head=True)
    total = len(target.state_dict())
    assert (len(result.whole), len(result.parts), len(result.left)) == (total - 7, 0, 7)  # six of the head, anchors
    assert torch.equal(rows(target), fresh)
    assert torch.equal(target.state_dict()["model.0.conv1.0.weight"],
                       source.state_dict()["model.0.conv1.0.weight"].half().float())  # fmt: skip


def test_anchors_only_when_asked() -> None:
    source, target = named(["a"]), named(["a"])
    source.model[-1].anchors += 1
    transfer_weights(target, weights_content(source, 64), "a.pt")
    assert not torch.equal(target.model[-1].anchors, source.model[-1].anchors)
    transfer_weights(target, weights_content(source, 64, half=False), "a.pt", anchors=True)
    assert torch.equal(target.model[-1].anchors, source.model[-1].anchors)


def test_another_config_takes_what_fits_and_says_so_by_layer(caplog: pytest.LogCaptureFixture) -> None:
    source, target = named(["a"], "yolov5n.yaml"), named(["a"], "yolov5n_slimneck.yaml", seed=1)
    with caplog.at_level("INFO"):
        result = transfer_weights(target, weights_content(source, 64), "a.pt", verbose=True)
    assert 0 < len(result.whole) < len(target.state_dict()) and result.left
    assert torch.equal(target.state_dict()["model.0.conv.weight"], source.state_dict()["model.0.conv.weight"].half())
    table = [line.split() for line in caplog.text.splitlines() if line.split()[1:2] == ["VoVGSCSP"]]
    assert table and all(int(row[2]) + int(row[3]) + int(row[4]) > 0 for row in table)


def test_counters_and_biases_come_with_their_weights(caplog: pytest.LogCaptureFixture) -> None:
    """Between two widths only these have equal shapes; counted, they would look like half a network."""
    source, target = named(["a", "b"], "yolov5n.yaml"), named(["a"], "yolov5s.yaml")
    with pytest.raises(UserError, match="a.pt: no tensor fits"):
        transfer_weights(target, weights_content(source, 64), "a.pt")
    content = weights_content(source, 64)
    for key in ("model.0.conv.weight", "model.0.bn.weight"):
        content["model"][key] = torch.ones_like(target.state_dict()[key])
    with caplog.at_level("INFO"):
        result = transfer_weights(target, content, "a.pt")
    assert result.whole == ["model.0.conv.weight", "model.0.bn.weight", "model.0.bn.num_batches_tracked"]
    assert "0% of the parameters were loaded, training starts almost from scratch" in caplog.text


def test_nothing_fits() -> None:
    with pytest.raises(UserError, match="x.pt: no tensor fits"):
        transfer_weights(named(["a"]), {"model": {}, "names": {0: "a"}}, "x.pt")
