"""export.py --int8: what is in 8 bits, which layers stay in float and why, what it refuses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from exports import need_packages, network
from helpers import write_yolo_set

import export
from models.export import exporters
from models.export.engines import need, openvino_core
from models.export.exporters import FORMATS, Job
from models.export.facts import ExportFacts
from models.export.form import ExportForm
from models.export.quantize import Calibration, change, in_8_bits, layers_of, sensitive_first, with_sensitive_left
from models.inference.runtime import load_runtime
from models.weights.checkpoint import save_checkpoint, weights_content
from utils.boxes import scale_boxes, xyxy2xywh
from utils.data.augment import letterbox
from utils.data.images import read_image
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression
from utils.files import size_of

CPU = torch.device("cpu")
MORE = {"onnx": (), "openvino": ("nncf",)}


def need_int8(kind: str) -> None:
    need_packages(kind)
    for package in MORE[kind]:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo_set(tmp_path_factory.mktemp("set") / "squares", 6)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "best.pt", weights_content(network(), 64))
    return tmp_path / "best.pt"


@pytest.mark.parametrize(
    ("low", "high", "given", "expected"),
    [(0.0, 255.0, [0, 0.4, 0.6, 300, -5], [0, 0, 1, 255, 0]), (-1.0, 254.0, [-1, -3, 254, 255], [-1, -1, 254, 254]),
     (10.0, 51.0, [0, 0.1, 0.11, 51], [0, 0, 0.2, 51]), (-25.5, -5.0, [0, -5.04, -30], [0, -5.0, -25.5])],
)  # fmt: skip
def test_numbers_in_8_bits(low: float, high: float, given: list[float], expected: list[float]) -> None:
    found = in_8_bits(torch.tensor(given).float(), torch.tensor(low), torch.tensor(high))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("found", "expected"),
    [([10, 10, 4, 8, 0.5, 0.5], 0.0), ([10, 10, 4, 8, 0.5, 0.9], 0.2), ([12, 10, 4, 8, 0.5, 0.5], 0.125),
     ([10, 14, 4, 12, 0.5, 0.5], 0.25), ([12, 10, 4, 8, 1.0, 0.5], 0.375)],
)  # fmt: skip
def test_how_far_boxes_are_from_others(found: list[float], expected: float) -> None:
    exact = torch.tensor([[[10, 10, 4, 8, 0.5, 0.5]]])
    assert change(torch.tensor([[found]]), exact) == pytest.approx(expected)


@pytest.mark.parametrize("spoilt", [9, 23])
def test_a_layer_that_suffers_is_found(spoilt: int) -> None:
    """One channel far out of the others' range, within a layer, leaves the others few steps."""
    form = ExportForm(network("yolov5n.yaml"), (64, 64))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    before, name = sensitive_first(form, images), f"layers.{spoilt}"
    conv = form.layers[spoilt].cv1.conv
    conv.weight.data[0], conv.bias.data[0] = 0, 3000.0
    after = sensitive_first(form, images)
    assert after.index(name) < 2 < before.index(name)
    assert sorted(after) == sorted(layers_of(form))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in form.modules())


@pytest.mark.parametrize(
    ("by_left", "least", "left"),
    [({0: 0.6}, 0.59, ""), ({0: 0.5, 1: 0.59}, 0.59, "a"), ({0: 0.5, 1: 0.5, 2: 0.6}, 0.59, "ab"),
     ({0: 0.5, 1: 0.5, 2: 0.5, 4: 0.61}, 0.59, "abcd")],
)  # fmt: skip
def test_layers_are_left_in_float_until_enough_is_kept(by_left: dict[int, float], least: float, left: str) -> None:
    built = []

    def build(chosen: Sequence[str]) -> Path:
        built.append(len(chosen))
        return Path(str(len(chosen)))

    file, accuracy, kept = with_sensitive_left(build, lambda f: by_left[int(f.name)], least, lambda: list("abcdefgh"))
    assert (file.name, "".join(kept), accuracy) == (str(len(left)), left, by_left[len(left)])
    assert built == list(by_left)


def test_more_than_half_in_float_is_an_error() -> None:
    with pytest.raises(UserError, match="mAP50 is 0.400, below 0.590, even with 4 of 9 layers in float"):
        with_sensitive_left(lambda left: Path("x"), lambda f: 0.4, 0.59, lambda: list("abcdefghi"))


@pytest.mark.parametrize(
    ("kind", "how"),
    [("onnx", {}), ("onnx", {"dynamic": True}), ("onnx", {"batch_size": 2, "nms": True}), ("openvino", {}),
     ("openvino", {"batch_size": 2, "dynamic": True})],
    ids=["onnx", "onnx-dynamic", "onnx-nms", "openvino", "openvino-dynamic"],
)  # fmt: skip
def test_a_file_in_8_bits(
    kind: str, how: dict, weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    need_int8(kind)
    monkeypatch.setattr(export.Judge, "map50", lambda self, file: 0.495 if file.parent.name == "but-0" else 0.5)
    (exact,) = export.run(weights=str(weights), include=[kind], data=str(data), **how)
    (file,) = export.run(weights=str(weights), include=[kind], data=str(data), int8=True, **how)
    assert file.name == {"onnx": "best_int8.onnx", "openvino": "best_int8_openvino"}[kind] and exact.exists()
    assert size_of(file) < 0.45 * size_of(exact)
    assert re.search(f"{kind}: mAP50 0.495 in 8 bits, 0.500 in float, on 6 val images; layers left in float: none",
                     capsys.readouterr().out)  # fmt: skip
    runtime = load_runtime(file, CPU)
    assert runtime.facts.precision == "int8" and "int8" in runtime.reason
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".export")] == []
    if "nms" in how:
        return
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found, expected = runtime.predict(images), load_runtime(exact, CPU).predict(images)
    off = (found - expected).abs().mean((0, 1))
    assert 0 < off[4:].max() < 0.05 and off[:4].max() < 2, off


@pytest.mark.parametrize("kind", MORE)
def test_layers_that_are_left_are_in_float(kind: str, tmp_path: Path) -> None:
    """No number of them is rounded: none of their operations reads what comes out of a rounding of its own."""
    need_int8(kind)
    model = network()
    form, facts = ExportForm(model, (64, 64)), ExportFacts({0: "a", 1: "b"}, 32, (64, 64), precision="int8")
    left = ("layers.0", "layers.13", "convs.1")
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8)
    counts = []
    for k, names in enumerate(((), left)):
        out = tmp_path / str(k)
        job = Job(form, torch.zeros(1, 3, 64, 64), out, facts, calibration=Calibration(images, 1, names))
        FORMATS[kind].write(job)
        counts.append(rounded_layers(kind, out))
    assert set(layers_of(form)) == counts[0]
    assert counts[0] - counts[1] == set(left) & set(layers_of(form))


def rounded_layers(kind: str, file: Path) -> set[str]:
    """The layers whose convolutions have 8-bit weights."""
    if kind == "onnx":
        graph = need("onnx", "").load(str(file)).graph
        made_by = {name: node for node in graph.node for name in node.output}
        kernels = [(n.name, made_by.get(n.input[1])) for n in graph.node if n.op_type == "Conv"]
        names = [name for name, maker in kernels if maker is not None and maker.op_type == "DequantizeLinear"]
        found = [re.match(r"/(layers|convs)[./](\d+)", name) for name in names]
    else:
        network = openvino_core().read_model(next(file.glob("*.xml")))
        names = [op.get_friendly_name() for op in network.get_ops() if op.get_type_name().endswith("Convolution")
                 and any("i8" in str(o.get_element_type()) or "int8" in str(o.get_element_type())
                         for o in constants_before(op))]  # fmt: skip
        found = [re.match(r"__module\.(layers|convs)\.(\d+)", name) for name in names]
    return {f"{m[1]}.{m[2]}" for m in found}


def constants_before(op: object) -> list:
    """The constants that a convolution's kernel is worked out from."""
    sources, todo = [], [op.input_value(1).get_node()]
    while todo:
        node = todo.pop()
        if node.get_type_name() == "Constant":
            sources.append(node.output(0))
        todo += [node.input_value(k).get_node() for k in range(node.get_input_size())]
    return sources


def test_what_loses_too_much_is_not_written(
    weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_int8("onnx")
    monkeypatch.setattr(export.Judge, "map50", lambda self, file: 0.3 if file.parent.name.startswith("but-") else 0.5)
    monkeypatch.setattr(export, "sensitive_first", lambda form, images: ["layers.0", "layers.2"])
    with pytest.raises(UserError, match="--int8: mAP50 is 0.300, below 0.490, even with 1 of 2 layers in float"):
        export.run(weights=str(weights), include="onnx", data=str(data), int8=True)
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]


def own_detections_as_labels(data: Path, file: Path, folder: Path) -> Path:
    """A copy of a set in which the surest boxes that an exported model finds are what there is to find."""
    shutil.copytree(data.parent, folder)
    runtime = load_runtime(file, CPU)
    for picture in sorted((folder / "images/val").iterdir()):
        image = read_image(picture)
        fitted = letterbox(image, tuple(runtime.size), auto=False)[0]
        pixels = torch.from_numpy(fitted[..., ::-1].transpose(2, 0, 1).copy())
        (found,) = non_max_suppression(runtime.predict(pixels[None]))
        scale_boxes(fitted.shape[:2], found[:, :4], image.shape)
        boxes = xyxy2xywh(found[:6, :4]) / torch.tensor(image.shape[1::-1]).repeat(2)
        lines = [" ".join([str(int(cls)), *(f"{v:.6f}" for v in box)]) for cls, box in
                 zip(found[:6, 5].tolist(), boxes.tolist(), strict=True)]  # fmt: skip
        (folder / "labels/val" / f"{picture.stem}.txt").write_text("\n".join(lines))
    config = {**yaml.safe_load(data.read_text()), "path": str(folder)}
    (folder / data.name).write_text(yaml.safe_dump(config))
    return folder / data.name


def test_the_judge_judges(weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model finds itself is all there is to find: it finds it, and one with an empty head does not."""
    need_int8("onnx")
    (file,) = export.run(weights=str(weights), include="onnx")
    own = own_detections_as_labels(data, file, tmp_path / "own")
    names = {0: "red", 1: "blue, or 'azure'"}
    judge = export.Judge(weights, export.Options(data=str(own)), ExportFacts(names, 32, (64, 64)))
    assert judge.map50(file) > 0.9
    real = exporters.quantize_onnx

    def empty(model: object, calibration: Calibration) -> object:
        made = real(model, calibration)
        for tensor in made.graph.initializer:
            if "convs" in tensor.name and tensor.name.endswith("_quantized"):  # of the head
                tensor.raw_data = bytes(len(tensor.raw_data))
        return made

    monkeypatch.setattr(exporters, "quantize_onnx", empty)
    monkeypatch.setattr(export, "sensitive_first", lambda form, images: ["layers.0", "layers.2"])
    with pytest.raises(UserError, match="even with 1 of 2 layers in float"):
        export.run(weights=str(weights), include="onnx", data=str(own), int8=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["best.onnx", "best.pt", "own"]


@pytest.mark.parametrize(("labels", "message"), [(True, "too low to measure"), (False, "has a label")])
def test_nothing_to_judge_by(labels: bool, message: str, weights: Path, data: Path, tmp_path: Path) -> None:
    need_int8("onnx")
    shutil.copytree(data.parent, tmp_path / "set")
    config = {**yaml.safe_load(data.read_text()), "path": str(tmp_path / "set")}
    (tmp_path / "set" / data.name).write_text(yaml.safe_dump(config))
    if not labels:
        shutil.rmtree(tmp_path / "set/labels/val")
    with pytest.raises(UserError, match=message):
        export.run(weights=str(weights), include="onnx", data=str(tmp_path / "set" / data.name), int8=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["best.pt", "set"]


def test_the_layers_left_are_told(
    weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need_int8("onnx")
    caplog.set_level("INFO")
    kept = {"but-0": 0.3, "but-1": 0.45, "but-2": 0.495}
    monkeypatch.setattr(export.Judge, "map50", lambda self, file: kept.get(file.parent.name, 0.5))
    (file,) = export.run(weights=str(weights), include="onnx", data=str(data), int8=True)
    (told,) = re.findall(r"mAP50 0.495 in 8 bits, 0.500 in float.*layers left in float: (.*)", caplog.text)
    assert len(told.split(", ")) == 2
    every = {f"{kind}.{k}" for kind in ("layers", "convs") for k in range(30)}
    assert set(told.split(", ")) <= every - rounded_layers("onnx", file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"include": "torchscript"}, "--int8 is for onnx, openvino, not for torchscript: choose those with --include"),
     ({"half": True}, "--half and --int8: give only one of them"), ({"data": ""}, "--int8 needs --data"),
     ({"simplify": True}, "--simplify: leave it out"),
     ({"imgsz": [64, 96]}, "--imgsz 64 96: --int8 measures mAP50 on square images"),
     ({"data": "VOC.yaml"}, "VOC")],
)  # fmt: skip
def test_refused(flags: dict, message: str, weights: Path, data: Path, tmp_path: Path) -> None:
    need_int8("onnx")
    with pytest.raises(UserError, match=re.escape(message)):
        export.run(**{"weights": str(weights), "include": "onnx", "data": str(data), "int8": True, **flags})
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]


def test_classes_of_another_set(weights: Path, tmp_path: Path, data: Path) -> None:
    need_int8("onnx")
    folder = tmp_path / "other"
    shutil.copytree(data.parent, folder)
    config = {**yaml.safe_load(data.read_text()), "names": ["a", "b", "c"], "nc": 3}
    (folder / data.name).write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="knows 2 classes"):
        export.run(weights=str(weights), include="onnx", data=str(folder / data.name), int8=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["best.pt", "other"]
