"""compare.py and the experiment behind --reproduce, on tiny sets: what is measured, how it goes on, what is refused."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, run_main, write_yolo_set

import export
import train
import val
from models.weights.checkpoint import find_weights, load_checkpoint, save_checkpoint, weights_content
from models.yolo import Model
from my_tools import compare
from my_tools.comparing import reproduce
from my_tools.comparing.models import labels_beside, labels_for, score_of, training_record
from utils.errors import UserError
from utils.evaluation.metrics import IOU_THRESHOLDS, process_batch
from utils.evaluation.scoring import ImageRecord, Part, Settings, results_of
from utils.report.comparison import COLUMNS, Entry
from utils.settings.dataset import load_data

SMALL = {"epochs": 1, "imgsz": 64, "batch_size": 4, "workers": 0, "device": "cpu", "amp": "off",
         "noplots": True}  # fmt: skip
QUICK = {"seconds": 0.01, "draws": 0, "pictures": 3, "workers": 0, "device": "cpu"}
MODELS = ("yolov5_shufflenet.yaml", "yolov5_stem_shufflenet_p3.yaml")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo_set(tmp_path_factory.mktemp("compare") / "set", 8)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two run folders of the experiment, as small as can be."""
    return reproduce.train_all("voc", MODELS, {"data": str(data), **SMALL}, tmp_path_factory.mktemp("experiment"))


def rows_of(report: Path) -> list[Mapping[str, str]]:
    with open(report.with_name("table.csv"), encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


# --- the experiment


def test_models_are_trained_alike_and_what_is_finished_is_left(
    runs: list[Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [r.name for r in runs] == ["yolov5_shufflenet", "yolov5_stem_shufflenet_p3"]
    options = [yaml.safe_load((r / "opt.yaml").read_text()) for r in runs]
    assert {k for k in options[0] if options[0][k] != options[1][k]} == {"cfg", "name"}
    monkeypatch.setattr(train, "run", lambda **_: pytest.fail("trained again"))
    assert reproduce.train_all("voc", MODELS, {"data": str(data), **SMALL}, runs[0].parents[1]) == runs


@pytest.mark.parametrize(("flags", "message"), [({"epochs": 2}, "--epochs 1, now it is 2"),
                                               ({"seed": 5}, "--seed 0, now it is 5"),
                                               ({"hyp": "hyp.VOC.yaml"}, "--hyp with lr0 0.01, now it is 0.00334")])
def test_runs_under_other_conditions_are_refused(
    runs: list[Path], data: Path, flags: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "run", lambda **_: pytest.fail("trained"))
    with pytest.raises(UserError, match=message):
        reproduce.train_all("voc", MODELS, {"data": str(data), **SMALL, **flags}, runs[0].parents[1])


def test_runs_of_an_older_version_are_finished_too(
    runs: list[Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lack hyper-parameters that were added later."""
    read = reproduce.load_checkpoint

    def older(file: Path, training: bool) -> dict:
        content = read(file, training=training)
        hyp = {k: v for k, v in content["hyp"].items() if k not in ("dfl", "cos_lr", "close_mosaic")}
        assert len(hyp) < len(content["hyp"])
        return {**content, "hyp": hyp}

    monkeypatch.setattr(reproduce, "load_checkpoint", older)
    monkeypatch.setattr(train, "run", lambda **_: pytest.fail("trained again"))
    assert reproduce.train_all("voc", MODELS, {"data": str(data), **SMALL}, runs[0].parents[1]) == runs


def test_a_head_that_needs_another_hyp_file_gets_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, models = [], ("yolov5_shufflenet_free.yaml", "yolov5_shufflenet.yaml")
    monkeypatch.setattr(train, "run", lambda **flags: asked.append(flags))
    reproduce.train_all("voc", models, {}, tmp_path)
    assert [flags.get("hyp") for flags in asked] == [None, "hyp.scratch-low.yaml"]
    asked.clear()
    reproduce.train_all("voc", models, {"hyp": "hyp.VOC.yaml"}, tmp_path)
    assert [flags["hyp"] for flags in asked] == ["hyp.VOC.yaml"] * 2


@pytest.mark.slow
def test_an_edited_file_of_the_same_name_is_another_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_yolo_set(tmp_path / "set", 4)
    hyp, cfg = tmp_path / "hyp.mine.yaml", tmp_path / "mine.yaml"
    hyp.write_text((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text())
    cfg.write_text((ROOT / "models" / MODELS[0]).read_text())
    flags = {"data": str(data), **SMALL, "hyp": str(hyp)}
    reproduce.train_all("voc", [str(cfg)], flags, tmp_path / "x")
    monkeypatch.setattr(train, "run", lambda **_: pytest.fail("trained again"))
    for file, old, new, message in (
        (hyp, "mosaic: 1.0", "mosaic: 0.0", "--hyp with mosaic 1.0, now it is 0.0"),
        (cfg, "width_multiple: 0.5", "width_multiple: 0.25", "the width_multiple of the model yaml as it was"),
        (data.parent / "labels/train/000.txt", "0 ", "1 ", "set of images and labels as it was"),
    ):
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            reproduce.train_all("voc", [str(cfg)], flags, tmp_path / "x")
        file.write_text(text)
    assert reproduce.train_all("voc", [str(cfg)], flags, tmp_path / "x")


@pytest.mark.slow
def test_a_stopped_experiment_goes_on_to_the_same_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"data": str(data), **SMALL, "epochs": 2}
    (whole,) = reproduce.train_all("voc", MODELS[:1], flags, tmp_path / "whole")
    epoch = train.train_epoch

    def stopping(run: train.Run, stop: object) -> None:
        if run.state.epoch == 1:
            raise train.Stopped
        epoch(run, stop)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", stopping)
        with pytest.raises(KeyboardInterrupt, match="to resume, run the same command again"):
            reproduce.train_all("voc", MODELS[:1], flags, tmp_path / "cut")
    (cut,) = reproduce.train_all("voc", MODELS[:1], flags, tmp_path / "cut")
    a, b = (load_checkpoint(run / "weights/last.pt")["model"] for run in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not (cut.parent / f"{cut.name}2").exists()


def test_a_run_cut_off_before_its_first_checkpoint_starts_again_in_its_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train/yolov5_shufflenet/weights").mkdir(parents=True)
    (run,) = reproduce.train_all("voc", MODELS[:1], {"data": str(data), **SMALL}, tmp_path)
    assert (run / "weights/best.pt").is_file() and [p.name for p in run.parent.iterdir()] == ["yolov5_shufflenet"]


def test_a_size_that_is_rounded_up_to_the_stride_is_no_other_condition(data: Path, tmp_path: Path) -> None:
    flags = {"data": str(data), **SMALL, "imgsz": 96}
    (run,) = reproduce.train_all("voc", ["yolov5_stem_shufflenet.yaml"], flags, tmp_path)
    assert load_checkpoint(run / "weights/best.pt")["imgsz"] == 128
    assert reproduce.train_all("voc", ["yolov5_stem_shufflenet.yaml"], flags, tmp_path) == [run]


def test_the_experiments_flags_are_the_articles_and_another_set_has_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(train, "run", lambda **flags: asked.append(flags))
    reproduce.train_all("voc", (), {"seed": None}, tmp_path)
    assert [Path(f["cfg"]).stem for f in asked] == ["yolov5_shufflenet", "yolov5_stem_shufflenet", "yolov5l_slimneck"]
    assert all((f["data"], f["epochs"], f["imgsz"]) == ("VOC.yaml", 300, 640) for f in asked)
    asked.clear()
    reproduce.train_all("voc", MODELS[:1], {"data": str(data), "epochs": 3}, tmp_path)
    assert asked[0]["epochs"] == 3 and not {"imgsz", "hyp", "batch_size"} & set(asked[0])


@pytest.mark.parametrize(("models", "message"), [(("yolov5_shuflenet.yaml",), "did you mean"),
                                                ((MODELS[0], MODELS[0]), "same name")])
def test_wrong_models_are_told_before_any_training(
    models: tuple[str, ...], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "run", lambda **_: pytest.fail("trained"))
    with pytest.raises(UserError, match=message):
        reproduce.train_all("voc", models, {"data": str(data)}, tmp_path)


# --- the comparison


@pytest.fixture(scope="module")
def report(runs: list[Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them twice: as a folder and as its file under another name."""
    folder = tmp_path_factory.mktemp("report")
    copy = folder / "copy.pt"
    copy.write_bytes((runs[0] / "weights/best.pt").read_bytes())
    weights = [str(runs[0]), str(runs[1] / "weights/best.pt"), str(copy)]
    return compare.run(weights=weights, data=str(data), project=str(folder), name="x", **QUICK)


def test_the_table_has_what_val_measures_and_the_run_left(report: Path, runs: list[Path], data: Path) -> None:
    rows = rows_of(report)
    assert report == report.parent / "report.html" and report.parent.name == "x"
    assert [r["model"] for r in rows] == ["yolov5_shufflenet", "yolov5_stem_shufflenet_p3", "copy"]
    assert {c.key for c in COLUMNS} < set(rows[0])
    for run, row in zip(runs, rows, strict=False):
        results = val.run(weights=str(run / "weights/best.pt"), data=str(data), noplots=True, workers=0,
                          project=str(report.parent))  # fmt: skip
        measured = [float(row[k]) for k in ("precision", "recall", "map50", "map")]
        assert measured == pytest.approx(results.summary.tolist(), abs=1e-6)
        assert (row["epochs"], row["imgsz"], row["strides"]) == ("1", "64", "8/16/32")
        assert float(row["size_mib"]) == pytest.approx((run / "weights/best.pt").stat().st_size / 2**20, abs=0.02)
        with open(run / "results.csv", encoding="utf-8", newline="") as f:
            (line,) = csv.DictReader(f)
        spent = sum(float(line[f"time/{k}"]) for k in ("data", "step", "val"))
        assert float(row["train_seconds"]) == pytest.approx(spent)
        assert 0 < float(row["ms_32"]) < float(row["ms_1"]) and row["ms_1_p95"] == ""  # of so few rounds
    assert (rows[2]["epochs"], rows[2]["train_seconds"]) == ("1", "") and rows[2]["map50"] == rows[0]["map50"]
    assert rows[0]["parameters"] == str(sum(p.numel() for p in Model(MODELS[0], nc=2).parameters()))


def some_records(skill: float) -> list[ImageRecord]:
    """Detections of 40 images, near-duplicates among them, of which about `skill` lie where a label is."""
    rng, records = np.random.default_rng(0), []
    for k in range(40):
        corner = rng.uniform(0, 300, (4, 2))
        true = np.column_stack((rng.integers(0, 2, 4), corner, corner + 60)).astype(np.float32)
        boxes = np.repeat(true[:, 1:], 2, 0) + rng.normal(0, np.where(rng.random((8, 1)) < skill, 4, 90), (8, 4))
        found = np.column_stack((boxes, np.sort(rng.random(8))[::-1], np.repeat(true[:, 0], 2))).astype(np.float32)
        correct = process_batch(torch.from_numpy(found), torch.from_numpy(true), torch.tensor(IOU_THRESHOLDS)).numpy()
        records.append(ImageRecord(f"{k:03d}.jpg", found, true, correct))
    return records


def test_intervals_are_of_the_figures_in_the_table() -> None:
    entries = []
    for skill in (0.9, 0.4):
        records = some_records(skill)
        results = results_of(Part(records, [], np.zeros(3), []), {0: "a", 1: "b"}, Settings(by_size=False))
        entries.append(Entry(f"{skill}", "", "", 1, 1, 1.0, 64, (8,), results=results, records=records))
    assert any((r.correct.any(1) & ~r.correct[:, 0]).any() for e in entries for r in e.records)
    differences = compare.add_intervals(entries, 100)
    for entry in entries:
        assert (entry.map50.value, entry.map.value) == pytest.approx(tuple(entry.results.summary[2:]), abs=1e-12)
        assert 0 < entry.map.low < entry.map.value < entry.map.high < 1
    assert [(d.metric, d.verdict) for d in differences] == [("mAP50", "better"), ("mAP50-95", "better")]


def test_the_same_weights_differ_by_nothing(runs: list[Path], tmp_path: Path) -> None:
    data = load_data(write_yolo_set(tmp_path / "set", 32))
    weights = [str(runs[0]), str(runs[0]), str(runs[1])]
    candidates = compare.load_candidates(weights, [], [], data, None, torch.device("cpu"), False)
    assert [c.label for c in candidates] == ["yolov5_shufflenet", "yolov5_shufflenet_2", "yolov5_stem_shufflenet_p3"]
    opt = compare.Options(weights=["x"], data=str(data.yaml_file), **{**QUICK, "draws": 100, "seconds": 0})
    comparison = compare.compare(candidates, data, opt, torch.device("cpu"), "")
    assert not any(entry.latency for entry in comparison.entries)
    assert [(d.interval, d.verdict) for d in comparison.differences[:2]] == [((0.0, 0.0, 0.0), "undecided")] * 2
    assert [(d.first, d.second) for d in comparison.differences[::2]] == [(0, 1), (0, 2), (1, 2)]
    assert len(comparison.pictures) == 3 and all(len(row.tiles) == 3 for row in comparison.pictures)


def test_too_few_images_for_intervals_is_said(report: Path) -> None:
    assert "8 images are too few for intervals (30 needed)" in report.read_text(encoding="utf-8")
    assert {row["map_low"] for row in rows_of(report)} == {""}


def test_untrained_models_have_everything_but_accuracy(tmp_path: Path) -> None:
    report = compare.run(cfg=[*MODELS], imgsz=64, project=str(tmp_path), **QUICK)
    for row in rows_of(report):
        assert row["map50"] == row["epochs"] == "" and float(row["gflops"]) > 0 and float(row["ms_1"]) > 0
        assert 1.5 < float(row["size_mib"]) < 2.5
    assert report.parent == tmp_path / "exp"


def test_untrained_models_have_as_many_classes_each(tmp_path: Path) -> None:
    """The yaml of yolov5n has 80, the other one 20."""
    report = compare.run(cfg=[MODELS[0], "yolov5n.yaml"], imgsz=64, project=str(tmp_path), **QUICK)
    assert [int(row["parameters"]) for row in rows_of(report)] == [890_785, 1_790_977]  # as in the README
    assert "yolov5n: built with 20 classes, like the others; its yaml has 80." in report.read_text(encoding="utf-8")


def test_a_model_of_more_classes_is_measured_on_those_of_the_data(
    runs: list[Path], data: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(runs[0] / "weights/best.pt")
    wide = Model(MODELS[0], nc=4)
    wide.names = dict(enumerate(("green", "Blue", "red", "white")))
    state = wide.state_dict()
    for key, tensor in content["model"].items():
        if state[key].shape == tensor.shape:
            state[key] = tensor.float()
        else:  # the head: the same rows, in the order of these classes
            rows, theirs = state[key].view(3, 9, *tensor.shape[1:]), tensor.float().view(3, 7, *tensor.shape[1:])
            rows[:, :5], rows[:, 6], rows[:, 7] = theirs[:, :5], theirs[:, 6], theirs[:, 5]
    wide.load_state_dict(state)
    save_checkpoint(tmp_path / "wide.pt", weights_content(wide, 64, half=False))
    flags = {"weights": [str(runs[0]), str(tmp_path / "wide.pt")], "project": str(tmp_path), **QUICK}
    report = compare.run(data=str(data), **flags)
    first, second = rows_of(report)
    assert first["map"] == second["map"] and first["parameters"] == second["parameters"]
    assert "wide: only the 2 classes of this dataset, of its 4." in report.read_text(encoding="utf-8")
    photos = compare.run(source=str(data.parent / "images/val/000.png"), **flags)
    assert [row["map"] for row in rows_of(photos)] == ["", ""]  # without --data pictures, size and time alone
    assert "000.png" in photos.read_text(encoding="utf-8")


def test_trained_and_untrained_together_with_names_of_ones_own(
    runs: list[Path], data: Path, tmp_path: Path
) -> None:
    report = compare.run(weights=[str(runs[0])], cfg=[MODELS[1]], labels=["old", "new"], data=str(data), imgsz=96,
                         project=str(tmp_path), **QUICK)  # fmt: skip
    old, new = rows_of(report)
    assert (old["model"], new["model"]) == ("old", "new")
    assert old["map50"] and not new["map50"] and old["imgsz"] == new["imgsz"] == "96"


def test_pictures_of_ones_own_are_judged_where_there_are_labels(
    runs: list[Path], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    picture = next((data.parent / "images/val").glob("*.png"))
    for name in ("with.png", "without.png", "bad.png"):
        (folder / name).write_bytes(picture.read_bytes() if name != "bad.png" else b"no picture")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/with.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    shape = cv2.imread(str(picture)).shape[:2]
    expected = np.array([[0, 0.375 * shape[1], 0.25 * shape[0], 0.625 * shape[1], 0.75 * shape[0]]])
    np.testing.assert_allclose(labels_beside(folder / "with.png", shape, 2), expected)
    assert labels_beside(folder / "without.png", shape, 2) is None
    with caplog.at_level("WARNING", logger="yolov5"):
        report = compare.run(weights=[str(runs[0])], data=str(data), source=str(folder), project=str(tmp_path), **QUICK)
    assert "bad.png" in caplog.text
    text = report.with_name("report.md").read_text(encoding="utf-8")
    assert "with.png" in text and "without.png" in text and "bad.png" not in text


def test_the_article_stands_beside_models_of_vocs_classes_only(tmp_path: Path, data: Path, runs: list[Path]) -> None:
    names = load_data("VOC.yaml").names
    folder = write_yolo_set(tmp_path / "voc", 2).parent
    content = yaml.safe_load((folder / "squares.yaml").read_text())
    (folder / "voc.yaml").write_text(yaml.safe_dump({**content, "names": dict(names)}))
    model = Model("yolov5_stem_shufflenet.yaml", nc=20).eval()
    model.names = dict(names)
    save_checkpoint(tmp_path / "stem.pt", weights_content(model, 128))
    flags = {**QUICK, "project": str(tmp_path), "pictures": 0}
    rows = rows_of(compare.run(weights=[str(tmp_path / "stem.pt")], data=str(folder / "voc.yaml"), **flags))
    assert [(r["kind"], r["map50"], r["map"], r["epochs"]) for r in rows[1:]] == [("published", "0.62", "0.37", "300")]
    others = rows_of(compare.run(weights=[str(runs[0])], data=str(data), **flags))
    assert [r["kind"] for r in others] == ["measured"]


def test_what_makes_a_comparison_unfair_is_said(runs: list[Path], data: Path, tmp_path: Path) -> None:
    candidates = compare.load_candidates([*map(str, runs)], [], [], load_data(data), None, torch.device("cpu"), False)
    entries = [c.entry for c in candidates]
    assert not [n for n in compare.notes_of(entries) if "differently" in n or "sizes" in n]
    entries[1].training.options["epochs"] = 300
    entries[1].training.hyp["mosaic"] = 0.0
    entries[1].imgsz, entries[1].strides = 128, (32, 64, 128)
    notes = " ".join(compare.notes_of(entries))
    assert "Trained differently, epochs: yolov5_shufflenet 1, yolov5_stem_shufflenet_p3 300" in notes
    assert "differently, hyper-parameter mosaic: yolov5_shufflenet 1.0, yolov5_stem_shufflenet_p3 0.0" in notes
    assert "different sizes (px): yolov5_shufflenet 64, yolov5_stem_shufflenet_p3 128" in notes
    assert "objects under about 32 px" in notes


@pytest.mark.parametrize(("flags", "message"), [
    ({}, "nothing to compare"),
    ({"weights": ["x.pt"], "epochs": 3}, "--epochs only applies to the training of --reproduce"),
    ({"reproduce": "voc", "weights": ["x.pt"]}, "leave out --weights"),
    ({"reproduce": "coco"}, "one of voc"),
    ({"cfg": ["yolov5n.yaml"], "conf_thres": 2.0}, "between 0 and 1"),
    ({"cfg": ["yolov5n.yaml"], "draws": -1}, "--draws is -1"),
    ({"cfg": ["yolov5n.yaml"], "draws": 5}, "--draws 5 are too few"),
    ({"cfg": ["yolov5n.yaml"], "source": "x.jpg"}, "--source needs trained models"),
    ({"weights": ["x.pt"], "seed": 0}, "--seed only applies to the training of --reproduce"),
    ({"weights": ["x.pt"], "source": "/no/such"}, "--source /no/such: no such file"),
    ({"reproduce": "voc", "source": "/no/such"}, "--source /no/such: no such file"),
    ({"reproduce": "voc", "labels": ["a"]}, "--labels: 1 for 3 models"),
    ({"cfg": ["yolov5n.yaml"], "labels": ["a", "b"]}, "--labels: 2 labels for 1 models"),
    ({"cfg": ["yolov5x9.yaml"]}, "does not exist"),
    ({"wieghts": ["x.pt"]}, "did you mean 'weights'"),
])  # fmt: skip
def test_wrong_flags_are_told_and_leave_no_folder(flags: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        compare.run(**flags, project=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_models_of_other_classes_and_folders_without_weights_are_refused(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save_checkpoint(tmp_path / "five.pt", weights_content(Model(MODELS[0], nc=5), 64))
    words = ["--data", data, "--project", tmp_path, "--device", "cpu"]
    assert run_main(monkeypatch, compare, "--weights", tmp_path / "five.pt", *words) == 1
    assert "has 5 classes" in capsys.readouterr().err
    assert run_main(monkeypatch, compare, "--weights", tmp_path, *words) == 1
    assert "a folder without weights/best.pt" in capsys.readouterr().err


def test_names_and_records_of_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best, last, own = (tmp_path / p for p in ("exp/weights/best.pt", "exp/weights/last.pt", "mine.pt"))
    labels = labels_for([best, last, own, best], ["models/yolov5n.yaml"])
    assert labels == ["exp", "exp last", "mine", "exp_2", "yolov5n"]
    best.parent.mkdir(parents=True)
    best.touch()
    assert find_weights(str(tmp_path / "exp")) == best and find_weights(str(own)) == own
    assert training_record(best, {}) is None
    content = {"epoch": 1, "options": {"epochs": 2}, "hyp": {"lr0": 0.1}}
    assert (training_record(own, content).epochs, training_record(own, content).seconds) == (2, None)
    (tmp_path / "exp/results.csv").write_text("epoch,metrics/mAP_0.5:0.95,time/data,time/step\n0,0.1,1,2\n1,0.2,3,4\n")
    record = training_record(best, content)
    assert (record.epochs, record.seconds, record.hyp) == (2, 10.0, {"lr0": 0.1})
    assert record.curves["metrics/mAP_0.5:0.95"].tolist() == [0.1, 0.2]
    first = training_record(best.with_name("epoch0.pt"), {**content, "epoch": 0})
    assert (first.epochs, first.seconds) == (1, 3.0)
    (tmp_path / "exp/results.csv").write_text("epoch,time/data\n0,x\n")
    with caplog.at_level("WARNING", logger="yolov5"):
        assert training_record(best, content).seconds is None
    assert "results.csv cannot be read" in caplog.text


@pytest.mark.parametrize(("hits", "false", "labels", "expected"), [(2, 0, 2, 1.0), (1, 1, 2, 0.5), (0, 3, 0, 0.0),
                                                                  (0, 0, 0, 1.0), (0, 0, 2, 0.0)])
def test_score_of_an_image(hits: int, false: int, labels: int, expected: float) -> None:
    found = np.zeros((hits + false + 1, 6))
    found[: hits + false, 4] = 0.9  # the last one lies below the confidence
    correct = np.zeros((len(found), 10), bool)
    correct[:hits] = correct[-1] = True
    assert score_of(found, correct, labels, 0.25) == expected


def test_the_command_of_the_report_repeats_it() -> None:
    flags = {"weights": ["a b.pt", "c.pt"], "data": "VOC.yaml", "half": True, "imgsz": None, "draws": 1000, "cfg": ()}
    assert compare.command_of(flags) == "python my_tools/compare.py --weights 'a b.pt' c.pt --data VOC.yaml --half"


def test_exported_models(runs: list[Path], data: Path, tmp_path: Path) -> None:
    """What is not known of them is left blank; what they are is said."""
    (file,) = export.run(weights=str(runs[0]), include="torchscript", imgsz=64)
    report = compare.run(weights=[str(runs[0]), str(file)], data=str(data), project=str(tmp_path), **QUICK)
    file.unlink()
    trained, exported = rows_of(report)
    assert exported["model"] == "yolov5_shufflenet best.torchscript" and float(exported["size_mib"]) > 2
    assert (exported["parameters"], exported["gflops"], exported["strides"], exported["epochs"]) == ("", "", "", "")
    assert exported["map50"] == trained["map50"] and float(exported["ms_1"]) > 0
    text = report.with_name("report.md").read_text(encoding="utf-8")
    assert "best.torchscript: float32, TorchScript in torch" in text and "pads images to the full size" in text


def test_exported_models_of_other_classes_are_refused(runs: list[Path], tmp_path: Path) -> None:
    (file,) = export.run(weights=str(runs[0]), include="torchscript", imgsz=64)
    with pytest.raises(UserError, match="has other classes, or in another order, than .*VOC.yaml"):
        compare.run(weights=[str(file)], data="VOC.yaml", project=str(tmp_path), **QUICK)
    file.unlink()
