"""The scripts as a user runs them: train, val, detect, resume, and what wrong input is told."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, run_main, run_script, write_yolo_set

import detect
import train
import val
from models.inference import output
from models.weights.checkpoint import load_checkpoint, save_checkpoint, weights_content
from models.yolo import Model
from utils.errors import UserError
from utils.files import safe_name
from utils.system import console, device
from utils.training.logs import COLUMNS

QUICK = {"cfg": "yolov5_shufflenet.yaml", "imgsz": 64, "batch_size": 4, "workers": 0, "device": "cpu"}
RUN_FILES = """weights/best.pt weights/last.pt results.csv results.png opt.yaml hyp.yaml labels.jpg train_batch0.jpg
    val_batch0_labels.jpg val_batch0_pred.jpg confusion_matrix.png P_curve.png R_curve.png F1_curve.png
    PR_curve.png""".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run of two epochs through the command line: its folder, its data yaml, what was printed."""
    folder = tmp_path_factory.mktemp("squares")
    data = write_yolo_set(folder / "set")
    done = run_script("train.py", "--cfg", "yolov5_shufflenet.yaml", "--data", data, "--imgsz", 64, "--epochs", 2,
                      "--batch-size", 4, "--workers", 1, "--project", folder / "runs")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "runs/exp", data, done.stdout


@pytest.mark.slow
def test_train_leaves_what_a_yolov5_user_expects(trained: tuple[Path, Path, str]) -> None:
    folder, _, printed = trained
    assert [f for f in RUN_FILES if not (folder / f).is_file()] == []
    with open(folder / "results.csv", newline="") as f:
        rows = list(csv.reader(f))
    assert tuple(rows[0]) == COLUMNS and [r[0] for r in rows[1:]] == ["0", "1"]
    options = yaml.safe_load((folder / "opt.yaml").read_text())
    assert (options["imgsz"], options["batch_size"], options["optimizer"]) == (64, 4, "SGD")
    assert f"python detect.py --weights {folder / 'weights/best.pt'} --source data/images" in printed
    assert "mAP50-95" in printed and " red " in printed and " blue " in printed


@pytest.mark.slow
def test_val_command_line(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder, data, _ = trained
    done = run_script("val.py", "--weights", folder / "weights/best.pt", "--data", data, "--save-txt", "--save-conf",
                      "--save-json", "--project", tmp_path, "--conf-thres", 0.01, "--workers", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "exp/predictions.json").read_text())
    lines = [line for f in (tmp_path / "exp/labels").iterdir() for line in f.read_text().splitlines()]
    assert len(rows) == len(lines) and all(len(line.split()) == 6 for line in lines)
    assert all(set(r) == {"image_id", "category_id", "bbox", "score"} for r in rows)


@pytest.mark.slow
def test_detect_command_line(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder, _, _ = trained
    done = run_script("detect.py", "--weights", folder / "weights/best.pt", "--source", "data/images", "--imgsz", 96,
                      "--conf-thres", 0.001, "--max-det", 3, "--save-txt", "--save-conf", "--save-crop", "--save-csv",
                      "--project", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    pictures = sorted(p.name for p in (ROOT / "data/images").iterdir())
    out = tmp_path / "exp"
    assert sorted(p.name for p in out.glob("*.jpg")) == pictures
    assert len(list((out / "labels").iterdir())) == len(pictures)
    with open(out / "predictions.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    crops = list((out / "crops").rglob("*.jpg"))
    assert len(rows) == len(crops) > 0 and set(rows[0]) == {"Image Name", "Prediction", "Confidence"}


@pytest.mark.slow
def test_all_three_scripts_agree_on_the_model(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder, data, printed = trained
    results = val.run(data=str(data), weights=str(folder / "weights/best.pt"), project=str(tmp_path), workers=0,
                      batch_size=8, noplots=True)  # fmt: skip
    line = next(x for x in reversed(printed.splitlines()) if x.split()[:1] == ["all"])
    assert [float(v) for v in line.split()[3:]] == pytest.approx(results.summary.tolist(), rel=0.01, abs=2e-3)


@pytest.mark.slow
def test_flags_do_what_they_say(tmp_path: Path) -> None:
    data = write_yolo_set(tmp_path / "set", 8)
    train.run(**QUICK, data=str(data), epochs=2, project=str(tmp_path), name="a", single_cls=True, rect=True,
              nosave=True, noplots=True, optimizer="Adam", cos_lr=True, cache="ram", seed=3)  # fmt: skip
    content = load_checkpoint(tmp_path / "a/weights/best.pt")
    assert content["names"] == {0: "object"} and content["yaml"]["nc"] == 1
    rows = (tmp_path / "a/results.csv").read_text().splitlines()
    assert len(rows) == 3 and load_checkpoint(tmp_path / "a/weights/best.pt")["epoch"] == 1
    assert not list((tmp_path / "a").glob("*.jpg")) and not list((tmp_path / "a").glob("*.png"))
    train.run(**QUICK, data=str(data), epochs=1, project=str(tmp_path), name="b", noplots=True,
              noval=True, weights=str(tmp_path / "a/weights/best.pt"))  # fmt: skip
    assert load_checkpoint(tmp_path / "b/weights/best.pt")["names"] == {0: "red", 1: "blue"}


@pytest.mark.slow
def test_bad_files_in_a_set_are_skipped_and_named(tmp_path: Path) -> None:
    data = write_yolo_set(tmp_path / "set", 8)
    (tmp_path / "set/images/train/000.png").write_bytes(b"junk")
    (tmp_path / "set/labels/train/001.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    done = run_script("train.py", "--data", data, "--imgsz", 64, "--epochs", 1, "--batch-size", 4, "--workers", 0,
                      "--project", tmp_path, "--noplots")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "001.txt: line 1: class 9" in done.stdout and "000.png" in done.stdout and "2 left out" in done.stdout


def interrupted(*_args: object, **_flags: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_script_says_so(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as e:
        console.run_script(interrupted, None)
    assert e.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def raising(e: Exception) -> Callable[[object], object]:
    def take(opt: object) -> object:
        raise e

    return take


@pytest.mark.parametrize("take", [
    lambda opt: np.empty(2**60, np.uint8), lambda opt: torch.empty(2**60),
    raising(OSError(12, "Cannot allocate memory")), raising(RuntimeError("CUDA out of memory. Tried to allocate 9 GB")),
    raising(RuntimeError("std::bad_alloc")),
])  # fmt: skip
def test_memory_that_is_not_there_is_one_line(
    take: Callable[[object], object], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as e:
        console.run_script(take, None)
    told = caplog.text + capsys.readouterr().err
    assert e.value.code == 1 and "there is not enough memory" in told and "Traceback" not in told


def test_a_training_that_lacks_memory_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = train.train_batch, []

    def starved(*args: object) -> bool:
        calls.append(1)
        return real(*args) if len(calls) < 3 else np.empty(2**60, np.uint8)

    monkeypatch.setattr(train, "train_batch", starved)
    with pytest.raises(UserError, match="not enough memory.*Unable to allocate.*to resume: python train.py --resume"):
        train.run(data=str(write_yolo_set(tmp_path / "set", 8)), epochs=3, project=str(tmp_path / "runs"),
                  noplots=True, **QUICK)  # fmt: skip
    assert load_checkpoint(tmp_path / "runs/exp/weights/last.pt", training=True)


def test_an_interrupted_detection_says_where_its_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And an undisturbed one what it left out; both take a run's folder for its best.pt."""
    (tmp_path / "run/weights").mkdir(parents=True)
    save_checkpoint(tmp_path / "run/weights/best.pt", weights_content(Model("yolov5_shufflenet.yaml", nc=2), 64))
    pictures = write_yolo_set(tmp_path / "set", 3).parent / "images/val"
    (pictures / "bad.jpg").write_bytes(b"junk")
    flags = {"weights": str(tmp_path / "run"), "source": str(pictures), "project": str(tmp_path), "device": "cpu"}
    with caplog.at_level("INFO", "yolov5"):
        detect.run(**flags)
    assert "1 could not be read" in caplog.text
    real, calls = detect.Output.add, []

    def second(*args: object) -> None:
        calls.append(args)
        interrupted() if len(calls) == 2 else real(*args)

    monkeypatch.setattr(detect.Output, "add", second)
    with pytest.raises(KeyboardInterrupt, match="the results so far are in .*exp2"):
        detect.run(**flags)
    assert len(list((tmp_path / "exp2").iterdir())) >= 1
    monkeypatch.setattr(detect, "predict_all", interrupted)
    with pytest.raises(KeyboardInterrupt, match="^interrupted$"):
        detect.run(**flags)
    assert not (tmp_path / "exp3").exists()


def test_a_set_without_labels_is_refused(tmp_path: Path) -> None:
    data = write_yolo_set(tmp_path / "set", 4)
    for file in (tmp_path / "set/labels/train").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no objects in 4 images.*labels.train"):
        train.run(**QUICK, data=str(data), epochs=1, project=str(tmp_path / "runs"))


def test_a_last_batch_of_one_image_and_a_map_of_one_cell(tmp_path: Path) -> None:
    data = write_yolo_set(tmp_path / "set", 5)
    flags = {**QUICK, "cfg": "yolov5_stem_shufflenet.yaml", "imgsz": 128}
    train.run(**flags, data=str(data), epochs=1, project=str(tmp_path), noplots=True, noval=True)


def test_view_img_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="--view-img: there is no display"):
        output.show("x", np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (train, {"data": "nowhere.yaml"}, "--data 'nowhere.yaml' does not exist"),
        (train, {"cfg": "yolov5_shuflenet.yaml", "data": "SET"}, "did you mean 'yolov5_shufflenet.yaml'"),
        (train, {"hyp": "hyp.voc.yaml", "data": "SET"}, "did you mean 'hyp.VOC.yaml'"),
        (train, {"weights": "nowhere.pt", "data": "SET"}, "nowhere.pt: no such file"),
        (train, {"epochs": 0}, "--epochs is 0"),
        (train, {"seed": 10**20}, "--seed 1.* too large"),
        (train, {"noautoanchor": True, "hyp": "hyp.VOC", "data": "SET"}, "the hyp file .*--noautoanchor"),
        (train, {"device": "7", "data": "SET"}, "--device 7: "),
        (train, {"resume": "nowhere.pt"}, "nowhere.pt: no such file"),
        (val, {"weights": "nowhere.pt", "data": "SET"}, "nowhere.pt: no such file"),
        (val, {"conf_thres": 2.0}, "--conf-thres 2.0"),
        (val, {"batch_size": 0}, "--batch-size"),
        (detect, {"weights": "nowhere.pt"}, "nowhere.pt: no such file"),
        (detect, {"weights": "WEIGHTS", "source": "nowhere.jpg"}, "--source nowhere.jpg: no such file"),
        (detect, {"weights": "WEIGHTS", "classes": [9]}, "--classes 9: this model has classes 0 to 1"),
        (detect, {"iou_thres": -1.0}, "--iou-thres -1.0"),
        (detect, {"vid_stride": 0}, "--vid-stride"),
    ],
)
def test_wrong_input_is_one_line(script, flags: dict, message: str, tmp_path: Path, yolo_set: Path) -> None:
    if flags.get("weights") == "WEIGHTS":
        save_checkpoint(tmp_path / "w.pt", weights_content(Model("yolov5_shufflenet.yaml", nc=2), 64))
    words = {"SET": str(yolo_set), "WEIGHTS": str(tmp_path / "w.pt")}
    flags = {k: words.get(v, v) if isinstance(v, str) else v for k, v in flags.items()}
    with pytest.raises(UserError, match=message) as e:
        script.run(**flags, **({"project": str(tmp_path / "runs")} if "resume" not in flags else {}))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("*.*"))


def test_the_command_line_exits_with_one_line_and_code_1(tmp_path: Path) -> None:
    done = run_script("train.py", "--data", "nowhere.yaml")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line][-1].startswith("error: --data 'nowhere.yaml'")


@pytest.mark.parametrize("words", [["train.py", "--epochs", 1], ["val.py", "--save-json"]])
def test_a_full_disk_is_told_in_one_line(words: list, tmp_path: Path, yolo_set: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", weights_content(Model("yolov5_shufflenet.yaml", nc=2), 64))
    limit = "import resource, runpy, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" \
            "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\nsys.argv = sys.argv[1:]\n" \
            "sys.path.insert(0, '.')\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"  # fmt: skip
    (tmp_path / "limited.py").write_text(limit)
    done = run_script(tmp_path / "limited.py", *words, "--data", yolo_set, "--imgsz", 64, "--project", tmp_path / "r",
                      "--workers", 0, "--weights", tmp_path / "w.pt", "--noplots")  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr and "File too large" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((train, "--epohcs", "2"), "error: unknown flag --epohcs (did you mean '--epochs'?); --help lists all flags"),
        ((val, "--imgsz", "big"), "error: argument --imgsz/--img/--img-size: invalid int value: 'big'"),
        ((detect, "--weights", "a.pt", "b.pt"), "error: 'b.pt' does not belong to a flag; --help lists all flags"),
        ((detect, "--qqq"), "error: unknown flag --qqq; --help lists all flags"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(
    words: tuple, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run_main(monkeypatch, *words) == 1
    printed = capsys.readouterr()
    assert (printed.err.strip(), printed.out) == (message, "")


def test_wrong_number_of_classes(tmp_path: Path, yolo_set: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", weights_content(Model("yolov5_shufflenet.yaml", nc=5), 64))
    with pytest.raises(UserError, match="knows 5 classes, .* lists 2"):
        val.run(data=str(yolo_set), weights=str(tmp_path / "w.pt"), project=str(tmp_path))


def test_pictures_looked_at_side_by_side_are_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file, and the lines of the pictures in their order, whatever the number of threads."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pt", weights_content(Model("yolov5_shufflenet.yaml", nc=2), 64))
    data = write_yolo_set(tmp_path / "set", 9)
    usual, lines = torch.get_num_threads(), {}
    monkeypatch.setattr(device, "granted_cores", lambda: 3)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            caplog.clear()
            caplog.set_level("INFO", "yolov5")
            detect.run(weights=str(tmp_path / "w.pt"), source=str(data.parent / "images/val"), conf_thres=0.0,
                       max_det=4, save_txt=True, save_csv=True, project=str(tmp_path), name=str(threads),
                       device="cpu", amp="off")  # fmt: skip
            lines[threads] = [r.getMessage().rpartition(",")[0] for r in caplog.records if "image " in r.getMessage()]
            assert ("3 images at a time" in caplog.text) == (threads == 3)
    finally:
        torch.set_num_threads(usual)
    assert lines[1] == lines[3] and len(lines[1]) == 9
    written = [f.relative_to(tmp_path / "1") for f in (tmp_path / "1").rglob("*") if f.is_file()]
    assert len(written) == 19
    assert all((tmp_path / "1" / f).read_bytes() == (tmp_path / "3" / f).read_bytes() for f in written)


def test_detect_outputs_do_not_overwrite_each_other(tmp_path: Path) -> None:
    out = detect.Output(tmp_path, {0: "a"})
    names = [out.names_of(p, "image", 0) for p in ("x/1.jpg", "y/1.jpg", "x/1.jpg", "x/1.png", "x/1.mpo")]
    assert [name for name, _ in names] == ["1.jpg", "1_2.jpg", "1.jpg", "1_3.png", "1_4.jpg"]
    assert [stem for _, stem in names] == ["1", "1_2", "1", "1_3", "1_4"]
    assert out.names_of("c.avi", "video", 1) == ("c.mp4", "c_1") and out.names_of("c.mov", "video", 1)[0] == "c_2.mp4"
    assert out.names_of("c.avi", "video", 2) == ("c.mp4", "c_2") and out.names_of("c_2.jpg", "image", 0) == (
        "c_2.jpg", "c_2_2")  # fmt: skip
    assert out.names_of("C_2.JPG", "image", 0) == ("C_2_2.JPG", "C_2_2_2")
    assert out.names_of("rtsp://camera/1?a=b", "stream", 7) == ("rtsp_camera_1_a_b.mp4", "rtsp_camera_1_a_b_7")
    folders = [out.features_folder(p, "image", 0).name for p in ("my a.jpg", "my_a.jpg", "my a.jpg")]
    assert folders == ["features_my_a", "features_my_a_2", "features_my_a"]
    assert safe_name("../../etc") == "_.._etc"


def test_every_frame_and_image_has_its_own_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A video, an image named like one of its frames, and images whose names differ in the suffix or in case."""
    caplog.set_level("INFO", "yolov5")
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pt", weights_content(Model("yolov5_shufflenet.yaml", nc=2), 64))
    data = tmp_path / "in"
    data.mkdir()
    frame = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    writer = cv2.VideoWriter(str(data / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for _ in range(3):
        writer.write(frame)
    writer.release()
    for name in ("A.jpg", "a.png", "a_2.jpg", "clip.jpg", "clip_2.jpg"):
        cv2.imwrite(str(data / name), frame)
    flags = {"weights": str(tmp_path / "w.pt"), "device": "cpu", "conf_thres": 0.0, "max_det": 2}
    out = detect.run(**flags, source=str(data), save_txt=True, save_crop=True, project=str(tmp_path))
    assert sorted(p.name for p in out.iterdir() if p.is_file()) == [
        "A.jpg", "a_2.jpg", "a_3.png", "clip.jpg", "clip.mp4", "clip_2.jpg"]  # fmt: skip
    stems = ["A", "a_2", "a_3", "clip", "clip_1", "clip_2", "clip_2_2", "clip_3"]
    assert sorted(p.stem for p in (out / "labels").iterdir()) == stems
    assert sorted(p.stem for p in (out / "crops").rglob("*.jpg")) == sorted(f"{s}-{k}" for s in stems for k in (1, 2))
    lines = [r.getMessage() for r in caplog.records if "already taken" in r.getMessage()]
    assert len(lines) == 2 and "a.png -> a_3" in lines[0] and "clip_2.jpg -> clip_2_2" in lines[1]


def test_two_streams_of_one_address_have_files_of_their_own(tmp_path: Path) -> None:
    out = detect.Output(tmp_path, {0: "a"})
    frames = [np.zeros((64, 64, 3), np.uint8)] * 2

    class Streams:
        mode, frame = "stream", 1

        def __iter__(self):
            yield ["0", "0"], np.zeros((2, 3, 64, 64), np.uint8), frames, None, ""

    read = next(detect.read_frames(Streams(), 1))
    assert [out.names_of(path, read.mode, read.number) for path in read.paths] == [
        ("0.mp4", "0_1"), ("0_2.mp4", "0_2_1")]  # fmt: skip


def test_a_written_video_takes_frames_of_another_size(tmp_path: Path) -> None:
    out = detect.Output(tmp_path, {0: "a"})
    for frame, size in enumerate(((64, 96), (96, 64), (64, 96)), 1):
        out.add(torch.zeros(0, 6), np.zeros((*size, 3), np.uint8), "0", "stream", frame, 10)
    out.close()
    capture = cv2.VideoCapture(str(tmp_path / "0.mp4"))
    assert sum(capture.grab() for _ in range(9)) == 3
