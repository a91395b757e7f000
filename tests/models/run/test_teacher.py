"""A teacher: which files, classes and maps fit; what it sees; a training with it, and its exact resume."""

from __future__ import annotations

import copy
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from exports import need_packages
from helpers import run_main, run_script, write_yolo_set

import export
import train
from models.run.teacher import Teacher
from models.run.teaching import Pupil, with_lesson
from models.weights.checkpoint import load_checkpoint, save_checkpoint, weights_content
from models.yolo import DetectionModel
from my_tools.check_resume import differences
from utils.errors import UserError
from utils.settings.config import load_hyp
from utils.system.precision import Precision

FLOAT32 = Precision(torch.float32, torch.device("cpu"), "")
BODY = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]]
ANCHORS = [[10, 13, 33, 23], [30, 61, 62, 45]]
HEADS = {"Detect": ["nc", "anchors"], "DecoupledDetect": ["nc", "anchors", 8], "AnchorFreeDetect": ["nc", 16, 8]}


def network(head: str = "Detect", names: tuple[str, ...] = ("blue", "Red"), maps: tuple[int, ...] = (1, 2)
            ) -> DetectionModel:  # fmt: skip
    torch.manual_seed(0)
    anchors = ANCHORS[: len(maps)]
    model = DetectionModel({"nc": len(names), "depth_multiple": 1, "width_multiple": 1, "anchors": anchors,
                            "backbone": BODY, "head": [[list(maps), 1, head, HEADS[head]]]})  # fmt: skip
    model.names = dict(enumerate(names))
    for p in model.parameters():  # visible scores everywhere
        torch.nn.init.normal_(p, std=0.5)
    return model


def saved(path: Path, model: DetectionModel) -> Path:
    save_checkpoint(path, weights_content(copy.deepcopy(model), 64))
    return path


def teacher(path: Path, names: tuple[str, ...] = ("red", "blue")) -> Teacher:
    return Teacher(path, dict(enumerate(names)), [4, 8], FLOAT32)


@pytest.mark.parametrize("head", HEADS)
def test_it_tells_the_best_prediction_of_each_cell(head: str, tmp_path: Path) -> None:
    model, images = network(head), torch.rand(2, 3, 32, 64)
    taught = teacher(saved(tmp_path / "t.pt", model))(images)
    found = model.half().float().eval()(images)[0]
    assert taught.scores.shape == (2, 8 * 16 + 4 * 8, 2) and taught.known.all()
    na = model.model[-1].na
    cells = torch.cat([part.unflatten(1, (na, -1)) for part in found.split([na * 128, na * 32], 1)], 2)
    for image, cell in ((0, 0), (1, 77), (0, 130), (1, 159)):
        ones = cells[image, :, cell]
        scores = ones[:, 4:5] * ones[:, 5:].flip(1)  # red is the teacher's second class
        best = scores.amax(1).argmax()
        assert torch.allclose(taught.scores[image, cell], scores[best], atol=1e-4)
        box = taught.boxes[image, cell]
        assert torch.allclose((box[2:] + box[:2]) / 2, ones[best, :2], atol=1e-2, rtol=1e-3)
        assert torch.allclose(box[2:] - box[:2], ones[best, 2:4], atol=1e-2, rtol=1e-3)
    assert [f.shape[1] for f in taught.features] == [16, 16]
    assert (taught.distributions is not None) == (head == "AnchorFreeDetect")


def test_an_unknown_class_has_no_scores(tmp_path: Path) -> None:
    taught = teacher(saved(tmp_path / "t.pt", network()), ("red", "green"))(torch.rand(1, 3, 32, 32))
    assert taught.known.tolist() == [True, False] and taught.scores[..., 0].any() and not taught.scores[..., 1].any()


def test_an_exported_model_sees_what_its_checkpoint_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_packages("onnx")
    file = saved(tmp_path / "t.pt", network())
    assert run_main(monkeypatch, export, "--weights", file, "--include", "onnx", "--imgsz", 64) == 0
    images = torch.rand(2, 3, 64, 64)
    taught, exported = (teacher(f)(images) for f in (file, file.with_suffix(".onnx")))
    assert torch.allclose(taught.scores, exported.scores, atol=1e-4)
    assert torch.allclose(taught.boxes, exported.boxes, atol=1e-2, rtol=1e-3)
    assert exported.features is None and exported.distributions is None


@pytest.mark.parametrize(
    ("model", "names", "message"),
    [
        (network(names=("cat", "dog")), ("red", "blue"), "has none of the classes red, blue"),
        (network(maps=(0, 1)), ("red", "blue"), "strides 2, 4, those of the network in training 4, 8"),
    ],
)
def test_a_teacher_that_does_not_fit(model: DetectionModel, names: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        teacher(saved(tmp_path / "t.pt", model), names)


def test_an_exported_teacher_of_other_strides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_packages("onnx")
    file = saved(tmp_path / "t.pt", network(maps=(0, 1)))
    assert run_main(monkeypatch, export, "--weights", file, "--include", "onnx", "--imgsz", 64) == 0
    with pytest.raises(UserError, match="strides 4, those of the network in training 4, 8"):
        teacher(file.with_suffix(".onnx"))


def test_names_that_are_only_numbers_match_if_all_are_equal(tmp_path: Path) -> None:
    file = saved(tmp_path / "t.pt", network(names=("0", "1")))
    assert teacher(file, ("0", "1")).columns.tolist() == [0, 1]
    with pytest.raises(UserError, match="has none of the classes 0, 1, 2"):
        teacher(file, ("0", "1", "2"))


def test_the_whole_folder_of_an_openvino_model_is_the_teacher(tmp_path: Path) -> None:
    (tmp_path / "t_openvino").mkdir()
    (tmp_path / "t_openvino/t.xml").write_text("<net/>")
    assert Teacher._found(tmp_path / "t_openvino/t.xml") == tmp_path / "t_openvino"


def test_the_lesson_counts_as_often_as_there_are_images() -> None:
    losses = torch.tensor([10.0]), torch.tensor([1.0, 2, 3])
    loss, parts = with_lesson(losses, torch.tensor([2.0]), 4, 8)
    assert loss.tolist() == [18] and parts.tolist() == [1, 2, 3, 1]  # half of the batch
    loss, parts = with_lesson(losses, None, 4, 8)
    assert loss.tolist() == [10] and parts.tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("term", ["channel_wise", "masked"])
def test_a_pupil_returns_the_maps_of_its_model(term: str, tmp_path: Path) -> None:
    model = network("AnchorFreeDetect", ("red", "blue")).train()
    model.hyp = {**load_hyp("hyp.free"), "feature_loss": term, "teacher_feature": 1.0}
    who = teacher(saved(tmp_path / "t.pt", network()))
    pupil, images = Pupil(model, who.channels), torch.rand(2, 3, 32, 32)
    plain = copy.deepcopy(model)(images)
    raw, loss = pupil(images, who(images), (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(plain, raw, strict=True))
    assert loss.shape == (1,) and loss.isfinite()
    loss.backward()
    assert all(p.grad is not None for p in pupil.terms.parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of squares, and a teacher whose weights are random."""
    folder = tmp_path_factory.mktemp("teacher")
    file = write_yolo_set(folder / "set", 20)
    content = yaml.safe_load(file.read_text())
    file.with_name("more.yaml").write_text(yaml.safe_dump({**content, "unlabelled": content["val"], "val": None}))
    model = DetectionModel("yolov5n.yaml", nc=2)
    model.names = {0: "red", 1: "blue"}
    for m in model.model[-1].m:
        with torch.no_grad():
            m.bias.view(3, -1)[:, 4:] = torch.tensor([1.5, 0.5, 0.4])  # it sees objects everywhere
    saved(folder / "teacher.pt", model)
    hyp = load_hyp("hyp.scratch-low")
    for term in ("channel_wise", "masked"):
        own = {"nbs": 16, "warmup_epochs": 0.5, "teacher_feature": 1.0, "feature_loss": term}
        (folder / f"{term}.yaml").write_text(yaml.safe_dump({**hyp, **own}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("term", "parts"), [("channel_wise", 1), ("masked", 2)])
def test_a_run_with_a_teacher_is_stopped_and_resumed(
    term: str, parts: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts > 1 and sys.platform != "linux":
        pytest.skip("helper processes are forked on Linux only")
    options = {"data": str(folder / "set/squares.yaml"), "hyp": str(folder / f"{term}.yaml"), "epochs": 2,
               "batch_size": 8, "imgsz": 64, "project": str(folder), "device": "cpu", "noplots": True, "noval": True,
               "workers": 0, "teacher": str(folder / "teacher.pt"), "parts": parts}  # fmt: skip
    if parts > 1:
        options = {**options, "amp": "bf16", "data": str(folder / "set/more.yaml")}
    train.run(**options, name=f"whole{parts}")
    real, calls = train.train_batch, []

    def interrupted(*args) -> bool:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as m:
        m.setattr(train, "train_batch", interrupted)
        with pytest.raises(KeyboardInterrupt, match="and saved; to resume"):
            train.run(**options, name=f"cut{parts}")
    moved, other = folder / f"moved{parts}.pt", DetectionModel("yolov5n.yaml", nc=2)
    other.names = {0: "red", 1: "blue"}
    moved.write_bytes((folder / "teacher.pt").read_bytes())
    with pytest.raises(UserError, match="is not the model that has taught this run until now"):
        train.run(resume=str(folder / f"cut{parts}"), teacher=str(saved(folder / f"other{parts}.pt", other)))
    train.run(resume=str(folder / f"cut{parts}"), teacher=str(moved))
    assert differences(folder / f"whole{parts}", folder / f"cut{parts}") == []
    for file, has_terms in (("last.pt", True), ("best.pt", False)):
        content = load_checkpoint(folder / f"whole{parts}/weights" / file)
        assert not any("terms" in key for key in content["model"])
        assert has_terms == any("terms" in key for key in content.get("training", {}).get("model", {}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--teacher", "nothing.pt"], "nothing.pt"),
        (["--teacher", "README.md"], "README.md"),
        (["--teacher", "yolov5n.pt", "--quad"], "--quad cannot be combined with --teacher"),
        (["--teacher", "yolov5n.pt", "--compile"], "--compile cannot be combined with --teacher"),
        (["--teacher", "yolov5n.pt", "--batch-size", "-1"], "--batch-size -1 cannot be combined with --teacher"),
    ],
)
def test_wrong_flags(
    flags: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--data", folder / "set/squares.yaml", "--imgsz", 64, "--project", folder, "--name", "wrong", *flags]
    assert run_main(monkeypatch, train, *words) == 1
    assert message in caplog.text


@pytest.mark.slow
def test_an_exported_teacher_is_opened_in_each_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of an engine that was open before processes are forked are missing in them."""
    need_packages("onnx")
    assert run_main(monkeypatch, export, "--weights", folder / "teacher.pt", "--include", "onnx", "--imgsz", 64) == 0
    done = run_script("train.py", "--data", folder / "set/squares.yaml", "--imgsz", 64, "--epochs", 1, "--parts", 2,
                      "--batch-size", 8, "--teacher", folder / "teacher.onnx", "--noplots", "--noval", "--workers", 0,
                      "--project", folder, "--name", "engine", "--device", "cpu", timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
