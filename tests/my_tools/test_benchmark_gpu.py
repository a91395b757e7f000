"""benchmark.py's case gpu, in miniature on the CPU: its results, its budget, and what happens when something fails."""

from __future__ import annotations

import csv
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import run_main

from my_tools import benchmark
from my_tools.benchmarking import gpu, gpu_packages, gpu_task, gpu_train
from my_tools.benchmarking.cases import Conditions, Row
from my_tools.benchmarking.gpu_packages import NotInstalled, stand_in
from my_tools.benchmarking.gpu_report import markdown
from my_tools.benchmarking.gpu_task import Report, Task, in_turns, run_task, sampled
from my_tools.benchmarking.gpu_trace import profile_steps, read_trace, union
from utils.settings.dataset import load_data
from utils.system import console

TINY = """
nc: 5
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]]
backbone: [[-1, 1, Conv, [8, 3, 4]], [-1, 1, Conv, [8, 3, 2]]]
head: [[-1, 1, Conv, [8, 3, 2]], [[1, 2], 1, Detect, [nc, anchors]]]
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_train.setup_room, "model_summary", lambda *_: "tiny")  # it imports a compiler, for seconds
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


def conditions(cfg: Path, batch_size: int = 2) -> Conditions:
    return Conditions(load_data("shapes.yaml"), [str(cfg)], None, 64, batch_size, 1, torch.device("cpu"), 0, "off")


class Here:
    """A task in this process, in place of one of its own."""

    def __init__(self, task: Task, folder: Path, number: int, _threads: int) -> None:
        self.task, self.log, self.out = task, folder / f"{number}.log", folder / f"{number}.jsonl"
        self.log.write_text("")

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines() if self.out.exists() else []

    def prepared(self) -> bool:
        return True

    def ended(self) -> bool:
        return False

    def go(self, allowed: float) -> None:
        run_task(self.task, Report(self.out), lambda: 0.02 * allowed)

    def wait(self, _until: float) -> bool:
        return True

    def stop(self) -> str:
        return ""


def test_the_case_in_miniature(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "Process", Here)
    monkeypatch.setattr(gpu, "IMAGES", 4)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    tasks = gpu.tasks_of
    monkeypatch.setattr(gpu, "tasks_of", lambda *given: (tasks(*given)[0], tasks(*given)[1][:2]))
    rows = benchmark.run(["gpu"], [str(tiny)], imgsz=64, batch_size=2, rounds=1, device="cpu", workers=0, amp="off",
                         budget=60, project=str(tmp_path / "out"))  # fmt: skip
    ways = ["train.py", "train.py --gpu-augment", "train.py --compile", "train.py, one batch again and again",
            "batch 1, as detect.py runs it", "batch 32, compiled"]  # fmt: skip
    names = {row.what for row in rows}
    assert {f"tiny, {way}" for way in ways} <= names and "NMS, batch 32, confidence 0.25" in names
    assert all(row.case == "gpu" and row.ms > 0 and row.low <= row.ratio <= row.high for row in rows)
    page = (tmp_path / "out/exp/gpu.md").read_text()
    assert "Not measured" not in page and torch.__version__ in page
    assert {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")} >= {
        "tiny", "loader", "loader for --gpu-augment", "NMS, batch 1, confidence 0.001"}  # fmt: skip
    with open(tmp_path / "out/exp/table.csv", newline="") as f:
        assert [line["what"] for line in csv.DictReader(f)] == [row.what for row in rows]
    assert (tmp_path / "out/exp/chart.png").stat().st_size > 1000


def test_without_opencv_all_but_the_loader_is_measured(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "Process", Here)
    monkeypatch.setitem(gpu_packages.MISSING, "cv2", "No module named 'cv2'")
    eager, compiled = gpu.tasks_of(conditions(tiny), "")
    assert [task.kind for task in eager] == ["train", "infer", "nms"] and not any(t.data for t in (*eager, *compiled))
    monkeypatch.setattr(gpu, "tasks_of", lambda *_: (eager[:1], []))
    monkeypatch.setattr(gpu_train, "create_loader", None)  # would fail
    rows = gpu.measure(conditions(tiny), tmp_path, 60, lambda _: None)
    assert {"tiny, train.py", "tiny, train.py --gpu-augment"} <= {row.what for row in rows}
    assert "data loading: cv2 is not installed (No module named 'cv2')" in (tmp_path / "gpu.md").read_text()


PROGRAM = """
import json, sys, time
task = json.load(open(sys.argv[1]))
out = open(sys.argv[1] + "l", "a", buffering=1)
if task["flags"].get("slow_start"): time.sleep(60)
print(json.dumps({"ready": 0.1}), file=out)
allowed = float(sys.stdin.readline())
row = {"case": "gpu", "what": task["cfg"], "yardstick": "y", "ms": 1.0, "yardstick_ms": 2.0, "ratio": 2.0, "low": 1.0,
       "high": 3.0, "fast": True, "target": None}
print(json.dumps({"row": row}), file=out)
if task["flags"].get("crash"): sys.exit("a bad end")
if task["flags"].get("hang"): time.sleep(60)
"""


def task_of(cfg: str, **flags: bool) -> Task:
    return Task("train", cfg, "", 64, 2, 1, "cpu", 0, "off", flags)


@pytest.fixture
def schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Schedule:
    """Processes that run PROGRAM, with a budget of two seconds."""
    command = (sys.executable, "-S", "-c", PROGRAM)
    process = gpu.Process
    monkeypatch.setattr(gpu, "Process", lambda *args: process(*args, command))
    for name, value in (("GRACE", 0.1), ("LEAST", 0.3), ("PAUSE", 0.01)):
        monkeypatch.setattr(gpu, name, value)
    return gpu.Schedule(2.0, time.monotonic() + 2.0, tmp_path, gpu.Results(), lambda: None)


def test_crashes_and_endless_tasks_become_lines(schedule: gpu.Schedule) -> None:
    start = time.monotonic()
    schedule.run([task_of("a"), task_of("b", crash=True), task_of("c", hang=True), task_of("d", slow_start=True),
                  task_of("e")], longest=0.4)  # fmt: skip
    assert sorted(schedule.results.rows) == ["a", "b", "c", "e"]
    told = {line.partition(":")[0]: line for line in schedule.results.failures}
    assert set(told) == {"train b --crash", "train c --hang", "train d --slow-start"}
    assert told["train b --crash"].endswith("its process ended with code 1: a bad end")
    assert "what it had measured is kept" in told["train c --hang"] and "not prepared" in told["train d --slow-start"]
    assert time.monotonic() - start < 4


def test_tasks_for_which_no_time_is_left_are_skipped(schedule: gpu.Schedule) -> None:
    schedule.deadline = time.monotonic() + 0.2
    schedule.run([task_of("a"), task_of("b")])
    assert not schedule.started and [line.partition(",")[0] for line in schedule.results.failures] == [
        "train a: skipped", "train b: skipped"]  # fmt: skip


@pytest.mark.parametrize(
    ("gib", "expected"),
    [(None, [7]), (100, [7]), (40, [6, 1]), (28, [5, 2]), (18, [4, 1, 1, 1])],
)
def test_only_tasks_that_fit_into_memory_prepare_together(
    gib: int | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    c = conditions(Path("a.yaml"))
    c = replace(c, cfgs=["a.yaml", "b.yaml", "c.yaml"])
    sizes = {"a": 5, "b": 8, "c": 10}
    results = gpu.Results(facts={(model, "train.py"): {"memory": size} for model, size in sizes.items()})
    if gib:
        c = replace(c, device=torch.device("cuda:0"))
        total = SimpleNamespace(total_memory=gib * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: total)
    assert [len(group) for group in gpu.groups(c, results, gpu.tasks_of(c, "")[1])] == expected


def test_half_a_line_and_numbers_that_are_none_are_left_out() -> None:
    row = {"case": "gpu", "what": "a", "yardstick": "y", "ms": float("nan"), "yardstick_ms": 1.0, "ratio": 1.0,
           "low": 1.0, "high": 1.0, "fast": True, "target": None}  # fmt: skip
    results = gpu.Results()
    results.take([json.dumps({"row": row}), json.dumps({"row": {**row, "ms": 1.0}})[:-9],
                  '{"model": "m", "way": "w", "facts": {"x": 1}}', '{"model": "m", "way": "w", "facts": {"y": 2}}',
                  '{"failed": "f", "why": "because"}'])  # fmt: skip
    assert not results.rows and results.facts == {("m", "w"): {"x": 1, "y": 2}} and results.failures == ["f: because"]


def test_a_measurement_that_fails_becomes_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    def fails() -> list[float]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    report = Report(tmp_path / "out.jsonl")
    in_turns({"bad": fails, "good": lambda: [0.5] * 5}, lambda: [1.0] * 5, 2, time.monotonic() + 9, report, "m", "y")
    results = gpu.Results()
    results.take((tmp_path / "out.jsonl").read_text().splitlines())
    assert [row.ratio for row in results.rows.values()] == [2.0]
    assert results.failures == ["m, bad: out of memory: CUDA out of memory. Tried to allocate 2 GiB"]
    page = markdown(conditions(Path("m.yaml")), (), {}, results.failures)
    assert page.endswith(f"Not measured:\n\n- {results.failures[0]}\n")


def test_a_task_that_cannot_prepare_says_why(tmp_path: Path) -> None:
    report = Report(tmp_path / "out.jsonl")
    run_task(task_of("no_such.yaml"), report, lambda: 1.0)
    line = json.loads((tmp_path / "out.jsonl").read_text())
    assert line["failed"] == "train no_such" and "no_such.yaml" in line["why"]


def test_numbers_of_a_step_from_a_trace() -> None:
    def event(cat: str, name: str, ts: float, dur: float) -> dict:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [event("kernel", "conv", 0, 100), event("kernel", "conv", 50, 150), event("kernel", "relu", 300, 4),
              event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 400, 30), event("cpu_op", "aten::x", 0, 9e9),
              event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 500, 50), {"ph": "M", "name": "process_name"},
              event("cuda_runtime", "cudaStreamSynchronize", 0, 500), event("cuda_runtime", "cudaLaunchKernel", 0, 5),
              event("gpu_user_annotation", "step", 0, 9e9)]  # fmt: skip
    p = read_trace(events, 2)
    assert (p.kernels, p.small, p.busy_ms, p.copies_ms, p.pageable) == (1.5, 0.5, 0.102, 0.04, 0.5)
    assert (p.waits, p.waits_ms) == ({"cudaStreamSynchronize": 0.5}, 0.25)
    assert p.top[0] == ("conv", 1.0, 0.125)
    assert union([]) == 0


def test_a_profile_on_a_cpu_has_no_kernels() -> None:
    assert profile_steps(lambda: torch.ones(3).exp(), 1, torch.device("cpu")).kernels == 0


def test_the_clock_times_equal_parts_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(gpu_train.time, "perf_counter", lambda: now)
    clock = gpu_train.Clock(4, 100.0, 9.0, lambda: 0.25 * now)
    while not clock.requested:
        now += 1.0 if clock.calls > 4 else 50.0  # a slow start
    assert clock.steps() == [1.0] * gpu_task.SAMPLES
    assert clock.waited_per_step() == 0.25 and clock.times[0] == 200.0 and clock.times[-1] == 210.0


def test_samples_take_about_the_time_they_may() -> None:
    counts = []
    sampled(lambda n: counts.append(n) or time.sleep(0.001 * n), 0.05)
    assert counts[:2] == [2, 2] and len(set(counts[2:])) == 1 and 4 <= counts[2] <= 10


def test_stand_ins_for_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_packages, "MISSING", {})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    assert list(stand_in((), ["no_such_package", "json"])) == ["no_such_package"]
    try:
        import no_such_package.part
        from no_such_package.part import Thing

        class Other(Thing):
            pass

        assert no_such_package.FLAG | 3 and issubclass(Other, Warning)
        for use in (Thing, no_such_package.part.call, Thing.method):
            with pytest.raises(NotInstalled, match="no_such_package is not installed"):
                use(1)
    finally:
        for name in [n for n in sys.modules if n.startswith("no_such_package")]:
            del sys.modules[name]


def test_a_missing_package_without_which_nothing_works_is_one_line() -> None:
    with pytest.raises(SystemExit, match="cannot run without no_such_package: pip install no_such_package"):
        stand_in(["json", "no_such_package"], ())


def test_without_a_gpu_the_case_must_be_asked_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_main(monkeypatch, benchmark, "--cases", "gpu", "--project", tmp_path) == 1
    told = capfd.readouterr()
    assert "sees no CUDA GPU" in told.err and "Traceback" not in told.err and not list(tmp_path.iterdir())
    assert "gpu" not in benchmark.USUAL_CASES


def test_a_full_page() -> None:
    rows = [Row("gpu", "m, train.py", "bare", 64.0, 48.0, 0.75, 0.7, 0.8, True),
            Row("gpu", "m, train.py --compile", "bare", 32.0, 48.0, 1.5, 1.4, 1.6, True),
            Row("gpu", "m, batch 32, the same in a CUDA graph", "e", 10.0, 40.0, 0.25, 0.2, 0.3, False)]
    profile = {"kernels": 900.0, "small": 500.0, "busy_ms": 48.0, "copies_ms": 1.5, "pageable": 21.0, "waits_ms": 2.0,
               "waits": {"cudaEventSynchronize": 1.0}, "top": [["conv|x", 60.0, 20.0]]}  # fmt: skip
    facts = {("m", "train.py"): {"memory": 10.0, "profile": profile, "data_ms": 3.0, "lines": {"a.py:3": 2.0}},
             ("loader", "8 workers"): {"images": 1200.0, "megabytes": 78.6}}  # fmt: skip
    page = markdown(conditions(Path("m.yaml"), 64), rows, facts, ())
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| m ")]
    assert cells[0] == ["m", "1,333", "1,000 (0.75)", "-", "2,000 (1.50)", "-", "-", "-", "10.0 / -"]
    assert cells[1][2:] == ["64.0", "48.0", "25", "3.0", "900", "500", "1.50", "21", "EventSynchronize 1.0 (2.0 ms)"]
    assert cells[2] == ["m", "32", "40.00", "-", "-", "-", "10.00 (0.25)", "-", "-", "3,200"]
    assert "a.py:3 (2 a step)" in page and "| loader | 8 workers | 1,200 | 79 |" in page and "`conv/x`" in page


def test_the_stand_in_of_a_progress_bar_does_what_a_training_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=gpu_packages.PlainBar))
    with console.progress(total=2, initial=0) as bar:  # as in train_epoch
        bar.update(1)
        bar.set_description("epoch")
    assert list(console.progress(range(3), "reading")) == [0, 1, 2]
