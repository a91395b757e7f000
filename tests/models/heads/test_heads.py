"""All heads keep one contract, so that everything after them works alike."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from exports import NEEDS, need_packages, network

import export
import hubconf
from models.export.form import ExportForm
from models.export.quantize import layers_of, sensitive_first
from models.heads.anchor_free import AnchorFreeDetect
from models.inference.runtime import Runtime, load_runtime
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint, save_checkpoint, weights_content
from models.weights.transfer import transfer_weights, with_classes
from models.yolo import DetectionModel, layer_table
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression
from utils.settings.config import load_model_cfg

CPU = torch.device("cpu")
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
HEADS = {
    "Detect": ["nc", "anchors"],
    "DecoupledDetect": ["nc", "anchors", 16],
    "DecoupledDetect light": ["nc", "anchors", 16, True],
    "AnchorFreeDetect": ["nc"],
    "AnchorFreeDetect short": ["nc", 8, 16],
    "AnchorFreeDetect plain": ["nc", 4, 16, 2, True],
    "AnchorFreeDetect distances": ["nc", 0, 16],
    "AnchorFreeDetect without branches": ["nc", 4, 16, 0],
}
OF_EACH_KIND = ("DecoupledDetect", "AnchorFreeDetect short", "AnchorFreeDetect distances")


def config(head: str) -> dict:
    """A small trunk whose shuffled maps go straight into the head."""
    cfg = {"nc": 2, "backbone": [[-1, 1, "CRM", [16]], *([-1, 1, "InvertedResidual", [c, 2]] for c in (16, 24, 32))],
           "head": [[[1, 2, 3], 1, head.split()[0], list(HEADS[head])]]}  # fmt: skip
    return cfg if head.startswith("AnchorFree") else {**cfg, "anchors": ANCHORS}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each head."""
    folder, files = tmp_path_factory.mktemp("heads"), {}
    for head in HEADS:
        files[head] = folder / f"{head.replace(' ', '_')}.pt"
        save_checkpoint(files[head], weights_content(network(config(head)), 96))
    return files


@pytest.mark.parametrize("head", HEADS)
def test_contract(head: str) -> None:
    model = network(config(head))
    layer = model.model[-1]
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found, raw = model(x)
        assert isinstance(model.train()(x), list)
    cells = [8 * 12, 4 * 6, 2 * 3]
    assert found.shape == (2, sum(cells) * layer.na, 7) and found.dtype == torch.float32
    assert model.stride.tolist() == [8, 16, 32] and (layer.nc, layer.no, layer.nl) == (2, 7, 3)
    assert [r.shape[:4] for r in raw] == [(2, layer.na, h, w) for h, w in ((8, 12), (4, 6), (2, 3))]
    assert ((found[..., 4:] >= 0) & (found[..., 4:] <= 1)).all() and (found[..., 2:4] >= 0).all()
    if isinstance(layer, AnchorFreeDetect):
        assert (found[..., 4] == 1).all()
    assert len(non_max_suppression(found, 0.01)) == 2
    assert "AnchorFree" not in head or f"3 maps x 1 x {layer.no}" in layer_table(model)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_gradient(head: str) -> None:
    model = network(config(head)).train()
    sum(r.square().sum() for r in model(torch.rand(2, 3, 64, 64))).backward()
    dead = [name for name, p in model.model[-1].named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_exported_form_and_deployment(head: str, fixed: bool) -> None:
    model, x = network(config(head)), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)[0]
        for other in (ExportForm(model, (64, 96) if fixed else None), copy.deepcopy(model).deploy()):
            found = other(x)
            found = found if isinstance(found, torch.Tensor) else found[0]
            torch.testing.assert_close(found, expected, atol=5e-4, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_changes_boxes_and_scores_little(head: str) -> None:
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    exact = Runtime(network(config(head)), CPU).predict(images)
    found = Runtime(network(config(head)), CPU, amp="bf16").predict(images)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert (found - exact)[..., 4:].abs().mean() < 0.02 and (found - exact)[..., :4].abs().mean() < 2


@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.parametrize("head", OF_EACH_KIND)
def test_exports(head: str, kind: str, weights: dict[str, Path], tmp_path: Path) -> None:
    need_packages(kind)
    file = tmp_path / "best.pt"
    file.write_bytes(weights[head].read_bytes())
    (made,) = export.run(weights=str(file), include=[kind], imgsz=[64, 96])
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    found, expected = load_runtime(made, CPU).predict(images), load_runtime(file, CPU).predict(images)
    torch.testing.assert_close(found[..., :4], expected[..., :4], atol=2e-2, rtol=1e-3)
    torch.testing.assert_close(found[..., 4:], expected[..., 4:], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["torchscript", "onnx", "openvino"])
@pytest.mark.parametrize("head", OF_EACH_KIND)
def test_exports_with_nms_and_of_any_size(head: str, kind: str, weights: dict[str, Path], tmp_path: Path) -> None:
    need_packages(kind)
    file = tmp_path / "best.pt"
    file.write_bytes(weights[head].read_bytes())
    (made,) = export.run(weights=str(file), include=[kind], dynamic=True)
    images = torch.randint(0, 256, (1, 3, 96, 64), dtype=torch.uint8)
    torch.testing.assert_close(load_runtime(made, CPU).predict(images), load_runtime(file, CPU).predict(images),
                               atol=2e-2, rtol=1e-3)  # fmt: skip
    if kind == "onnx":
        (made,) = export.run(weights=str(file), include=[kind], imgsz=64, nms=True)  # which compares the boxes
        assert made.exists()


@pytest.mark.parametrize("head", HEADS)
def test_checkpoint_and_transfer(head: str, weights: dict[str, Path]) -> None:
    """A checkpoint gives the same model; another model takes its tensors, class rows by name."""
    content = load_checkpoint(weights[head])
    model, x = model_from_checkpoint(content, weights[head]).eval(), torch.rand(1, 3, 64, 64)
    assert bool(content["anchors"]) == ("AnchorFree" not in head)
    other = DetectionModel(config(head), nc=3).eval()
    other.names = {0: "green", 1: "blue, or 'azure'", 2: "red"}
    other.model[-1].load_state_dict({k: torch.zeros_like(v) for k, v in other.model[-1].state_dict().items()
                                     if "anchors" not in k}, strict=False)  # fmt: skip
    result = transfer_weights(other, content, weights[head], anchors=True)
    assert result.parts and not result.left
    with torch.no_grad():
        theirs, ours = model(x)[0], other(x)[0]
    torch.testing.assert_close(ours[..., [0, 1, 2, 3, 4, 7, 6]], theirs[..., [0, 1, 2, 3, 4, 5, 6]])
    assert (ours[..., 5] == 0.5).all()
    fresh = DetectionModel(config(head), nc=2)
    fresh.names = model.names
    left = transfer_weights(fresh, content, weights[head], fresh_head=True).left
    assert {k.split(".")[1] for k in left} == {"4"}


def test_another_head_takes_the_trunk(weights: dict[str, Path]) -> None:
    model = DetectionModel(config("AnchorFreeDetect"), nc=2)
    result = transfer_weights(model, load_checkpoint(weights["Detect"]), "x.pt")
    assert all(k.startswith("model.4.") for k in result.left)
    assert len(result.whole) == sum(not k.startswith("model.4.") for k in model.state_dict())


def test_a_head_takes_nothing_from_another_kind_whose_tensors_have_its_names() -> None:
    given, other = config("AnchorFreeDetect short"), config("DecoupledDetect light")
    given["head"][-1][3] = ["nc", 8, 16, 2]
    content = weights_content(DetectionModel(given), 64)
    model = DetectionModel(other)
    assert {k for k in content["model"] if k.startswith("model.4.")} & set(model.state_dict())
    result = transfer_weights(model, content, "x.pt")
    assert not [k for k in (*result.whole, *result.parts) if k.startswith("model.4.")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head", HEADS)
def test_boxes_are_decoded_in_float32_whatever_the_network_computes_in(head: str, dtype: torch.dtype) -> None:
    model = network(config(head)).to(dtype)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64, dtype=dtype))[0].dtype == torch.float32


def test_classes_are_converted(weights: dict[str, Path]) -> None:
    head = "AnchorFreeDetect short"
    model = with_classes(load_checkpoint(weights[head]), weights[head], {0: "red", 1: "pink"}, "data.yaml")
    assert model.names == {0: "red", 1: "pink"}


@pytest.mark.parametrize("head", OF_EACH_KIND)
def test_hub(head: str, weights: dict[str, Path]) -> None:
    image = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8).numpy()
    results = hubconf.custom(str(weights[head]), _verbose=False)(image)
    assert results.xyxy[0].shape[1] == 6


def test_decoding_by_hand() -> None:
    head = AnchorFreeDetect(1, 4, 16, 0, ch=[8])
    head.set_strides([16])
    raw = torch.full((1, 1, 1, 2, 17), -30.0)
    for side, value in enumerate((0, 1, 2, 3)):
        raw[0, 0, 0, 1, 4 * side + value] = 30.0  # a distribution that is sure of one value
    raw[..., 16] = 0.0
    # the centre of the second cell is (24, 8) px; distances of 0, 1, 2 and 3 strides to left, top, right, bottom
    assert head.decode(raw, 0)[0, 1].tolist() == pytest.approx([40, 24, 32, 64, 1, 0.5], abs=1e-3)
    plain = AnchorFreeDetect(1, 0, 16, 0, ch=[8])
    plain.set_strides([16])
    raw = torch.zeros(1, 1, 1, 1, 5)
    side = 2 * 16 * math.log(2)
    assert plain.decode(raw, 0)[0, 0].tolist() == pytest.approx([8, 8, side, side, 1, 0.5], abs=1e-3)


def test_initial_scores_suit_the_image_size() -> None:
    model = DetectionModel(config("AnchorFreeDetect"), nc=2).eval()
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, 640, 640))[0][..., 5:].sum()
    assert 3 < scores < 30  # about 5 objects on each of the three maps


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["AnchorFreeDetect", ["nc", 1]], "reg_max is 1, it must be 0 or from 2 to 64"),
        (["AnchorFreeDetect", ["nc", 16, 0]], "width 0"),
        (["AnchorFreeDetect", ["nc", 16, 64, 99]], "depth 99"),
        (["AnchorFreeDetect", ["nc", "many"]], "argument 'reg_max' is the text 'many'"),
        (["AnchorFreeDetect", ["nc", 16, 64, 1, False, 5, 6]], "too many positional arguments"),
        (["DecoupledDetect", ["nc", "anchors", 0]], "width is 0"),
        (["DecoupledDetect", ["nc"]], "missing a required argument"),
        (["AnchorFreDetect", ["nc"]], "did you mean 'AnchorFreeDetect'"),
    ],
)
def test_wrong_rows_are_told(row: list, message: str) -> None:
    cfg = load_model_cfg("yolov5_shufflenet.yaml")
    cfg["head"][-1][2:] = row
    with pytest.raises(UserError, match=message) as e:
        DetectionModel(cfg)
    assert "layer 21" in str(e.value) and "\n" not in str(e.value)


def test_only_heads_with_anchors_need_them() -> None:
    cfg = load_model_cfg("yolov5_shufflenet.yaml")
    del cfg["anchors"]
    with pytest.raises(UserError, match="layer 21.*the key 'anchors' is missing"):
        DetectionModel(cfg)


@pytest.mark.parametrize("head", OF_EACH_KIND)
def test_the_branches_of_a_head_are_layers_of_their_own_in_8_bits(head: str) -> None:
    form = ExportForm(network(config(head)), (64, 64))
    layers = layers_of(form)
    assert all(form.get_submodule(name) is m for name, m in layers.items())
    assert {"convs.0.box", "convs.2.cls"} <= set(layers)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8).numpy()
    assert sorted(sensitive_first(form, images)) == sorted(layers)
