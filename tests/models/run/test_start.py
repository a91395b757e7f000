"""Which hyper-parameters and optimizer a training starts with, and trainings with other heads from end to end."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, write_yolo_set

import detect
import train
import val
from models.run.start import build_model, choose_hyp, head_name
from models.weights.checkpoint import load_checkpoint, save_checkpoint, weights_content
from models.yolo import DetectionModel
from my_tools.check_resume import differences
from utils.errors import UserError
from utils.settings.config import CHOICES, load_hyp
from utils.settings.options import OPTIMIZERS, TrainOptions, effective_hyp

FREE, USUAL = "yolov5_shufflenet_free.yaml", "yolov5_shufflenet.yaml"
TINY = {"nc": 1, "backbone": [[-1, 1, "Conv", [8, 3, 8]]], "head": [[[-1], 1, "AnchorFreeDetect", ["nc", 4, 8]]]}


@pytest.mark.parametrize(
    ("flags", "hyp", "optimizer", "told"),
    [
        ({}, "hyp.scratch-low.yaml", "SGD", ""),
        ({"cfg": USUAL}, "hyp.scratch-low.yaml", "SGD", ""),
        ({"cfg": FREE}, "hyp.free.yaml", "AdamW", "--hyp hyp.free.yaml: the default of AnchorFreeDetect"),
        ({"cfg": FREE, "optimizer": "SGD"}, "hyp.free.yaml", "SGD", "the default of"),
        ({"cfg": FREE, "hyp": "hyp.scratch-med.yaml"}, "hyp.scratch-med.yaml", "SGD", "gain 'box' of 0.05"),
        ({"cfg": FREE, "label_smoothing": 0.1}, "hyp.free.yaml", "AdamW", "label_smoothing and cls_pw have no effect"),
        ({"cfg": USUAL, "hyp": "hyp.free.yaml"}, "hyp.free.yaml", "AdamW", ""),
        ({"weights": "free.pt"}, "hyp.free.yaml", "AdamW", "the default of AnchorFreeDetect"),
        ({"weights": "free.pt", "cfg": USUAL}, "hyp.scratch-low.yaml", "SGD", ""),
    ],
)
def test_the_hyp_file_suits_the_head(
    flags: dict, hyp: str, optimizer: str, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if "weights" in flags:
        flags = {**flags, "weights": str(tmp_path / flags["weights"])}
        save_checkpoint(flags["weights"], weights_content(DetectionModel(TINY), 64))
    opt = TrainOptions.from_flags(flags)
    with caplog.at_level("INFO"):
        choose_hyp(opt)
    assert (opt.hyp, opt.optimizer, opt.cos_lr) == (hyp, optimizer, hyp == "hyp.free.yaml")
    assert told in caplog.text and bool(told) == bool(caplog.text)


def test_the_default_of_the_head_comes_before_that_of_the_dataset() -> None:
    opt = TrainOptions.from_flags({"cfg": FREE})
    opt.with_defaults({"hyp": "hyp.short.yaml", "optimizer": "Adam"}, "shapes.yaml")
    choose_hyp(opt)
    assert (opt.hyp, opt.optimizer) == ("hyp.free.yaml", "Adam")


def test_a_config_without_a_head_is_told_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"nc": 1, "backbone": [[-1, 1, "Conv", [8, 3, 8]]], "head": ["x"]}))
    assert head_name(TrainOptions.from_flags({"cfg": str(tmp_path / "x.yaml")})) == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [("assigner: task_alined", "assigner is task_alined .did you mean 'task_aligned'.*one of anchor_ratio, task_al"),
     ("box_loss: 1", "box_loss is 1; it must be one of ciou, siou"), ("class_loss: [bce]", "class_loss is"),
     ("optimizer: sgd", "optimizer is sgd .did you mean 'SGD'"), ("close_mosaic: -1", "close_mosaic is -1"),
     ("asigner: simota", "unknown key 'asigner' .did you mean 'assigner'")],
)  # fmt: skip
def test_wrong_texts_in_a_hyp_file(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "hyp.yaml").write_text(line)
    with pytest.raises(UserError, match=message) as e:
        load_hyp(tmp_path / "hyp.yaml")
    assert "\n" not in str(e.value)


def test_a_hyp_file_without_effect_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "hyp.yaml").write_text("copy_paste: 0.5")
    opt = TrainOptions.from_flags({"hyp": str(tmp_path / "hyp.yaml")})
    choose_hyp(opt)
    assert effective_hyp(opt)["copy_paste"] == 0.5
    assert caplog.text.count("copy_paste has no effect") == 1


def test_a_hyp_file_can_name_every_optimizer() -> None:
    assert CHOICES["optimizer"] == ("", *OPTIMIZERS[1:])


def test_noautoanchor_is_of_no_use_but_no_error_without_anchors() -> None:
    opt = TrainOptions.from_flags({"cfg": FREE, "noautoanchor": True})
    assert not build_model(opt, load_hyp("hyp.free.yaml"), {0: "a"}, None).model[-1].anchor_rows()


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_yolo_set(tmp_path_factory.mktemp("squares"), 24))


@pytest.mark.parametrize("head", ["AnchorFreeDetect", "DecoupledDetect"])
def test_a_training_with_another_head_from_end_to_end(
    head: str, squares: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = yaml.safe_load((ROOT / "models" / USUAL).read_text())
    cfg["head"][-1][2:] = [head, ["nc", 4, 16] if head == "AnchorFreeDetect" else ["nc", "anchors", 16]]
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(cfg))
    with caplog.at_level("INFO"):
        train.run(data=squares, cfg=str(tmp_path / "model.yaml"), imgsz=64, batch_size=8, epochs=2, workers=0,
                  device="cpu", project=str(tmp_path), name="run")  # fmt: skip
    assert ("dfl_loss" in caplog.text) == (head == "AnchorFreeDetect")
    with open(tmp_path / "run/results.csv") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 2 and all(float(r["train/box_loss"]) > 0 and float(r["val/cls_loss"]) >= 0 for r in rows)
    best = str(tmp_path / "run/weights/best.pt")
    assert load_checkpoint(best)["yaml"]["head"][-1][2] == head
    val.run(data=squares, weights=best, project=str(tmp_path), name="val", device="cpu", workers=0)
    detect.run(weights=best, source=str(Path(squares).parent / "images/val"), project=str(tmp_path), name="detect",
               conf_thres=0.0, max_det=3, save_txt=True, device="cpu")  # fmt: skip
    assert list((tmp_path / "detect/labels").glob("*.txt"))


def test_a_stopped_training_with_parts_is_resumed_exactly(
    squares: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hyp file is not needed any more."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "hyp.yaml").write_text((ROOT / "data/hyps/hyp.free.yaml").read_text())
    flags = {"data": squares, "cfg": str(tmp_path / "tiny.yaml"), "hyp": str(tmp_path / "hyp.yaml"),
             "imgsz": 64, "batch_size": 8, "epochs": 3,
             "workers": 0, "device": "cpu", "project": str(tmp_path), "parts": 2, "noplots": True}  # fmt: skip
    train.run(**flags, name="whole")
    real, calls = train.train_batch, []

    def stopped(*args: object) -> bool:
        calls.append(1)
        return real(*args) or len(calls) == 4

    with monkeypatch.context() as m:
        m.setattr(train, "train_batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            train.run(**flags, name="cut")
    (tmp_path / "hyp.yaml").unlink()
    train.run(resume=str(tmp_path / "cut"))
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


def test_the_last_epochs_have_no_mosaics(squares: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from utils.data.dataset import DetectionDataset

    seen: set[tuple[int, bool]] = set()
    real = DetectionDataset._mosaic

    def noted(self: DetectionDataset, *args: object) -> object:
        seen.add(current[0])
        return real(self, *args)

    current = [0]
    getitem = DetectionDataset.__getitem__

    def item(self: DetectionDataset, key: object) -> object:
        current[0] = key[0] if isinstance(key, tuple) else -1
        return getitem(self, key)

    monkeypatch.setattr(DetectionDataset, "_mosaic", noted)
    monkeypatch.setattr(DetectionDataset, "__getitem__", item)
    (tmp_path / "hyp.yaml").write_text("close_mosaic: 2\nmosaic: 1.0\ndfl: 1.5\nbox: 7.5\n")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train.run(data=squares, cfg=str(tmp_path / "tiny.yaml"), hyp=str(tmp_path / "hyp.yaml"), imgsz=64, batch_size=8,
              epochs=5, workers=0, device="cpu", project=str(tmp_path), name="run", noval=True)  # fmt: skip
    assert seen == {0, 1, 2}
    assert torch.isfinite(torch.tensor(load_checkpoint(tmp_path / "run/weights/last.pt")["training"]["rows"])).all()
