"""export.py and what runs its files: equal boxes, sizes and batches, facts that travel, what wrong files are told."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from exports import NEEDS, missing, need_packages, network
from helpers import run_main, run_script, write_yolo_set

import detect
import export
import hubconf
import val
from models.export.check import seen
from models.export.engines import need
from models.export.exported import ExportedRuntime
from models.export.exporters import FORMATS
from models.export.facts import ExportFacts, facts_of_yolov5, read_facts
from models.export.form import ExportForm
from models.inference.runtime import load_runtime
from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel
from utils.data.images import read_image
from utils.errors import UserError
from utils.files import size_of

CPU = torch.device("cpu")
CONFIGS = ("yolov5_shufflenet.yaml", "yolov5_shufflenet_slimneck.yaml", "yolov5_stem_shufflenet.yaml", "yolov5n.yaml",
           "yolov5s_slimneck_c.yaml", "yolov5lite_s.yaml")  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(file, weights_content(network(), 64))
    return file


@pytest.fixture(scope="module")
def exported(weights: Path) -> Iterator[dict[str, Path]]:
    """One file of each kind whose packages are here, for 64x96 px."""
    kinds = [kind for kind in NEEDS if not missing(kind)]
    files = export.run(weights=str(weights), include=kinds, imgsz=[64, 96])
    yield dict(zip(kinds, files, strict=True))


@pytest.mark.parametrize("cfg", CONFIGS)
@pytest.mark.parametrize("fixed", [True, False])
def test_the_exported_form_gives_what_the_network_gives(cfg: str, fixed: bool) -> None:
    model = network(cfg)
    height, width = (256, 128) if "stem" in cfg else (64, 96)
    form, x = ExportForm(model, (height, width) if fixed else None), torch.rand(2, 3, height, width)
    with torch.no_grad():
        expected, found = model(x)[0], form(x)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-5)
    assert model.training is False and any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("kind", NEEDS)
def test_a_file_gives_what_the_network_gives(kind: str, weights: Path, request: pytest.FixtureRequest) -> None:
    need_packages(kind)
    file = request.getfixturevalue("exported")[kind]
    runtime, images = load_runtime(file, CPU), torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8)
    expected = load_runtime(weights, CPU).predict(images)
    found = runtime.predict(images)
    torch.testing.assert_close(found[..., :4], expected[..., :4], atol=5e-3, rtol=1e-4)
    torch.testing.assert_close(found[..., 4:], expected[..., 4:], atol=1e-4, rtol=1e-3)
    assert runtime.names == {0: "red", 1: "blue, or 'azure'"}
    assert (runtime.stride, runtime.size, runtime.imgsz, runtime.batch) == (32, [64, 96], 96, 1)
    with pytest.raises(UserError, match="exported for 64x96 px and got 64x64"):
        runtime.predict(images[..., :64])


@pytest.mark.parametrize("kind", export.that_have("dynamic"))
def test_dynamic_files_take_any_size_and_number(kind: str, weights: Path, tmp_path: Path) -> None:
    need_packages(kind)
    shutil.copy(weights, tmp_path / "best.pt")
    (file,) = export.run(weights=str(tmp_path / "best.pt"), include=[kind], dynamic=True)
    runtime, reference = load_runtime(file, CPU), load_runtime(weights, CPU)
    assert runtime.size is None and runtime.batch is None
    for shape in ((1, 64, 64), (3, 96, 32), (2, 32, 160)):
        images = torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8)
        torch.testing.assert_close(runtime.predict(images), reference.predict(images), atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["torchscript", "onnx", "openvino", "tflite"])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_batches_are_filled_up_and_split(kind: str, number: int, weights: Path, tmp_path: Path) -> None:
    need_packages(kind)
    if number != 3 and kind == "tflite":
        pytest.skip("one number is enough for the slowest of the converters")
    shutil.copy(weights, tmp_path / "best.pt")
    (file,) = export.run(weights=str(tmp_path / "best.pt"), include=[kind], batch_size=2)
    images = torch.randint(0, 256, (number, 3, 64, 64), dtype=torch.uint8)
    found, expected = (load_runtime(f, CPU).predict(images) for f in (file, weights))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", export.that_have("half"))
def test_half_the_size(kind: str, weights: Path, tmp_path: Path, exported: dict[str, Path]) -> None:
    need_packages(kind)
    shutil.copy(weights, tmp_path / "best.pt")
    (file,) = export.run(weights=str(tmp_path / "best.pt"), include=[kind], half=True, imgsz=[64, 96])
    assert size_of(file) < 0.7 * size_of(exported[kind])
    runtime = load_runtime(file, CPU)
    assert runtime.facts.precision == "float16"
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    found, expected = runtime.predict(images), load_runtime(weights, CPU).predict(images)
    assert (found - expected)[..., 4:].abs().max() < 0.05 and (found - expected)[..., :4].abs().max() < 2


def test_float16_may_be_off_where_nobody_looks() -> None:
    """Rows of confidence 0.0005, 0.001 and 0.5; of rows that are all too unsure each counts."""
    rows = np.array([[[9, 9, 9, 9, 0.1, 0.005], [9, 9, 9, 9, 0.1, 0.01], [9, 9, 9, 9, 1.0, 0.5]]], np.float32)
    assert seen(rows).tolist() == [[False, True, True]] and seen(rows[:, :1]).tolist() == [[True]]


def test_simplified(weights: Path, tmp_path: Path, exported: dict[str, Path]) -> None:
    need_packages("onnx")
    onnx, _ = need("onnx", ""), pytest.importorskip("onnxslim", reason="needs onnxslim")
    shutil.copy(weights, tmp_path / "best.pt")
    (file,) = export.run(weights=str(tmp_path / "best.pt"), include=["onnx"], simplify=True, imgsz=[64, 96])
    slim, plain = (onnx.load(str(f)) for f in (file, exported["onnx"]))
    assert len(slim.graph.node) < len(plain.graph.node)
    assert load_runtime(file, CPU).names == load_runtime(exported["onnx"], CPU).names


def test_no_shuffle_is_left_in_the_graph(exported: dict[str, Path]) -> None:
    """Only the head's maps are turned: one transpose each."""
    need_packages("onnx")
    graph = need("onnx", "").load(str(exported["onnx"])).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Transpose") == 6 and kinds.count("Reshape") <= 6 and "Gather" not in kinds
    assert all(len(v.type.tensor_type.shape.dim) <= 4 for v in graph.value_info)


OPENCV = tuple(map(int, cv2.__version__.split(".")[:2]))
FAMILIES = ("yolov5_shufflenet", "yolov5_shufflenet_slimneck", "yolov5_stem_shufflenet", "yolov5_stem_shufflenet_p3",
            "yolov5n", "yolov5n_slimneck", "yolov5s_slimneck_c", "yolov5n_gsconv", "yolov5lite_s")  # fmt: skip


@pytest.mark.parametrize(("family", "flags"), [
    *((family, {}) for family in FAMILIES),
    *((FAMILIES[0], {flag: True}) for flag in ("half", "simplify", "dynamic")),
])  # fmt: skip
def test_opencv_gives_what_the_network_gives(family: str, flags: dict, tmp_path: Path) -> None:
    need_packages("onnx")
    if OPENCV < (4, 7) or "dynamic" in flags and OPENCV < (5, 0):
        pytest.skip(f"OpenCV {cv2.__version__} cannot load this file: 4.7 is needed, 5.0 for --dynamic")
    if "simplify" in flags:
        pytest.importorskip("onnxslim")
    model, size = network(f"{family}.yaml"), [512, 512] if family == "yolov5_stem_shufflenet" else [128, 160]
    save_checkpoint(tmp_path / "best.pt", weights_content(model, 64))
    (file,) = export.run(weights=str(tmp_path / "best.pt"), include="onnx", imgsz=size, **flags)
    assert b"Split" not in file.read_bytes()
    images = torch.rand(1, 3, *size)
    net = cv2.dnn.readNetFromONNX(str(file))
    net.setInput(images.numpy())
    found, expected = net.forward(), load_runtime(tmp_path / "best.pt", CPU).predict(images).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[..., :4], expected[..., :4], atol=0.5 if "half" in flags else 5e-3)
    np.testing.assert_allclose(found[..., 4:], expected[..., 4:], atol=5e-3 if "half" in flags else 1e-4)


@pytest.mark.parametrize("kind", NEEDS)
def test_val_detect_and_pictures_take_exported_models(
    kind: str, weights: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    need_packages(kind)
    shutil.copy(weights, tmp_path / "best.pt")
    data = write_yolo_set(tmp_path / "set", 6)
    (file,) = export.run(weights=str(tmp_path / "best.pt"), include=[kind])
    source = str(data.parent / "images/val")
    flags = {"source": source, "conf_thres": 0.3, "save_txt": True, "project": str(tmp_path),
             "device": "cpu", "amp": "off", "nosave": True, "save_conf": True}  # fmt: skip
    folders = [detect.run(weights=str(w), name=w.suffix[1:] or kind, imgsz=64, **flags) for w in (weights, file)]
    texts = [sorted((folder / "labels").glob("*.txt")) for folder in folders]
    assert [f.name for f in texts[0]] == [f.name for f in texts[1]] and len(texts[0]) == 6
    for a, b in zip(*texts, strict=True):
        np.testing.assert_allclose(np.loadtxt(a, ndmin=2), np.loadtxt(b, ndmin=2), atol=0.02)
    for text in texts[0]:  # what the network finds is right, from now on
        rows = np.loadtxt(text, ndmin=2)
        np.savetxt(data.parent / "labels/val" / text.name, rows[rows[:, 3:5].min(1) > 0.01, :5], "%g")
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # batches side by side
        summaries = [val.run(weights=str(w), data=str(data), imgsz=64, batch_size=2, project=str(tmp_path), name="val",
                             device="cpu", noplots=True).summary for w in (tmp_path / "best.pt", file)]  # fmt: skip
    finally:
        torch.set_num_threads(usual)
    np.testing.assert_allclose(*summaries, atol=0.02)
    assert summaries[0][2] > 0.3
    pictures = hubconf.custom(exported[kind], device="cpu", _verbose=False)
    results = pictures([np.full((50, 60, 3), 200, np.uint8), np.zeros((90, 40, 3), np.uint8)])
    assert results.s == (2, 3, 64, 96)
    with pytest.raises(UserError, match="exported for 64x96 px; leave size out"):
        pictures(np.zeros((9, 9, 3), np.uint8), size=64)
    with pytest.raises(UserError, match="autoshape=False needs a checkpoint"):
        hubconf.custom(exported[kind], autoshape=False)
    for flags, message in (({"imgsz": 32}, "exported for 64x64 px; leave --imgsz out"),
                           ({"augment": True}, "--augment needs a checkpoint"),
                           ({"visualize": True}, "--visualize needs a checkpoint")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            detect.run(weights=str(file), source=source, project=str(tmp_path / "none"), device="cpu", **flags)
    with pytest.raises(UserError, match="needs a square input"):
        val.run(weights=str(exported[kind]), data=str(data), project=str(tmp_path), device="cpu")


@pytest.mark.parametrize(("flags", "message"), [
    ({"include": ["onxx"]}, "--include onxx.*did you mean 'onnx'"),
    ({"include": []}, "--include: one or more of torchscript, onnx"),
    ({"include": ["ncnn"], "dynamic": True}, "--dynamic is for torchscript, onnx, openvino"),
    ({"include": ["tflite"], "half": True}, "--half is for"),
    ({"include": ["ncnn"], "batch_size": 2}, "one image at a time"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"simplify": True}, "--simplify is for onnx"),
    ({"include": ["onnx"], "opset": 5}, "--opset 5"),
    ({"nms": True}, "--nms is for onnx"),
    ({"include": ["onnx"], "nms": True, "iou_thres": 2}, "must lie between 0 and 1"),
    ({"weights": "nothing.pt"}, "nothing.pt"),
    ({"imgsz": [64, 64, 64]}, "--imgsz 64 64 64"),
    ({"verbose": True}, "verbose"),
])  # fmt: skip
def test_wrong_flags_are_one_line(flags: dict, message: str, weights: Path) -> None:
    with pytest.raises(UserError, match=message) as e:
        export.run(**{"weights": str(weights), **flags})
    assert "\n" not in str(e.value)


def test_a_file_that_differs_is_not_left(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what lay there before stays."""
    shutil.copy(weights, tmp_path / "best.pt")
    (file,) = export.run(weights=str(tmp_path / "best.pt"))
    before, predict = file.read_bytes(), ExportedRuntime.predict
    for wrong, message in ((1.0, "differs from the network: boxes by"), (float("nan"), "differs from the network")):
        monkeypatch.setattr(ExportedRuntime, "predict", lambda self, x, by=wrong: predict(self, x) + by)
        with pytest.raises(UserError, match=message):
            export.run(weights=str(tmp_path / "best.pt"))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["best.pt", "best.torchscript"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(("kind", "name"), [("torchscript", "best.torchscript/mine.txt"),
                                            ("torchscript", "best.torchscript"), ("onnx", "best.onnx"),
                                            ("openvino", "best_openvino/other.xml"),
                                            ("openvino", "best_openvino/notes.md"), ("openvino", "best_openvino"),
                                            ("ncnn", "best_ncnn/mine/x.bin")])  # fmt: skip
def test_what_others_put_there_is_not_replaced(kind: str, name: str, weights: Path, tmp_path: Path) -> None:
    need_packages(kind)
    shutil.copy(weights, tmp_path / "best.pt")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="export.py did not write"):
        export.run(weights=str(tmp_path / "best.pt"), include=kind)
    assert (tmp_path / name).read_text() == "mine"


def test_an_older_folder_stays_if_the_new_one_cannot_be_put_there(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_packages("openvino")
    shutil.copy(weights, tmp_path / "best.pt")
    (folder,) = export.run(weights=str(tmp_path / "best.pt"), include="openvino")
    before, replace, calls = sorted(f.name for f in folder.iterdir()), export.os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(export.os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        export.run(weights=str(tmp_path / "best.pt"), include="openvino")
    assert sorted(f.name for f in folder.iterdir()) == before and len(calls) == 3
    assert sorted(f.name for f in tmp_path.iterdir()) == ["best.pt", "best_openvino"]


def test_checked_on_the_pictures_of_a_data_yaml(weights: Path, tmp_path: Path) -> None:
    shutil.copy(weights, tmp_path / "best.pt")
    data = write_yolo_set(tmp_path / "set", 2)
    expected = [read_image(f) for f in sorted((data.parent / "images/val").iterdir())]
    found = export.samples(str(data), expected[0].shape[:2])
    assert (found[0] * 255).round().astype(np.uint8).transpose(1, 2, 0)[..., ::-1].tolist() == expected[0].tolist()
    assert export.run(weights=str(tmp_path / "best.pt"), data=str(data)) == [tmp_path / "best.torchscript"]


def test_what_a_converter_says_is_one_line(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_args: object) -> None:
        raise RuntimeError("\n  no such operator\nand much more")

    broken = {**FORMATS, "torchscript": FORMATS["torchscript"]._replace(write=failing)}
    monkeypatch.setattr(export, "FORMATS", broken)
    shutil.copy(weights, tmp_path / "best.pt")
    with pytest.raises(UserError, match="^--include torchscript: no such operator; not written$"):
        export.run(weights=str(tmp_path / "best.pt"))
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]


def test_one_format_that_fails_does_not_keep_the_others_away(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_packages("onnx")
    real = export.export_one

    def failing(kind: str, *args: object) -> Path:
        if kind == "torchscript":
            raise UserError("best.torchscript differs from the network")
        return real(kind, *args)

    monkeypatch.setattr(export, "export_one", failing)
    shutil.copy(weights, tmp_path / "best.pt")
    with pytest.raises(UserError, match="^best.torchscript differs from the network$"):
        export.run(weights=str(tmp_path / "best.pt"), include=["torchscript", "onnx"])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["best.onnx", "best.pt"]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals")
def test_signals_after_openvino_models_that_are_gone(exported: dict[str, Path]) -> None:
    """The stack for signals is not one that went with the first of them."""
    need_packages("openvino")
    code = ("import gc, os, signal, torch; from models.inference.runtime import load_runtime\n"
            "a, b = (load_runtime(%r, torch.device('cpu')) for _ in range(2))\n"
            "del a; gc.collect(); del b; gc.collect(); signal.signal(signal.SIGUSR1, lambda *_: print('told'))\n"
            "os.kill(os.getpid(), signal.SIGUSR1); print('alive')")  # fmt: skip
    ran = run_script("-c", code % str(exported["openvino"]))
    assert ran.returncode == 0 and ran.stdout.split() == ["told", "alive"], ran.returncode


def test_nothing_is_reported_to_anyone(weights: Path, tmp_path: Path) -> None:
    """OpenVINO would, on import: it leaves a number for the user in the home folder before it sends anything."""
    need_packages("openvino")
    shutil.copy(weights, tmp_path / "best.pt")
    (tmp_path / "home").mkdir()
    code = ("import os; os.environ.pop('CI', None); os.environ['HOME'] = %r; import export; files = export.run(**%r); "
            "from models.inference import runtime as r; r.load_runtime(files[0], export.torch.device('cpu'))")
    flags = {"weights": str(tmp_path / "best.pt"), "include": "openvino"}
    ran = run_script("-c", code % (str(tmp_path / "home"), flags))
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "home/intel").exists()


def test_other_channels_are_told(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", weights_content(DetectionModel("yolov5_shufflenet.yaml", ch=4, nc=2), 64))
    with pytest.raises(UserError, match="takes 4 input channels"):
        export.run(weights=str(tmp_path / "w.pt"))


def test_no_device_is_in_a_dynamic_graph(weights: Path, tmp_path: Path) -> None:
    """Or the file would run on that device alone."""
    shutil.copy(weights, tmp_path / "best.pt")
    (file,) = export.run(weights=str(tmp_path / "best.pt"), dynamic=True)
    assert "torch.device" not in torch.jit.load(str(file)).code


def test_an_onnx_file_of_another_kind_is_one_line(tmp_path: Path) -> None:
    """With as many classes as YOLOv5's, but no objectness; and one that fails while it runs."""
    need_packages("onnx")
    onnx = need("onnx", "")
    text = """<ir_version: 8, opset_import: ["" : 17], metadata_props: ["names": "{0: 'a', 1: 'b'}", "stride": "32"]>
    g (float[1,3,64,64] images) => (float[1,N,M] y) <int64[3] shape = {%s}> { y = Reshape(images, shape) }"""
    for shape, message in (("1, -1, 6", "a YOLOv5 detector with 2 classes gives"),
                           ("1, 11, 11", "does not run on")):  # fmt: skip
        onnx.save(onnx.parser.parse_model(text % shape), str(tmp_path / "other.onnx"))
        runtime = load_runtime(tmp_path / "other.onnx", CPU)
        with pytest.raises(UserError, match=message) as e:
            runtime.predict(torch.zeros(1, 3, 64, 64))
        assert "\n" not in str(e.value) and "other.onnx" in str(e.value)


def test_names_of_any_kind_come_back(tmp_path: Path) -> None:
    need_packages("openvino")
    model = network()
    model.names = {0: "a&lt;<b>", 1: "ö'\"\\n"}
    save_checkpoint(tmp_path / "w.pt", weights_content(model, 64))
    for file in export.run(weights=str(tmp_path / "w.pt"), include=["openvino", "torchscript"]):
        assert load_runtime(file, CPU).names == model.names


@pytest.mark.parametrize("kind", NEEDS)
def test_a_second_export_takes_the_place_of_the_first(kind: str, weights: Path, tmp_path: Path) -> None:
    if kind == "tflite":
        pytest.skip("as the others, and slow")
    need_packages(kind)
    shutil.copy(weights, tmp_path / "best.pt")
    for size in (64, 32):
        (file,) = export.run(weights=str(tmp_path / "best.pt"), include=[kind], imgsz=size)
    assert load_runtime(file, CPU).size == [32, 32] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["x.onnx", "x.torchscript", "x.tflite", "x.xml", "x_ncnn/x.ncnn.param"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04" + bytes(50)])
def test_a_file_that_is_no_model_is_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    kind = {"x.xml": "openvino", "x_ncnn/x.ncnn.param": "ncnn"}.get(name, name.partition(".")[2])
    need_packages(kind)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(UserError) as e:
        load_runtime(file, CPU)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)


def facts(**changes: object) -> str:
    made = json.loads(ExportFacts({0: "a", 1: "b"}, 32, (64, 96)).to_json())
    return json.dumps({**made, **changes})


def test_facts_come_back() -> None:
    nms = {"conf": 0.25, "iou": 0.5, "max_det": 9}
    made = ExportFacts({0: "a", 1: "ö'\""}, 64, (64, 96), 3, True, "int8", nms, "w.pt")
    assert read_facts(made.to_json(), "x") == made


@pytest.mark.parametrize(("text", "message"), [
    ("", "cannot be read"), ("[]", "cannot be read"), ("{", "cannot be read"), ("[" * 100_000, "cannot be read"),
    (facts(version=99), "exported by another version of this program"),
    (facts(names={}), "no usable 'names'"), (facts(names={"0": 1}), "no usable 'names'"),
    (facts(names={"1": "a"}), "no usable 'names'"), (facts(names={"__import__": "a"}), "no usable 'names'"),
    (facts(stride=0), "no usable 'stride'"), (facts(stride="32"), "no usable 'stride'"),
    (facts(shape=[1, 3, 64]), "no usable 'shape'"), (facts(shape=[1, 4, 64, 64]), "no usable 'shape'"),
    (facts(precision="float8"), "no usable 'precision'"), (facts(nms=[1]), "no usable 'nms'"),
    (facts(nms={"conf": 0.2}), "no usable 'nms'"),
    (facts(nms={"conf": 0.2, "iou": 0.5, "max_det": 1e12}), "no usable 'nms'"),
    (facts(source=3), "no usable 'source'"),
])  # fmt: skip
def test_wrong_facts_are_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        read_facts(text, "best.onnx")
    assert "\n" not in str(e.value) and "best.onnx" in str(e.value)


def test_facts_of_yolov5s_own_files() -> None:
    fields = {"names": "{0: 'person', 1: \"dog's\"}", "stride": "32"}
    made = facts_of_yolov5(fields, "x", [1, 3, 320, 640])
    assert (made.names, made.stride, made.imgsz, made.dynamic) == ({0: "person", 1: "dog's"}, 32, (320, 640), False)
    assert facts_of_yolov5({**fields, "names": "['a', 'b']"}, "x", ["batch", 3, "h", "w"]).dynamic
    for wrong in ({}, {**fields, "names": "__import__('os').system('x')"}, {**fields, "names": "{" * 9999}):
        with pytest.raises(UserError, match="x has no class names and stride"):
            facts_of_yolov5(wrong, "x", [1, 3, 64, 64])


def test_a_folder_without_its_facts_is_told(exported: dict[str, Path], tmp_path: Path) -> None:
    need_packages("openvino")
    folder = shutil.copytree(exported["openvino"], tmp_path / "m_openvino")
    (folder / "metadata.json").write_text(json.dumps({"format": "yolov5-light export", "version": 2}))
    with pytest.raises(UserError, match="another version"):
        load_runtime(folder, CPU)
    (folder / "metadata.json").unlink()
    with pytest.raises(UserError, match="metadata.json cannot be read"):
        load_runtime(folder, CPU)


@pytest.mark.parametrize("kind", ["onnx", "openvino", "ncnn", "tflite"])
def test_a_missing_package_is_told_with_what_installs_it(
    kind: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(weights, tmp_path / "best.pt")
    for name in NEEDS[kind]:
        monkeypatch.setitem(sys.modules, name, None)
    assert run_main(monkeypatch, export, "--weights", tmp_path / "best.pt", "--include", kind) == 1
    assert f"pip install '.[{kind}]'" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]
