"""Checkpoints: round trip, size, and every wrong file refused with one line and nothing run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from models.inference.runtime import Runtime, check_img_size, load_runtime
from models.run import start
from models.weights import checkpoint
from models.weights.checkpoint import (
    load_checkpoint,
    model_from_checkpoint,
    save_checkpoint,
    weights_content,
)
from models.yolo import Model
from utils.errors import UserError
from utils.settings.options import TrainOptions


def small_model() -> Model:
    torch.manual_seed(0)
    model = Model("yolov5_shufflenet.yaml", nc=2).eval()
    model.names = {0: "red", 1: "blue"}
    return model


def test_round_trip_keeps_outputs_and_facts(tmp_path: Path) -> None:
    model, x = small_model(), torch.rand(1, 3, 64, 64)
    model.model[-1].anchors[0, 0] = 7.25  # as autoanchor changes them
    save_checkpoint(tmp_path / "a.pt", weights_content(model, 320, half=False, epoch=3))
    content = load_checkpoint(tmp_path / "a.pt")
    assert (content["kind"], content["imgsz"], content["epoch"], content["stride"]) == ("weights", 320, 3, [8, 16, 32])
    again = model_from_checkpoint(content)
    assert torch.equal(again(x)[0], model(x)[0]) and again.names == model.names


@pytest.mark.parametrize(("cfg", "mebibytes"), [("yolov5_shufflenet.yaml", 2.0), ("yolov5_stem_shufflenet.yaml", 6.7)])
def test_best_pt_is_as_small_as_the_article_says(tmp_path: Path, cfg: str, mebibytes: float) -> None:
    save_checkpoint(tmp_path / "best.pt", weights_content(Model(cfg, nc=20), 640))
    assert (tmp_path / "best.pt").stat().st_size / 2**20 == pytest.approx(mebibytes, abs=0.25)
    runtime = load_runtime(tmp_path / "best.pt", torch.device("cpu"))
    assert runtime.imgsz == 640 and runtime.dtype == torch.float32


class Attack:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.save({"model": Attack(p.with_suffix(".ran"))}, p), "asks for '__builtin__.getattr'"),
        (lambda p: p.write_bytes(pickle.dumps(Attack(p.with_suffix(".ran")))), "is not a checkpoint|damaged"),
        (lambda p: p.write_text("<!doctype html><html>not found</html>"), "is not a checkpoint|damaged"),
        (lambda p: p.write_bytes(b""), "damaged"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: None, "no such file"),
        (lambda p: torch.save([1, 2], p), "not a checkpoint of this program"),
        (lambda p: torch.save({"model": {}}, p), "not a checkpoint of this program"),
        (lambda p: torch.save({"format": "yolov5-light", "version": 99}, p), "newer version"),
        (lambda p: torch.save({"format": "yolov5-light", "version": "x"}, p), "another version of the format"),
        (lambda p: torch.save({"format": "yolov5-light", "version": 1}, p), "'model' is missing"),
        (lambda p: p.write_bytes(b"\x80\x02\x2e"), "damaged|is not a checkpoint"),
    ],
)
def test_anything_else_is_one_line(tmp_path: Path, make, message: str) -> None:
    file = tmp_path / "x.pt"
    make(file)
    with pytest.raises(UserError, match=message) as e:
        load_checkpoint(file)
    assert "\n" not in str(e.value) and "x.pt" in str(e.value)
    assert not file.with_suffix(".ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": [1]}, "its 'model' is a list"),
        ({"model": {"a": 1}}, "something other than named tensors"),
        ({"model": {1: torch.ones(1)}}, "something other than named tensors"),
        ({"model": {"a": torch.ones(1, dtype=torch.int8)}}, "'a' has the dtype torch.int8"),
        ({"model": {"a": torch.tensor([float("nan")])}}, "values of 'a' are not finite"),
        ({"model": {"a": torch.ones(1)}}, None),
        ({"yaml": None}, "'yaml' is missing"),
        ({"yaml": "/etc/hostname"}, "its 'yaml' is a str"),
        ({"names": None}, "'names' is missing"),
        ({"names": ["a", "b"]}, "its 'names' is a list"),
        ({"names": {0: "a"}}, "class names are not numbered"),
        ({"names": {5: "a", 7: "b"}}, "class names are not numbered"),
        ({"imgsz": "abc"}, "its 'imgsz' is a str"),
        ({"imgsz": 64.5}, "its 'imgsz' is a float"),
        ({"imgsz": 10**6}, "its imgsz is not between 32"),
        ({"imgsz": -5}, "its imgsz is not between 32"),
        ({"kind": 3}, "its 'kind' is an int"),
        ({"stride": "abc"}, "its 'stride' is a str"),
    ],
)
def test_a_damaged_part_is_named(tmp_path: Path, changes: dict, message: str | None) -> None:
    torch.save({**weights_content(small_model(), 64), **changes}, tmp_path / "x.pt")
    if message is None:  # the tensors are compared with the config when the model is built
        with pytest.raises(UserError, match="x.pt: its weights do not fit .*('a' is unexpected|is missing)"):
            model_from_checkpoint(load_checkpoint(tmp_path / "x.pt"), "x.pt")
        return
    with pytest.raises(UserError, match=message) as e:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(e.value) and "x.pt: is " in str(e.value)


@pytest.mark.parametrize(
    "rows",
    [
        [[-1, 1, "Conv", [16384, 1, 1]]] * 6,  # 10 GB of numbers
        [[-1, 1000, "Conv", [8, 1, 1]]] * 40,
    ],
)
def test_a_config_does_not_decide_how_much_is_built(
    rows: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = weights_content(small_model(), 64)
    content["yaml"] = {**content["yaml"], "backbone": rows + content["yaml"]["backbone"]}
    for module in (checkpoint, start):
        monkeypatch.setattr(module, "DetectionModel", None)  # must not be reached
    with pytest.raises(UserError, match="do not fit its own model config"):
        model_from_checkpoint(content)
    save_checkpoint(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match="do not fit its own model config"):
        start.build_model(TrainOptions(weights=str(tmp_path / "x.pt")), {"anchors": 0}, {0: "red"}, None)


def test_a_torchscript_export(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(tmp_path / "x.pt"))
    recwarn.clear()
    with pytest.raises(UserError, match="is a TorchScript export"):
        load_checkpoint(tmp_path / "x.pt")
    assert not recwarn


def test_cut_off_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", weights_content(small_model(), 640))
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged or truncated|is not a checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_weights_of_another_network(tmp_path: Path) -> None:
    content = weights_content(small_model(), 640)
    content["yaml"]["width_multiple"] = 0.75
    with pytest.raises(UserError, match="do not fit its own model config"):
        model_from_checkpoint(content)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.pt"
    save_checkpoint(file, {"a": torch.ones(1)})
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device.*intact"):
        save_checkpoint(file, {"a": torch.zeros(100)})
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_only_a_training_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", weights_content(small_model(), 640))
    with pytest.raises(UserError, match="--resume needs last.pt"):
        load_checkpoint(tmp_path / "best.pt", training=True)


def test_runtime_takes_uint8_and_float() -> None:
    runtime = Runtime(small_model(), torch.device("cpu"), imgsz=320)
    x = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(runtime.predict(x), runtime.predict(x.float() / 255))
    assert (runtime.stride, runtime.imgsz) == (32, 320)


@pytest.mark.parametrize(
    ("imgsz", "expected"), [(640, [640, 640]), (630, [640, 640]), ([320], [320, 320]), ([300, 500], [320, 512])]
)
def test_image_size_is_rounded_up_to_the_stride(imgsz, expected: list[int]) -> None:
    assert check_img_size(imgsz, 32) == expected


@pytest.mark.parametrize("imgsz", [0, -32, [1, 2, 3]])
def test_impossible_image_size(imgsz) -> None:
    with pytest.raises(UserError, match="--imgsz"):
        check_img_size(imgsz, 32)


def test_torch_load_and_save_stay_in_one_file() -> None:
    root = Path(checkpoint.__file__).parents[1]
    files = [p for p in root.rglob("*.py") if not {"tests", ".venv", "venv"} & set(p.relative_to(root).parts)]
    users = {p.name for p in files if "torch.load(" in p.read_text() or "torch.save(" in p.read_text()}
    assert users == {"checkpoint.py"}
