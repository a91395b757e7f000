"""A run that is killed or stopped at any moment, and resumed, ends bit for bit like one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, write_yolo_set

import train
import val
from models.run import parallel, resume
from models.run.state import data_digest
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from my_tools.check_resume import differences, unequal
from utils.data.labels import load_labels
from utils.errors import UserError
from utils.settings.options import TrainOptions

resource = pytest.importorskip("resource", reason="processes are killed and limited as POSIX systems allow")

def train_until_killed(options: dict, owner: object, function: str, count: int, after: bool, suffix: str) -> None:
    """Train, and kill this process at the n-th call of a function: a moment that a random kill would seldom meet."""
    real, calls = getattr(owner, function), 0

    def hooked(*args, **kwargs):
        nonlocal calls
        calls += not suffix or str(args[-1]).endswith(suffix)
        if calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, function, hooked)
    train.run(**options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, a hyp file with which gradients are pending over batches, and the undisturbed run, called whole."""
    folder = tmp_path_factory.mktemp("resume")
    write_yolo_set(folder / "set", 20)
    hyp = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text())
    (folder / "hyp.yaml").write_text(yaml.safe_dump({**hyp, "nbs": 8, "warmup_epochs": 0.5, "mixup": 0.3}))
    train.run(**flags(folder, "whole"))
    return folder


def flags(folder: Path, name: str) -> dict:
    return {
        "data": str(folder / "set/squares.yaml"), "hyp": str(folder / "hyp.yaml"), "epochs": 3, "batch_size": 4,
        "imgsz": 64, "project": str(folder), "name": name, "device": "cpu", "noplots": True, "multi_scale": True,
        "image_weights": True, "save_period": 1, "workers": 0,
    }  # fmt: skip


def words(options: dict) -> list[str]:
    listed = []
    for key, value in options.items():
        listed += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return listed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "function", "count", "when"),
    [
        (train, "train_batch", 8, "before"),  # in the second epoch
        (val, "non_max_suppression", 2, "before"),  # while validating
        (os, "replace", 2, "before last.pt"),  # while last.pt is being written, under a temporary name
        (train, "save_weights", 3, "after"),  # best.pt is new, last.pt is not
        (train, "write_results", 2, "after"),  # results.csv is ahead of last.pt
        (train, "plot_results", 1, "before"),
        (train, "score", 1, "before"),  # all epochs are done, best.pt is being scored
    ],
)
def test_killed_and_resumed(owner: object, function: str, count: int, when: str, folder: Path) -> None:
    name, (moment, *suffix) = f"{function}{count}", when.split()
    options = {**flags(folder, name), "workers": 1}  # other workers than the undisturbed run
    if function == "plot_results":
        options.pop("noplots")
    args = (options, owner, function, count, moment == "after", "".join(suffix))
    # a fork starts at once, with the number of threads the undisturbed run had
    process = multiprocessing.get_context("fork").Process(target=train_until_killed, args=args)
    process.start()
    end = time.monotonic() + 300
    while process.is_alive() and time.monotonic() < end:  # join waits for the loader process, too, which ends 5 s later
        time.sleep(0.01)
    assert process.exitcode == -signal.SIGKILL
    assert not load_checkpoint(folder / name / "weights/last.pt")["training"]["finished"]
    assert bool(list((folder / name).rglob(".last.pt.*.part"))) == bool(suffix)
    train.run(resume=str(folder / name), workers=0)
    assert differences(folder / "whole", folder / name) == []
    assert not list((folder / name).rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 7, 15])  # the first of all, in the middle, the last of all
def test_stopped_after_a_batch_and_resumed(batch: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = train.train_batch, []

    def interrupted(*args) -> bool:
        calls.append(args)
        if len(calls) == batch:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    name = f"stopped{batch}"
    with monkeypatch.context() as m:
        m.setattr(train, "train_batch", interrupted)
        with pytest.raises(KeyboardInterrupt, match=rf"batch \d of 5, and saved; to resume: .*{name}.weights.last.pt"):
            train.run(**flags(folder, name))
    state = load_checkpoint(folder / name / "weights/last.pt")["training"]
    epoch, done = divmod(batch - 1, 5)
    assert (state["epoch"], state["batch"]) == (epoch, done + 1)
    train.run(resume=str(folder / name / "weights/last.pt"))
    assert differences(folder / "whole", folder / name) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="helper processes are forked on Linux only")
@pytest.mark.parametrize("cores", [1, 2])
def test_a_run_with_batches_at_once_is_stopped_within_a_group_and_resumed_on_any_number_of_cores(
    cores: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**flags(folder, "parallel"), "parts": 2, "batch_size": 8, "epochs": 4, "noval": True,
               "image_weights": False, "hyp": str(folder / "hyp16.yaml"), "exist_ok": True}  # fmt: skip
    hyp = yaml.safe_load((folder / "hyp.yaml").read_text())
    Path(options["hyp"]).write_text(yaml.safe_dump({**hyp, "nbs": 16}))  # pairs of batches after the warm-up
    train.run(**options)
    real, calls = train.train_batch, []

    def interrupted(*args) -> bool:
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)
        return real(*args)

    with monkeypatch.context() as m:
        m.setattr(train, "train_batch", interrupted)
        with pytest.raises(KeyboardInterrupt, match="and saved; to resume"):
            train.run(**{**options, "name": f"cut{cores}"})
    monkeypatch.setattr(parallel, "granted_cores", lambda: cores)
    train.run(resume=str(folder / f"cut{cores}"))
    assert differences(folder / "parallel", folder / f"cut{cores}") == []


@pytest.mark.skipif(sys.platform != "linux", reason="helper processes are forked on Linux only")
def test_after_a_lost_process_a_run_goes_on_with_fewer_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**flags(folder, "lost"), "parts": 2, "batch_size": 8, "epochs": 1, "exist_ok": True}

    def lost(self: parallel.ParallelSteps, job: parallel.Job) -> None:
        raise parallel.ProcessLost

    with monkeypatch.context() as m:
        m.setattr(parallel.ParallelSteps, "_compute_together", lost)
        with pytest.raises(UserError, match=r"was killed.*or --parts 1.*to resume: .*lost.weights.last.pt"):
            train.run(**options)
    caplog.clear()
    with caplog.at_level("INFO"):
        train.run(resume=str(folder / "lost"), parts=1)
    assert "resuming" in caplog.text and "processes compute" not in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="helper processes are forked on Linux only")
def test_no_process_is_left_by_a_setup_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **how: object) -> None:
        raise MemoryError("cannot allocate memory")

    before = multiprocessing.active_children()
    monkeypatch.setattr("models.run.setup.create_loader", fails)
    with pytest.raises(MemoryError):
        train.run(**{**flags(folder, "failed"), "parts": 2, "batch_size": 8})
    assert multiprocessing.active_children() == before


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "function", "call", "threads"), [
    ("val", "non_max_suppression", 1, 1),
    ("val", "in_pieces", 2, 2),  # two batches side by side
    ("train", "record", 3, 1),
])  # fmt: skip
def test_stopped_while_validating_and_after_the_last_epoch(
    owner: str, function: str, call: int, threads: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, calls = {"val": val, "train": train}[owner], []
    real, validate = getattr(module, function), train.validate

    def validated(*args) -> object:
        torch.set_num_threads(threads)
        try:
            return validate(*args)
        finally:
            torch.set_num_threads(1)

    def interrupted(*args, **kwargs) -> object:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)  # the main thread is told of it
        return real(*args, **kwargs)

    name = f"stopped_{function}"
    monkeypatch.setattr(train, "validate", validated)
    with monkeypatch.context() as m:
        m.setattr(module, function, interrupted)
        with pytest.raises(KeyboardInterrupt, match="and saved; to resume"):
            train.run(**flags(folder, name))
    train.run(resume=str(folder / name))
    assert differences(folder / "whole", folder / name) == []


def test_a_second_ctrl_c_ends_at_once_and_advises_only_what_can_be_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args) -> bool:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not interrupted")

    monkeypatch.setattr(train, "train_batch", interrupted)
    for nosave, advice in ((False, "interrupted; to resume: python train.py --resume"), (True, "interrupted")):
        with pytest.raises(KeyboardInterrupt) as e:
            train.run(**flags(folder, f"twice{nosave}"), nosave=nosave)
        assert str(e.value).startswith(advice) and ("--resume" in str(e.value)) != nosave


@pytest.mark.slow
def test_a_run_of_the_same_options_is_the_same_run_and_another_seed_is_not(folder: Path) -> None:
    train.run(**{**flags(folder, "again"), "workers": 2})
    train.run(**flags(folder, "other"), seed=1)
    assert differences(folder / "whole", folder / "again") == []
    assert any("model.0" in d for d in differences(folder / "whole", folder / "other"))


def test_differences_are_found(folder: Path) -> None:
    a = {"x": [torch.zeros(2), 1.0], "seconds": 1}
    assert unequal(a, {"x": [torch.zeros(2), 1.0], "seconds": 2}, "s") == []
    assert unequal(a, {"x": [torch.full((2,), 1e-45), 1.0]}, "s") == ["s.seconds", "s.x.0"]
    assert unequal(a, {"x": [torch.zeros(2), 2.0], "seconds": 1}, "s") == ["s.x.1"]
    assert sorted(unequal({"a": 1}, {"b": 1}, "s")) == ["s.a", "s.b"]


@pytest.fixture
def unfinished(folder: Path, tmp_path: Path) -> Path:
    """The undisturbed run as if it had been killed just before it was finished."""
    (tmp_path / "run/weights").mkdir(parents=True)
    content = load_checkpoint(folder / "whole/weights/last.pt")
    content["training"]["finished"] = False
    save_checkpoint(tmp_path / "run/weights/last.pt", content)
    return tmp_path / "run/weights/last.pt"


def test_a_finished_run_is_not_resumed(folder: Path) -> None:
    with pytest.raises(UserError, match=r"this run is finished \(3 epochs\); start a new one with --weights"):
        train.run(resume=str(folder / "whole/weights/last.pt"))


def test_another_number_of_processes_is_refused(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="this run had 1 process, but now there are 2: start train.py with python"):
        train.run(resume=str(unfinished))
    content = load_checkpoint(unfinished)
    content["training"]["processes"] *= 3
    save_checkpoint(unfinished, content)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match="this run had 3 processes, but now there is 1: .* --nproc_per_node 3"):
        train.run(resume=str(unfinished))


@pytest.mark.slow
def test_the_number_format_stays_that_of_the_run(unfinished: Path) -> None:
    content = load_checkpoint(unfinished)
    content["training"]["amp"] = "fp16"
    save_checkpoint(unfinished, content)
    with pytest.raises(UserError, match="--amp fp16 is for CUDA GPUs"):
        train.run(resume=str(unfinished))


def test_other_options_are_refused(unfinished: Path) -> None:
    with pytest.raises(UserError, match="leave out --epochs"):
        train.run(resume=str(unfinished), epochs=9)


def test_a_checkpoint_outside_a_run_folder(unfinished: Path, tmp_path: Path) -> None:
    (tmp_path / "moved.pt").write_bytes(unfinished.read_bytes())
    with pytest.raises(UserError, match="is not in a run.s folder"):
        train.run(resume=str(tmp_path / "moved.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "squares.yaml").write_text((s / "squares.yaml").read_text().replace("blue", "green")),
         "class names in .* have changed"),
        (lambda s: (s / "labels/train/003.txt").write_text("0 0.5 0.5 0.2 0.2\n"), "images or labels .* have changed"),
        (lambda s: (s / "images/train/019.png").unlink(), "images or labels .* have changed"),
    ],
)  # fmt: skip
def test_another_data_set_is_refused(change, message: str, unfinished: Path, tmp_path: Path) -> None:
    write_yolo_set(tmp_path / "set", 20)
    content = load_checkpoint(unfinished)
    content["options"]["data"] = str(tmp_path / "set/squares.yaml")
    save_checkpoint(unfinished, content)
    change(tmp_path / "set")
    with pytest.raises(UserError, match=message):
        train.run(resume=str(unfinished))


class Begun(Exception):
    """Setup is over and the training loop would begin."""


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_loop(run: object, stop: object) -> None:
        raise Begun

    monkeypatch.setattr(train, "train", train_loop)


@pytest.fixture
def moved(unfinished: Path, tmp_path: Path) -> Path:
    """The data yaml of the unfinished run, with its images and labels, at another place than the run remembers."""
    content = load_checkpoint(unfinished)
    content["options"]["data"] = str(tmp_path / "before" / "squares.yaml")
    save_checkpoint(unfinished, content)
    return write_yolo_set(tmp_path / "after", 20)


def test_a_data_yaml_that_has_moved_is_asked_for(unfinished: Path, moved: Path) -> None:
    with pytest.raises(UserError, match="yaml .*before.squares.yaml, does not exist .* new path with --data") as e:
        train.run(resume=str(unfinished))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_data_yaml_that_has_moved_is_remembered(kind: type, unfinished: Path, moved: Path, begins: None) -> None:
    before = load_checkpoint(unfinished)
    with pytest.raises(Begun):
        train.run(resume=str(unfinished.parents[1]), data=kind(moved), device="cpu")
    after = load_checkpoint(unfinished)
    assert unequal(before["model"], after["model"], "model") == []
    assert unequal(before["training"], after["training"], "training") == []
    assert after["options"] == {**before["options"], "data": str(moved)}
    assert yaml.safe_load((unfinished.parents[1] / "opt.yaml").read_text())["data"] == str(moved)
    with pytest.raises(Begun):
        train.run(resume=str(unfinished))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "squares.yaml").write_text((s / "squares.yaml").read_text().replace("blue", "green")),
         "class names in .* have changed .* or it is the yaml of another dataset"),
        (lambda s: (s / "labels/val/003.txt").write_text("0 0.5 0.5 0.2 0.2\n"), "images or labels .* have changed"),
    ],
)  # fmt: skip
def test_a_data_yaml_of_another_set_is_refused(change, message: str, unfinished: Path, moved: Path) -> None:
    before = unfinished.read_bytes()
    change(moved.parent)
    with pytest.raises(UserError, match=message):
        train.run(resume=str(unfinished), data=moved)
    assert unfinished.read_bytes() == before and not (unfinished.parents[1] / "opt.yaml").exists()


@pytest.mark.slow
def test_a_run_whose_data_yaml_has_moved_ends_like_the_undisturbed_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = train.train_batch, []

    def interrupted(*args) -> bool:
        calls.append(args)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    before, after = (write_yolo_set(tmp_path / name, 20) for name in ("before", "after"))
    with monkeypatch.context() as m:
        m.setattr(train, "train_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(**{**flags(folder, "moved"), "data": str(before)})
    before.unlink()
    train.run(resume=str(folder / "moved"), data=after)
    assert differences(folder / "whole", folder / "moved") == []


@pytest.mark.parametrize("word", ["True", "true", "TRUE", True])
def test_resume_true_is_the_newest_run(
    word: object, unfinished: Path, begins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "newest", lambda pattern: unfinished)
    with pytest.raises(Begun):
        train.run(resume=word)


def test_resume_true_may_be_a_folder(unfinished: Path, begins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "newest", lambda pattern: None)
    unfinished.parents[1].rename(unfinished.parents[2] / "True")
    monkeypatch.chdir(unfinished.parents[2])
    with pytest.raises(Begun):
        train.run(resume="True")


@pytest.mark.parametrize("word", ["False", "false", False, "", None])
def test_resume_false_is_off(word: object) -> None:
    opt = TrainOptions.from_flags({"resume": word, "resume_evolve": word, "epochs": 5})
    assert (opt.resume, opt.resume_evolve, opt.given) == (False, False, ("epochs",))


def test_the_digest_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    made = []
    for name in ("here", "there"):
        write_yolo_set(tmp_path / name, 6)
        made.append(data_digest(load_labels((tmp_path / name / "images/train",), 2), None))
    assert made[0] == made[1]


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_intact(unfinished: Path, tmp_path: Path) -> None:
    before = unfinished.read_bytes()
    limit = len(before) // 2

    def small_files() -> None:  # a file of a checkpoint's size does not fit, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run([sys.executable, "train.py", "--resume", str(unfinished)], cwd=ROOT, capture_output=True,
                          text=True, preexec_fn=small_files, timeout=300)  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "last.pt: cannot be written (File too large); the previous file is intact" in done.stderr
    assert unfinished.read_bytes() == before and not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_ctrl_c_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    options = {**flags(folder, "cc"), "project": str(tmp_path), "epochs": 500, "workers": 1}
    del options["image_weights"]
    options["noval"] = True
    process = subprocess.Popen([sys.executable, "train.py", *words(options)], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)  # fmt: skip
    for line in process.stdout:
        if "Instances" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(120) == 130 and "Traceback" not in rest, rest
    assert "stopping after this batch" in rest and "and saved; to resume: python train.py --resume" in rest
