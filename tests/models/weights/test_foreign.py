"""Checkpoints that are pickled networks: YOLOv5's, YOLOv5-Lite's, forks'. None of their code runs."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import GOLDEN, golden, shared
from torch import nn

import detect
import models.common
import train
import val
from models.common import CRM, InvertedResidual
from models.inference.hub import load_custom
from models.inference.runtime import load_runtime
from models.weights.checkpoint import (
    load_checkpoint,
    load_tensors,
    model_from_checkpoint,
    save_checkpoint,
    weights_content,
)
from models.weights.foreign import foreign_content
from models.weights.unpickle import Inert
from models.yolo import Model
from my_tools.convert_weights import run as convert
from utils.boxes import scale_boxes
from utils.data.augment import letterbox
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression

CPU = torch.device("cpu")


def randomised(cfg: str, nc: int = 3) -> Model:
    """A model whose batch norms have statistics, so that their eps matters."""
    torch.manual_seed(0)
    model = Model(cfg, nc=nc).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.01, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    model.names = {i: f"class {i}" for i in range(nc)}
    return model


def pickled(model: Model, path: Path, **others) -> Path:
    """A checkpoint as YOLOv5 writes it: the network itself, pickled."""
    torch.save({"epoch": 7, "best_fitness": None, "model": model, "ema": None, **others}, path)
    return path


def output(model: Model) -> torch.Tensor:
    return model(torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))[0]


@pytest.mark.parametrize("cfg", ["yolov5n.yaml", "yolov5_shufflenet.yaml", "yolov5n_slimneck.yaml"])
def test_a_pickled_network_gives_the_same_output(tmp_path: Path, cfg: str) -> None:
    model = randomised(cfg)
    content = load_checkpoint(pickled(model, tmp_path / "a.pt"))
    assert (content["kind"], content["epoch"], content["names"]) == ("weights", 7, model.names)
    again = model_from_checkpoint(content)
    assert list(again.state_dict()) == list(model.state_dict())
    assert torch.equal(output(again), output(model))
    assert again.names == model.names


def test_smoothed_weights_and_the_image_size_are_taken(tmp_path: Path) -> None:
    model, ema = randomised("yolov5_shufflenet.yaml"), randomised("yolov5_shufflenet.yaml")
    ema.model[0].conv1[0].weight.data += 1
    file = pickled(model, tmp_path / "a.pt", ema=ema, opt={"imgsz": 320})
    assert torch.equal(load_checkpoint(file)["model"]["model.0.conv1.0.weight"], ema.model[0].conv1[0].weight)
    assert load_runtime(file, CPU).imgsz == 320
    file = pickled(model, tmp_path / "b.pt", ema=torch.ones(2), opt={"imgsz": 10**9})
    assert torch.equal(load_checkpoint(file)["model"]["model.0.conv1.0.weight"], model.model[0].conv1[0].weight)
    assert load_runtime(file, CPU).imgsz == 640


def test_another_eps_and_activation_are_kept(tmp_path: Path) -> None:
    model = randomised("yolov5n.yaml")
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 0.02
        if isinstance(m, models.common.Conv):
            m.act = nn.LeakyReLU(0.1)
    again = model_from_checkpoint(load_checkpoint(pickled(model, tmp_path / "a.pt")))
    torch.testing.assert_close(output(again), output(model), rtol=1e-4, atol=1e-4)
    assert again.yaml["activation"] == "nn.LeakyReLU(0.1)"


def test_blocks_of_yolov5_lite_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised("yolov5lite_s.yaml", nc=2)
    expected = output(model)
    for name, ours in (("conv_bn_relu_maxpool", CRM), ("Shuffle_Block", InvertedResidual)):
        theirs = type(name, (nn.Module,), {"__module__": "models.common"})
        monkeypatch.setattr(models.common, name, theirs, raising=False)
        for m in [m for m in model.modules() if type(m) is ours]:
            m.__class__ = theirs
            if name != "Shuffle_Block":
                m._modules = OrderedDict(("conv" if k == "conv1" else k, v) for k, v in m._modules.items())
    model.yaml["backbone"] = [[*r[:2], {"CRM": "conv_bn_relu_maxpool", "InvertedResidual": "Shuffle_Block"}[r[2]], r[3]]
                              for r in model.yaml["backbone"]]  # fmt: skip
    model.model[-1].register_buffer("anchor_grid", torch.ones(3, 1, 3, 1, 1, 2))
    again = model_from_checkpoint(load_checkpoint(pickled(model, tmp_path / "lite.pt")))
    assert torch.equal(output(again), expected)


def test_yolov5_lite_config() -> None:
    model = Model("yolov5lite_s.yaml")
    assert sum(p.numel() for p in model.parameters()) == 1_649_853 and model.stride.tolist() == [8, 16, 32]


def test_official_forward_pass() -> None:
    model = model_from_checkpoint(load_checkpoint(shared("weights/yolov5n.pt")))
    reference = golden("yolov5n_forward.npz")
    y = model(torch.from_numpy(reference["x"]))[0].detach().numpy()
    np.testing.assert_allclose(y[..., :4], reference["y"][..., :4], atol=1e-3)
    np.testing.assert_allclose(y[..., 4:], reference["y"][..., 4:], atol=1e-5)


@pytest.mark.parametrize("weights", ["yolov5n.pt", "v5lite-s.pt"])
@pytest.mark.parametrize("photograph", ["bus.jpg", "zidane.jpg"])
def test_official_detections(weights: str, photograph: str) -> None:
    runtime = load_runtime(shared(f"weights/{weights}"), CPU)
    file = "yolov5n_detect.json" if weights == "yolov5n.pt" else "v5lite_s_detect.json"
    reference = json.loads((GOLDEN / file).read_text())[photograph]
    im0 = cv2.imread(str(shared(f"images/{photograph}")))
    im, ratio, pad = letterbox(im0, (640, 640), stride=32, auto=True)
    assert [list(im.shape[:2]), list(ratio), list(pad)] == [reference[k] for k in ("letterboxed", "ratio", "pad")]
    x = torch.from_numpy(np.ascontiguousarray(im[..., ::-1].transpose(2, 0, 1)))[None]
    found = non_max_suppression(runtime.predict(x), 0.25, 0.45)[0]
    scale_boxes(x.shape[2:], found[:, :4], im0.shape[:2])
    expected = np.array(reference["dets"])
    assert found[:, 5].tolist() == expected[:, 5].tolist()
    np.testing.assert_allclose(found[:, :4].round(), expected[:, :4], atol=1)
    np.testing.assert_allclose(found[:, 4], expected[:, 4], atol=0.005)


def stand_in(**state) -> Inert:
    return Inert("models.yolo.Model", state={"_parameters": {}, "_buffers": {}, "_modules": {}, **state})


ROWS = {"nc": 1, "backbone": [], "head": [], "anchors": [[1, 2]]}
BOTH = torch.ones(4)
DEEP: list = []
for _ in range(60):
    DEEP = [DEEP, DEEP]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], "contains a list"),
        ({}, "contains nothing"),
        ({"model": {"a": torch.ones(1)}}, "contains a dict"),
        ({"model": Inert("models.yolo.Model")}, "object of class models.yolo.Model"),
        ({"model": stand_in(yaml={"nc": 3})}, "is invalid"),
        ({"model": stand_in(yaml=ROWS, names=["a", "b"])}, "2 class names for nc 1"),
        ({"model": stand_in(yaml={**ROWS, "head": [5]})}, "is invalid"),
        ({"model": stand_in(yaml=ROWS, _parameters={"weight": "text"})}, "weight is not a tensor"),
        ({"model": stand_in(yaml=ROWS, _modules=None)}, "is invalid"),
        ({"model": stand_in(yaml={**ROWS, "nc": 10**18})}, "not a valid number of classes"),
        ({"model": stand_in(yaml={**ROWS, "nc": "3"})}, "not a valid number of classes"),
        ({"model": stand_in(yaml={**ROWS, "head": DEEP})}, "its config is too large"),
        ({"model": stand_in(yaml=ROWS, names=["a" * 2_000_000])}, "its config is too large"),
        ({"model": stand_in(yaml={**ROWS, "nc": 10**400})}, "an int where a plain value is expected"),
        ({"model": stand_in(yaml=ROWS, _parameters={"a\nerror: b": torch.ones(1)})}, "invalid name"),
        ({"model": stand_in(yaml=ROWS, _modules={"a.b": stand_in()})}, "invalid name"),
        ({"model": stand_in(yaml=ROWS, _parameters={"a": BOTH[:2], "b": BOTH[2:]})}, "shares its storage"),
    ],
)
def test_a_tree_that_is_no_network(tree, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        foreign_content(tree, "x.pt")
    assert str(e.value).startswith("x.pt: ") and "\n" not in str(e.value)


def test_blocks_inside_blocks_without_end() -> None:
    model = innermost = stand_in(yaml=ROWS)
    for _ in range(500):
        child = stand_in()
        innermost.state["_modules"] = {"a": child}
        innermost = child
    with pytest.raises(UserError, match="nested too deeply"):
        foreign_content({"model": model}, "x.pt")


def mixed_activations(model: Model) -> None:
    model.model[9].cv1.act = nn.ReLU()


def another_kernel(model: Model) -> None:
    model.model[2].m[0].cv2.conv.dilation = model.model[2].m[0].cv2.conv.padding = (2, 2)


def another_upsampling(model: Model) -> None:
    model.model[11].mode = "bilinear"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (mixed_activations, "model.9.cv1.act is ReLU in the file and SiLU in this program"),
        (another_kernel, "padding of model.2.m.0.cv2.conv differs from that in this program"),
        (another_upsampling, "mode of model.11 differs"),
    ],
)
def test_a_network_that_computes_something_else_is_refused(change, message: str, tmp_path: Path) -> None:
    model = randomised("yolov5n.yaml")
    change(model)
    with pytest.raises(UserError, match=message):
        load_checkpoint(pickled(model, tmp_path / "a.pt"))


def test_buffers_that_are_not_stored_and_activations_that_are_shared(tmp_path: Path) -> None:
    model = randomised("yolov5n.yaml")
    model.model[0].register_buffer("scratch", torch.ones(3), persistent=False)
    act = nn.SiLU()
    for m in model.modules():
        if isinstance(m, models.common.Conv):
            m.act = act
    again = model_from_checkpoint(load_checkpoint(pickled(model, tmp_path / "a.pt")))
    assert torch.equal(output(again), output(model))


def test_anchors_by_their_number(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model("yolov5_shufflenet.yaml", nc=2, anchors=3).eval()
    model.model[-1].anchors += 1
    again = model_from_checkpoint(load_checkpoint(pickled(model, tmp_path / "a.pt")))
    assert torch.equal(output(again), output(model))


def test_a_network_that_contains_itself() -> None:
    model = stand_in(yaml=ROWS)
    model.state["_modules"] = {"a": model, "b": model}
    with pytest.raises(UserError, match="several places"):
        foreign_content({"model": model}, "x.pt")


def test_a_block_we_do_not_have(tmp_path: Path) -> None:
    model = randomised("yolov5n.yaml")
    model.yaml["backbone"][0][2] = "C3Ghost"
    with pytest.raises(UserError, match=r"a.pt: .*layer 0 .*unknown module 'C3Ghost'.*known:"):
        model_from_checkpoint(load_checkpoint(pickled(model, tmp_path / "a.pt")), tmp_path / "a.pt")


def test_strides_that_the_config_does_not_make() -> None:
    content = weights_content(Model("yolov5_shufflenet.yaml", nc=1), 64)
    with pytest.raises(UserError, match="strides"):
        model_from_checkpoint({**content, "stride": [4.0, 8.0, 16.0]})


def test_convert_once(tmp_path: Path) -> None:
    model = randomised("yolov5_shufflenet.yaml").half().float()
    model.model[0].conv1[1].running_var[0] = 1e6  # too large for half precision
    source = pickled(model, tmp_path / "theirs.pt")
    target = convert(source)
    assert target == tmp_path / "theirs_converted.pt"
    content = torch.load(target, weights_only=True)
    assert (content["format"], content["imgsz"], content["names"]) == ("yolov5-light", 640, model.names)
    assert torch.equal(output(model_from_checkpoint(load_checkpoint(target))), output(model))
    with pytest.raises(UserError, match="already exists"):
        convert(source)
    with pytest.raises(UserError, match="already exists"):
        convert(target, target, exist_ok=True)
    assert convert(source, tmp_path / "b.pt").is_file() and convert(source, exist_ok=True) == target
    with pytest.raises(UserError, match="no folder"):
        convert(source, tmp_path / "no/b.pt")


def test_missing_official_weights_say_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"https://github.com/\S+/yolov5s.pt; download it"):
        load_checkpoint(tmp_path / "yolov5s.pt")
    (tmp_path / "v5lite-s.pt").touch()
    with pytest.raises(UserError, match=r"did you mean 'v5lite-s.pt'"):
        load_checkpoint(tmp_path / "v5lite_s")
    with pytest.raises(UserError, match=r"is a folder; give a .pt file in it, such as \S+v5lite-s.pt"):
        load_checkpoint(tmp_path)


def test_the_form_before_torch_1_6(tmp_path: Path) -> None:
    torch.save({"model": randomised("yolov5n.yaml")}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="before PyTorch 1.6"):
        load_checkpoint(tmp_path / "a.pt")


def test_tensors_of_another_program(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "a.pth")
    assert list(load_tensors(tmp_path / "a.pth")) == ["conv.weight"]
    with pytest.raises(UserError, match="not a checkpoint of this program or of YOLOv5"):
        load_checkpoint(tmp_path / "a.pth")
    save_checkpoint(tmp_path / "b.pt", weights_content(randomised("yolov5_shufflenet.yaml"), 64))
    with pytest.raises(UserError, match="not a state dict"):
        load_tensors(tmp_path / "b.pt")


def test_train_starts_from_a_pickled_network(tmp_path: Path, yolo_set: Path) -> None:
    model = randomised("yolov5_shufflenet.yaml", nc=4)
    model.names = {0: "green", 1: "Blue", 2: "white", 3: "RED"}
    file = pickled(model, tmp_path / "theirs.pt")
    train.run(data=str(yolo_set), weights=str(file), epochs=1, imgsz=64, batch_size=4, workers=0,
              project=str(tmp_path), noplots=True, device="cpu", amp="off")  # fmt: skip
    content = load_checkpoint(tmp_path / "exp/weights/best.pt")
    assert content["yaml"]["nc"] == 2 and content["names"] == {0: "red", 1: "blue"}
    with pytest.raises(UserError, match="contains only weights"):
        train.run(resume=str(file))


def test_val_detect_and_the_hub_take_it_too(tmp_path: Path, yolo_set: Path) -> None:
    file = pickled(randomised("yolov5_shufflenet.yaml", nc=2), tmp_path / "theirs.pt")
    flags = {"weights": str(file), "imgsz": 64, "device": "cpu", "project": str(tmp_path)}
    assert val.run(**flags, data=str(yolo_set), batch_size=4, workers=0, noplots=True).images == 12
    folder = detect.run(**flags, source=str(yolo_set.parent / "images/val"), save_txt=True, conf_thres=0.0, max_det=3)
    assert len(list((folder / "labels").iterdir())) == 12
    assert load_custom(file, verbose=False, device="cpu").names == {0: "class 0", 1: "class 1"}
