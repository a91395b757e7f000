"""Which engine detect.py chooses for a checkpoint, what it remembers, and that all engines give the same boxes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import run_main, write_yolo_set

import detect
from models.inference import candidates, engine
from models.inference.candidates import Candidates, errors, noise, time_engines
from models.inference.engine import PACKAGES, count_frames, fastest, load_fastest
from models.inference.engine_cache import cache_folder, digest_of, read_record
from models.inference.runtime import Runtime, load_runtime
from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.settings.options import ENGINE_CHOICES
from utils.system.background import side_by_side

CPU = torch.device("cpu")
TINY = {"nc": 2, "anchors": 1, "backbone": [[-1, 1, "Conv", [8, 3, 8]]],
        "head": [[[-1], 1, "Detect", ["nc", "anchors"]]]}  # fmt: skip
SLOW_OTHERS, FAST_ONNX = {"pytorch": 9.0, "onnx": 8.5, "openvino": 30.0}, {"pytorch": 9.0, "onnx": 3.0, "openvino": 5.0}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "yolov5-light/engines"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(file, weights_content(DetectionModel(TINY), 64))
    return file


def need_packages(name: str) -> None:
    if absent := [p for p in PACKAGES.get(name, ()) if not engine.installed(p)]:
        pytest.skip(f"{name}: needs {' and '.join(absent)}")


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Engines that are opened and timed without their packages, with the times in `speeds`. timed: sizes so far."""
    stub = SimpleNamespace(speeds=FAST_ONNX, timed=[])

    def timing(runtimes: dict, size: list[int]) -> dict[str, float]:
        stub.timed.append(size)
        return {name: stub.speeds[name] for name in runtimes}

    def opening(self: Candidates, name: str) -> SimpleNamespace:
        if name not in stub.speeds:
            raise UserError(f"--engine {name}: broken")
        return SimpleNamespace(reason=name, name=name, predict=lambda image: None)

    monkeypatch.setattr(engine, "available", lambda: ["onnx", "openvino"])
    monkeypatch.setattr(candidates, "time_engines", timing)
    monkeypatch.setattr(Candidates, "open", opening)
    return stub


def load(weights: Path, count: int = 1000, **how: object) -> str:
    return load_fastest(weights, CPU, amp="off", frames=lambda most: min(count, most), **how).reason


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [(FAST_ONNX, "onnx"), (SLOW_OTHERS, "pytorch"), ({"pytorch": 9.0, "openvino": 5.0}, "openvino"),
     ({"pytorch": 9.0}, "pytorch"), ({"pytorch": 9.0, "onnx": 8.2}, "pytorch")],
)  # fmt: skip
def test_the_fastest_engine_unless_it_gains_little(speeds: dict, chosen: str) -> None:
    assert fastest(speeds) == chosen


@pytest.mark.parametrize(
    ("counts", "speeds", "timed", "reasons"),
    [
        ([1, 29], FAST_ONNX, 0, ["float32 (--amp off), PyTorch for a few images"] * 2),
        ([30, 299], FAST_ONNX, 0, ["not compared with ONNX Runtime and OpenVINO for fewer than 300 images"] * 2),
        ([300, 30, 29, 5000], FAST_ONNX, 1, ["onnx, 3.0 times as fast as PyTorch here"] * 2
         + ["PyTorch for a few images", "onnx, 3.0 times"]),
        ([300, 300], SLOW_OTHERS, 1, ["PyTorch, the fastest engine here"] * 2),
        ([300, 300], {"pytorch": 9.0, "openvino": 5.0}, 1, ["openvino, 1.8 times as fast as PyTorch here"] * 2),
    ],
)  # fmt: skip
def test_automatic_choice(
    counts: list[int], speeds: dict, timed: int, reasons: list[str], stubbed: SimpleNamespace, weights: Path
) -> None:
    """Engines are timed once, if there are images enough to pay for it; a broken one is left out."""
    stubbed.speeds = speeds
    for count, reason in zip(counts, reasons, strict=True):
        assert reason in load(weights, count)
    assert len(stubbed.timed) == timed


@pytest.mark.parametrize(
    ("change", "timed"),
    [
        (lambda p: p.setattr(candidates, "version_of", lambda package: "9.9"), 2),
        (lambda p: p.setattr(candidates, "cpu_name", lambda: "another CPU"), 2),
        (lambda p: p.setattr(torch, "get_num_threads", lambda: 7), 2),
        (lambda p: p.setenv("UNRELATED", "1"), 1),
    ],
)
def test_other_versions_and_machines_are_timed_anew(
    change: object, timed: int, stubbed: SimpleNamespace, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(weights)
    change(monkeypatch)
    load(weights)
    assert len(stubbed.timed) == timed


def test_each_size_and_checkpoint_is_timed(stubbed: SimpleNamespace, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.manual_seed(1)
    save_checkpoint(other, weights_content(DetectionModel(TINY), 64))
    for file, imgsz in ((weights, None), (weights, 96), (weights, 64), (other, None), (other, [64, 96]), (other, 64)):
        load(file, imgsz=imgsz)
    assert stubbed.timed == [[64, 64], [96, 96], [64, 64], [64, 96]]


def test_an_engine_that_fails_later_is_replaced(stubbed: SimpleNamespace, weights: Path) -> None:
    load(weights)
    stubbed.speeds = {"pytorch": 9.0}
    assert "PyTorch, as ONNX Runtime fails: --engine onnx: broken" in load(weights)


@pytest.mark.parametrize("home", ["", "/proc/none", "relative"])
def test_without_a_cache_folder(
    home: str, stubbed: SimpleNamespace, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything works and is measured each time."""
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "nowhere")
    for _ in range(2):
        assert load(weights).startswith("onnx")
    assert len(stubbed.timed) == 2 and not Path("nowhere").exists()


def test_a_checkpoint_replaced_meanwhile_is_not_remembered(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter([digest_of(weights), "0" * 64])
    monkeypatch.setattr(candidates, "digest_of", lambda file: next(digests))
    monkeypatch.setattr(candidates, "onnx_graph", lambda *args, **how: b"graph")
    monkeypatch.setattr(candidates, "need", lambda *args: None)
    found = Candidates(weights, "off")
    assert found.converted[0] == b"graph" and found.record.weights == ""
    assert not cache_folder().exists()


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"engine": "opnvino"}, "did you mean 'openvino'.*one of auto, pytorch, onnx, openvino"),
        ({"engine": "onnx", "amp": "bf16"}, "computes in float32 on a CPU.*openvino"),
        ({"engine": "onnx", "half": True}, "--engine onnx computes in the number format of --amp: leave --half out"),
        ({"engine": "openvino", "only": "--augment"}, "--engine openvino cannot be combined with --augment"),
        ({"engine": "onnx", "device": torch.device("cuda:0")}, "--engine onnx is for CPUs.*--device cpu"),
        ({"engine": "openvino", "weights": Path("x.onnx")}, "is for checkpoints, but x.onnx is an exported model"),
        ({"engine": "pytorch", "weights": Path("x.onnx")}, "is for checkpoints, but x.onnx is an exported model"),
    ],
)
def test_flags_that_do_not_go_together(how: dict, message: str, weights: Path) -> None:
    with pytest.raises(UserError, match=message) as e:
        load_fastest(**{"weights": weights, "device": CPU, **how})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "how", [{"half": True}, {"only": "--augment"}, {"only": "--visualize"}, {"engine": "pytorch"}, {"amp": "bf16"}]
)
def test_what_only_pytorch_can_do_runs_in_pytorch(how: dict, stubbed: SimpleNamespace, weights: Path) -> None:
    runtime = load_fastest(weights, CPU, **{"frames": lambda most: most * ("amp" not in how), **how})
    assert isinstance(runtime, Runtime) and "PyTorch" in runtime.reason and not stubbed.timed


@pytest.mark.parametrize("name", PACKAGES)
def test_an_engine_that_is_not_installed_is_named(
    name: str, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    need_packages(name)
    monkeypatch.setitem(engine.need.__globals__, "importlib", SimpleNamespace(import_module=absent))
    flags = ("--weights", weights, "--engine", name, "--project", tmp_path, "--device", "cpu")
    assert run_main(monkeypatch, detect, *flags) == 1
    assert capsys.readouterr().err.count("\n") == 1


def absent(package: str) -> None:
    raise ModuleNotFoundError(package, name=package)


def test_the_flag_has_all_engines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run_main(monkeypatch, detect, "--engine", "x") == 1
    told = capsys.readouterr().err
    assert all(name in told for name in ENGINE_CHOICES)
    with pytest.raises(UserError, match="--engine x: one of auto, pytorch, onnx, openvino"):
        detect.run(weights="x.onnx", engine="x")


# --- the number of images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "most", "count"),
    [("0", 300, 300), ("rtsp://x/1", 300, 300), ("x.streams", 300, 300), ("https://x/a.jpg", 300, 1),
     ("nowhere.jpg", 300, 0), ("FOLDER", 300, 3 + 5), ("FOLDER", 4, 4), ("FOLDER/*.png", 300, 3),
     ("FOLDER/list.txt", 300, 2), ("FOLDER/000.png", 300, 1), ("FOLDER/clip.avi", 300, 5)],
)  # fmt: skip
def test_frames_are_counted(source: str, most: int, count: int, media: Path) -> None:
    assert count_frames(source.replace("FOLDER", str(media)), 1, most) == count


def test_skipped_frames_are_not_counted(media: Path) -> None:
    assert count_frames(str(media / "clip.avi"), 2, 300) == 2


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, a video of five frames, a list, and a file that is not a video in a folder below."""
    folder = write_yolo_set(tmp_path_factory.mktemp("media"), 3).parent / "images/val"
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for _ in range(5):
        writer.write(np.zeros((64, 96, 3), np.uint8))
    writer.release()
    (folder / "list.txt").write_text("000.png\n001.png\nnowhere.png\n")
    return folder


# --- the engines themselves ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = DetectionModel({**TINY, "backbone": [[-1, 1, "Conv", [8, 3, 8]], [-1, 1, "C3", [16]]]})
    model.model[-1].m[0].bias.data += 5
    file = tmp_path_factory.mktemp("sure") / "best.pt"
    save_checkpoint(file, weights_content(model, 64))
    return file


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that these tests share, so that the network is converted once."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_engine_gives_the_boxes_of_pytorch(
    name: str, sure: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, media: Path, tmp_path: Path
) -> None:
    """Also with several images at a time, for every size, and in detect.py."""
    need_packages(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    runtime, plain = load_fastest(sure, CPU, amp="off", engine=name), load_runtime(sure, CPU)
    assert (runtime.names, runtime.stride, runtime.size, runtime.imgsz) == (plain.names, 8, None, 64)
    images = [noise(size) for size in ((64, 64), (64, 96), (96, 64))] * 3
    expected = [plain.predict(image) for image in images]
    found = list(side_by_side(runtime.predict, images, 3))
    assert (errors(runtime, images, expected) < (0.02, 1e-4)).all()
    assert all(torch.equal(a, runtime.predict(image)) for a, image in zip(found, images, strict=True))
    flags = {"weights": str(sure), "source": str(media / "*.png"), "save_txt": True, "max_det": 5, "amp": "off",
             "conf_thres": 0.0}  # fmt: skip
    rows = []
    for e in ("pytorch", name):
        folder = detect.run(**flags, engine=e, project=str(tmp_path), name=e, device="cpu")
        rows.append([(folder / f"labels/00{k}.txt").read_text().count("\n") for k in range(3)])
    assert rows[0] == rows[1] and all(rows[0])


def test_the_converted_file_is_used_again_and_only_if_it_is_the_recorded_one(
    sure: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "onnx"
    need_packages(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    load_fastest(sure, CPU, amp="off", engine=name)
    converted, graph = [], candidates.onnx_graph
    monkeypatch.setattr(candidates, "onnx_graph", lambda *a, **k: converted.append(1) or graph(*a, **k))
    load_fastest(sure, CPU, amp="off", engine=name)
    assert not converted
    (file,) = cache_folder().glob("*.onnx")
    file.write_bytes(file.read_bytes().replace(b"Conv", b"Gemm", 1))
    runtime, image = load_fastest(sure, CPU, amp="off", engine=name), noise((64, 64))
    assert len(converted) == 1
    assert (errors(runtime, [image], [load_runtime(sure, CPU).predict(image)]) < (0.02, 1e-4)).all()
    record = read_record(digest_of(sure))
    assert record.model and (cache_folder() / f"{record.model}.onnx").is_file()


def test_an_engine_with_other_boxes_is_not_used(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_packages("onnx")
    other, real = DetectionModel(TINY).eval(), candidates.onnx_graph
    monkeypatch.setattr(candidates, "onnx_graph", lambda form, *a, **k: real(
        candidates.ExportForm(other, None), *a, **k))  # fmt: skip
    with pytest.raises(UserError, match="--engine onnx: its boxes and scores differ from PyTorch's"):
        load_fastest(weights, CPU, amp="off", engine="onnx")
    monkeypatch.setattr(candidates, "onnx_graph", real)
    with pytest.raises(UserError, match="differ"):  # remembered, and the converted graph too
        load_fastest(weights, CPU, amp="off", engine="onnx")
    monkeypatch.setattr(candidates, "maker_of_graphs", lambda: "a version that converts it correctly")
    assert "ONNX Runtime" in load_fastest(weights, CPU, amp="off", engine="onnx").reason


def test_an_engine_that_fails_in_use_is_left_out(
    weights: Path, stubbed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(image: torch.Tensor) -> None:
        raise UserError("no memory for this size")

    monkeypatch.setattr(Candidates, "open", lambda self, name: SimpleNamespace(predict=fails))
    assert "PyTorch, the fastest engine here" in load(weights)
    assert "PyTorch, the fastest engine here" in load(weights) and len(stubbed.timed) == 1


def test_what_cannot_be_converted_is_remembered(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def fails(*args: object, **how: object) -> bytes:
        tries.append(1)
        raise RuntimeError("unsupported operator")

    monkeypatch.setattr(engine, "available", lambda: ["onnx"])
    monkeypatch.setattr(candidates, "need", lambda *args: None)
    monkeypatch.setattr(candidates, "onnx_graph", fails)
    assert "PyTorch" in load(weights) and "PyTorch" in load(weights) and len(tries) == 1


def test_an_unreadable_checkpoint_is_left_to_the_loading(
    weights: Path, stubbed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(file: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(candidates, "digest_of", denied)
    assert "not compared" in load(weights, 40)


def test_openvino_computes_in_bfloat16_only_as_exactly_as_pytorch(
    sure: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_packages("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setattr("utils.system.precision.cpu_bf16_units", lambda: "AVX-512")
    for exact, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(Candidates, "_is_exact", lambda self, r, e=exact: e or r.dtype == torch.float32)
        assert load_fastest(sure, CPU, amp="auto", engine="openvino").dtype == dtype


def test_timing_runs_every_engine_alike() -> None:
    calls = {"a": 0, "b": 0}

    def runtime(name: str) -> SimpleNamespace:
        def predict(image: torch.Tensor) -> None:
            assert image.shape == (1, 3, 64, 96) and image.dtype == torch.uint8
            calls[name] += 1

        return SimpleNamespace(predict=predict)

    speeds = time_engines({name: runtime(name) for name in calls}, (64, 96))
    assert speeds.keys() == calls.keys() and calls["a"] == calls["b"] >= 6 and min(speeds.values()) >= 0
