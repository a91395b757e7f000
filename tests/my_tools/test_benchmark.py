"""benchmark.py: the arithmetic of its ratios, and all of its cases on a tiny set."""

from __future__ import annotations

import csv
import multiprocessing
import os
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import run_main, write_yolo_set

from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel
from my_tools import benchmark
from my_tools.benchmark import aim, by_model, draw_chart, table
from my_tools.benchmarking import cases as benchmark_cases
from my_tools.benchmarking import contention
from my_tools.benchmarking import engines as benchmark_engines
from my_tools.benchmarking import files as benchmark_files
from my_tools.benchmarking.cases import Conditions, Row, compared, fire_everywhere
from utils.errors import UserError
from utils.settings.dataset import load_data


@pytest.mark.parametrize(
    ("fast", "per", "ratio", "ms"),
    [(True, (1, 1), 2.0, (2000, 4000)), (False, (1, 1), 0.5, (2000, 4000)), (True, (10, 5), 4.0, (200, 800)),
     (False, (4, 8), 1.0, (500, 500))],
)  # fmt: skip
def test_a_ratio_is_the_median_of_the_rounds_own(
    fast: bool, per: tuple[int, int], ratio: float, ms: tuple[float, float]
) -> None:
    # the second round ran on a machine three times as slow, the third one saw the first thing disturbed
    seconds = np.array([[2.0, 4.0], [6.0, 12.0], [9.0, 4.0], [2.0, 4.0], [2.0, 4.0]])
    row = compared("case", "this", "that", seconds, per, fast)
    assert row.ratio == pytest.approx(ratio)
    assert (row.ms, row.yardstick_ms) == pytest.approx(ms)
    assert row.low <= row.ratio <= row.high


@pytest.mark.parametrize(
    ("ratio", "fast", "target", "said"),
    [(1.6, True, 1.5, ">= 1.5: met"), (1.4, True, 1.5, ">= 1.5: missed"), (0.4, False, 0.45, "<= 0.45: met"),
     (0.5, False, 0.45, "<= 0.45: missed"), (3.0, False, None, "")],
)  # fmt: skip
def test_targets(ratio: float, fast: bool, target: float | None, said: str) -> None:
    assert aim(Row("case", "this", "that", 1, 1, ratio, ratio, ratio, fast, target)) == said


def test_an_untrained_head_fires_everywhere() -> None:
    import torch

    model = DetectionModel("yolov5_shufflenet.yaml", nc=2).eval()
    with torch.no_grad():
        quiet = model(torch.zeros(1, 3, 64, 64))[0][..., 4]
        fire_everywhere(model)
        loud = model(torch.zeros(1, 3, 64, 64))[0][..., 4]
    assert quiet.max() < 0.2 < 0.4 < loud.min()


def test_every_case_on_a_tiny_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_cases, "STEPS", 2)
    monkeypatch.setattr(benchmark_files, "PICTURES", 3)
    monkeypatch.setattr(benchmark_files, "SIZES", (40, 80))
    monkeypatch.setattr(benchmark_cases, "INFERRED", 64)
    engines = {what: how for what, how in benchmark_engines.RUN_AS.items() if what != "OpenVINO int8"}  # it takes long
    monkeypatch.setattr(benchmark_engines, "RUN_AS", engines)
    turns = benchmark_cases.time_in_turns
    for module in (benchmark_cases, benchmark_files):
        monkeypatch.setattr(module, "time_in_turns", lambda calls, *_, **__: turns(calls, 1, least=1))
    data = write_yolo_set(tmp_path / "set", 8)
    model = DetectionModel("yolov5_shufflenet.yaml", nc=2)
    model.names = {0: "red", 1: "blue"}
    save_checkpoint(tmp_path / "w.pt", weights_content(model, 64))
    rows = benchmark.run(cfg=["yolov5_shufflenet.yaml"], weights=str(tmp_path / "w.pt"), data=str(data), imgsz=64,
                         batch_size=4, rounds=1, device="cpu", workers=0, project=str(tmp_path / "out"))  # fmt: skip
    assert {r.case for r in rows} == {*benchmark.USUAL_CASES, "share"}
    assert all(r.ratio > 0 and r.ms > 0 and r.yardstick_ms > 0 for r in rows)
    with open(tmp_path / "out/exp/table.csv", newline="") as f:
        written = list(csv.DictReader(f))
    assert [w["what"] for w in written] == [r.what for r in rows]
    assert [float(w["ratio"]) for w in written] == [r.ratio for r in rows]
    picture = cv2.imread(str(tmp_path / "out/exp/chart.png"))
    assert picture is not None and picture.std() > 10
    assert all(r.what in table(rows) for r in rows)
    lines = [x for x in (tmp_path / "out/exp/models.md").read_text().splitlines() if "shufflenet" in x]
    assert len(lines) == 2 and all(float(cell.split()[0]) > 0 for x in lines for cell in x.split("|")[2:-1])


def test_steps_with_one_batch_do_not_spare_the_next_epoch_its_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each turn the weights change as often as in a training of so many batches, or once more."""
    monkeypatch.setattr(benchmark_cases, "STEPS", 8)
    updates: list[tuple[bool, int]] = []

    def in_turns(calls: list, *_args: object, **_options: object) -> np.ndarray:
        whole, _, steps = calls
        for call in (whole, whole, whole, steps, whole, steps, steps, whole):
            before = run.state.ema.updates
            call()
            updates.append((call is whole, run.state.ema.updates - before))
        return np.ones((len(calls), 3))

    conditions = Conditions(load_data(write_yolo_set(tmp_path / "set", 8)), (), None, 32, 16, 1, torch.device("cpu"),
                            0, "off")  # fmt: skip
    run = benchmark_cases.training_run(conditions, "yolov5_shufflenet.yaml", str(tmp_path))
    run.state.epoch = 50  # after the warm-up, in which updates are more frequent
    monkeypatch.setattr(benchmark_cases, "time_in_turns", in_turns)
    monkeypatch.setattr(benchmark_cases, "training_run", lambda *_: run)
    monkeypatch.setattr(benchmark_cases, "shares", lambda *_: [])
    benchmark_cases.train_one(conditions, "yolov5_shufflenet.yaml")
    assert all(n in ((2, 3) if is_whole else (1, 2)) for is_whole, n in updates)


def test_a_line_for_each_model() -> None:
    rows = [Row("infer", "a, as detect.py runs it", "x", 10, 40, 0.25, 0.2, 0.3, False),
            Row("infer", "a, as val.py runs it", "x", 20, 40, 0.5, 0.2, 0.3, False),
            Row("infer", "a, OpenVINO", "x", 8, 40, 0.2, 0.2, 0.3, False),
            Row("infer", "c, as detect.py runs it", "x", 30, 40, 0.75, 0.2, 0.3, False),
            Row("train", "a, end to end", "x", 20, 50, 2.4, 2, 3, True),
            Row("train", "b, end to end", "x", 100, 200, 1.9, 2, 3, True),
            Row("loader", "320 px, one process", "x", 1, 3, 3, 3, 3, True)]  # fmt: skip
    assert by_model(rows).splitlines() == [
        "| model | eager float32, ms | as detect.py runs it, ms (part) | OpenVINO, ms (part) |",
        "| --- | ---: | ---: | ---: |", "| a | 40.0 | 10.0 (0.25) | 8.0 (0.20) |", "| c | 40.0 | 30.0 (0.75) | - |", "",
        "| model | training, plain step, images/s | train.py, images/s | times as fast |",
        "| --- | ---: | ---: | ---: |", "| a | 20.0 | 50.0 | 2.40 |", "| b | 5.0 | 10.0 | 1.90 |"]  # fmt: skip
    assert by_model(rows[6:]) == ""


def test_a_chart_of_one_kind_alone(tmp_path: Path) -> None:
    draw_chart([Row("infer", "this", "that", 1, 2, 0.5, 0.4, 0.6, False)], "title", tmp_path / "chart.png")
    assert cv2.imread(str(tmp_path / "chart.png")) is not None


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--rounds", "0"], "--rounds must be 1 or more"), (["--cfg", "yolov5_shuflenet.yaml"], "yolov5_shufflenet.yaml"),
     (["--weights", "none.pt"], "none.pt"), (["--cases", "trian"], "train")],
)  # fmt: skip
def test_bad_input_is_one_line(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    assert run_main(monkeypatch, benchmark, *flags, "--project", tmp_path) == 1
    told = capfd.readouterr()
    assert said in told.out + told.err and "Traceback" not in told.err
    assert not list(tmp_path.iterdir())


def test_contention_compares_each_way_with_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    started, worked = [], []

    @contextmanager
    def trainer(c, cfg, way, cores=None):
        started.append((way, cores))
        yield SimpleNamespace(begin=lambda: worked.append(way), end=lambda: time.sleep(0.001))

    monkeypatch.setattr(contention, "trainer", trainer)
    c = SimpleNamespace(device=torch.device("cpu"), cfgs=["yolov5n.yaml"], rounds=2)
    rows = contention.contention(c)
    pinned = hasattr(os, "sched_setaffinity")
    whats = [*contention.BESIDE, *([contention.ONE_CORE] if pinned else []), contention.TWO]
    assert [r.what for r in rows] == [f"yolov5n, {way} {what}" for what in whats for way in ("train.py", "plain step")]
    assert all(r.yardstick == "alone" and r.fast for r in rows)
    assert [r.target for r in rows[::2]] == [contention.TARGETS[what] for what in whats]
    assert all(r.target is None for r in rows[1::2])
    assert len(started) == (6 if pinned else 4) and len(worked) == 2 * 2 * (len(whats) + 2)
    with pytest.raises(UserError, match="add --device cpu"):
        contention.contention(SimpleNamespace(device=torch.device("cuda:0")))


def test_a_training_that_ends_early_is_told() -> None:
    near, far = multiprocessing.Pipe()
    far.close()
    with pytest.raises(UserError, match="a training has ended early"):
        contention.Trainer(near).end()
