"""Two processes that train one model: they learn what one would, and none waits for one that is gone."""

from __future__ import annotations

import csv
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forked import run, together
from helpers import ROOT, run_script, write_yolo_set

import models.run.setup
import train
import utils.training.autobatch
from models.run.sync_bn import CpuSyncBatchNorm, synchronise_batch_norms
from models.weights.checkpoint import load_checkpoint, save_checkpoint, weights_content
from models.yolo import Model
from utils.errors import UserError
from utils.settings.config import load_hyp
from utils.system import console
from utils.system.device import select_device
from utils.system.distributed import gather, highest, locked, lost_process_is_told, total

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def flags(folder: Path, name: str, **others: object) -> list[str]:
    options = {"data": folder / "set/squares.yaml", "epochs": 2, "batch-size": 8, "imgsz": 64, "workers": 0,
               "project": folder, "name": name, "device": "cpu", "amp": "off", **others}  # fmt: skip
    return ["train.py", "--noplots", *(str(w) for k, v in options.items() for w in (f"--{k}", v))]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """28 images in batches of 8: the last batch is a smaller one. Scored in batches of 16: each process has one."""
    write_yolo_set(tmp_path / "set", 28)
    one = run(*flags(tmp_path, "one"))
    two = run_script(*TORCHRUN, *flags(tmp_path, "two"), "--sync-bn")
    assert one.code == 0 and two.returncode == 0, two.stderr[-2000:]
    rows = []
    for name in ("one", "two"):
        with open(tmp_path / name / "results.csv", newline="") as f:
            rows.append(np.array([[float(v) for v in row[:-3]] for row in list(csv.reader(f))[1:]]))
    np.testing.assert_allclose(rows[1][:, 1:4], rows[0][:, 1:4], rtol=1e-3)  # losses of the training
    np.testing.assert_allclose(rows[1][:, 4:8], rows[0][:, 4:8], rtol=0.02, atol=1e-4)
    np.testing.assert_allclose(rows[1][:, 8:], rows[0][:, 8:], rtol=1e-3)  # losses on the val split, learning rates
    a, b = (load_checkpoint(tmp_path / n / "weights/last.pt")["training"]["model"] for n in ("one", "two"))
    for key, tensor in a.items():
        torch.testing.assert_close(b[key].float(), tensor.float(), rtol=1e-2, atol=2e-3, msg=key)
    tables = [re.findall(r"^ +all +(\d+) +(\d+)", text, re.MULTILINE) for text in (one.text, two.stdout)]
    assert set(tables[0]) == set(tables[1]) == {("28", "42")}  # no image is scored twice, none is left out
    assert two.stdout.count("2 epochs in") == 1  # one of them speaks


@pytest.mark.slow
def test_resume_of_two_processes_is_exact(tmp_path: Path) -> None:
    """Also of the layers that learn from a teacher."""
    write_yolo_set(tmp_path / "set", 16)
    teacher = Model("yolov5n.yaml", nc=2)
    teacher.names = {0: "red", 1: "blue"}
    save_checkpoint(tmp_path / "teacher.pt", weights_content(teacher, 64))
    (tmp_path / "hyp.yaml").write_text(yaml.safe_dump({**load_hyp("hyp.scratch-low"), "teacher_feature": 1.0}))
    taught = {"teacher": tmp_path / "teacher.pt", "hyp": tmp_path / "hyp.yaml"}
    whole = together(*flags(tmp_path, "whole", **taught))
    assert [done.code for done in whole] == [0, 0], whole[0].text
    stop = "import train, signal\nreal = train.record\ndef record(run, *a):\n    real(run, *a)\n" \
           "    signal.raise_signal(signal.SIGTERM)\ntrain.record = record\n" \
           "train.run_script(train.main, train.parse_opt())\n"  # fmt: skip
    (tmp_path / "stop.py").write_text(stop)
    stopped = together(tmp_path / "stop.py", *flags(tmp_path, "stopped", **taught)[1:])
    assert "and saved; to resume" in stopped[0].text
    state = load_checkpoint(tmp_path / "stopped/weights/last.pt")["training"]
    assert (state["epoch"], state["batch"], len(state["processes"])) == (1, 1, 2)
    assert "torchrun --standalone --nproc_per_node 2 train.py --resume" in stopped[0].text
    resumed = together("train.py", "--resume", tmp_path / "stopped")
    assert [done.code for done in resumed] == [0, 0], resumed[0].text
    a, b = (load_checkpoint(tmp_path / n / "weights/last.pt") for n in ("whole", "stopped"))
    assert all(torch.equal(v, b["training"]["model"][k]) for k, v in a["training"]["model"].items())
    assert any(k.startswith("terms.") for k in a["training"]["model"])
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())


@pytest.mark.slow
def test_two_processes_stop_while_validating(tmp_path: Path) -> None:
    write_yolo_set(tmp_path / "set", 16)
    stop = "import signal, sys\nimport train, val\nreal = val.detect_boxes\ndef stopping(*args):\n" \
           "    signal.raise_signal(signal.SIGTERM)\n    return real(*args)\nval.detect_boxes = stopping\n" \
           "train.run_script(train.main, train.parse_opt())\n"  # fmt: skip
    (tmp_path / "stop.py").write_text(stop)
    done = together(tmp_path / "stop.py", *flags(tmp_path, "x", **{"batch-size": 2, "epochs": 1})[1:])
    assert "stopped in epoch 0, after batch 8 of 8, and saved" in done[0].text
    assert load_checkpoint(tmp_path / "x/weights/last.pt")["training"]["batch"] == 8


@pytest.mark.slow
def test_synchronised_batch_norm_of_two_processes(tmp_path: Path) -> None:
    """Values and gradients are those of one process with all images, far from zero too."""
    script = """
import torch, torch.distributed as dist
from models.run.sync_bn import CpuSyncBatchNorm
dist.init_process_group("gloo")
torch.manual_seed(0)
whole, weight = torch.randn(6, 3, 4, 4, dtype=torch.float32) * 0.05 + 300, torch.randn(6, 3, 4, 4)
plain, shared = torch.nn.BatchNorm2d(3, eps=1e-3), CpuSyncBatchNorm(3, eps=1e-3)
x = whole.double().requires_grad_()
expected = plain.double()(x)
(expected * weight).sum().backward()
rows = slice(0, 4) if dist.get_rank() == 0 else slice(4, 6)
own = whole[rows].clone().requires_grad_()
y = shared(own)
(y * weight[rows]).sum().backward()
torch.testing.assert_close(y, expected[rows].float(), rtol=0, atol=2e-3)
torch.testing.assert_close(own.grad, x.grad[rows].float(), rtol=2e-3, atol=2e-2)
torch.testing.assert_close(shared.running_var, plain.running_var.float(), rtol=1e-4, atol=1e-6)
print("agreed")
dist.destroy_process_group()
"""
    (tmp_path / "bn.py").write_text(script)
    assert [done.last for done in together(tmp_path / "bn.py")] == ["agreed", "agreed"]


@pytest.mark.slow
def test_a_killed_process_ends_the_training_with_a_message(tmp_path: Path) -> None:
    write_yolo_set(tmp_path / "set", 16)
    command = [sys.executable, *TORCHRUN, *flags(tmp_path, "killed", epochs=1000)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w+") as log:
        job = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "killed/results.csv").exists() and time.monotonic() < deadline:
                time.sleep(0.2)
            os.kill(process_of_rank(1, "killed"), signal.SIGKILL)
            assert job.wait(90) != 0
        finally:
            job.kill()
        log.seek(0)
        text = log.read()
    assert text.count("another process of this training has ended") == 1 and "--resume" in text
    assert "stopping after this batch" not in text  # torchrun asks for it, but nothing can be saved any more
    assert "Traceback" not in text.split("another process")[0]
    assert load_checkpoint(tmp_path / "killed/weights/last.pt", training=True)


def process_of_rank(rank: int, word: str) -> int:
    """The process that torchrun started for a rank, by a word of its command line."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            environment = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        if word in words and "torch.distributed.run" not in words and f"RANK={rank}" in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_wrong_input_is_told_once(tmp_path: Path) -> None:
    write_yolo_set(tmp_path / "set", 8)
    done = run_script(*TORCHRUN, *flags(tmp_path, "x", cfg="yolov5_shuflenet.yaml"))
    assert done.returncode != 0 and len(re.findall("^error: ", done.stderr, re.MULTILINE)) == 1
    assert "did you mean 'yolov5_shufflenet.yaml'" in done.stderr and not (tmp_path / "x").exists()


def test_a_batch_is_for_all_processes_together(
    yolo_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--batch-size 7 is for all 2 processes together and must be a multiple of 2"):
        train.run(data=str(yolo_set), batch_size=7, imgsz=64, device="cpu", project=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_the_first_process_has_time_to_tell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Without it torchrun ends the first process as soon as the second, which says nothing, has gone."""
    waited: list[float] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(console.time, "sleep", waited.append)
    with pytest.raises(SystemExit, match="1"):
        console.fail("no such file")
    assert waited == [console.PATIENCE] and capsys.readouterr().err == "error: process 1: no such file\n"


def test_labels_are_scanned_before_the_processes_wait_for_each_other(
    yolo_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(device: torch.device) -> None:
        raise ConnectionError("here")

    monkeypatch.setattr(models.run.setup, "connect", connect)
    with pytest.raises(ConnectionError, match="here"):
        train.run(data=str(yolo_set), imgsz=64, device="cpu", project=str(tmp_path / "runs"))
    assert (yolo_set.parent / "labels/train.cache.npz").is_file() and not (tmp_path / "runs").exists()


def test_several_gpus_are_for_torchrun() -> None:
    with pytest.raises(UserError, match="--device 0,1: one process takes one GPU; .*--nproc_per_node 2"):
        select_device("0,1")


def test_alone_every_exchange_answers_for_one() -> None:
    assert gather({"a": 1}) == [{"a": 1}] and highest(3, torch.device("cpu")) == 3
    assert total(torch.tensor([1.0, 2])).tolist() == [1, 2]
    with pytest.raises(RuntimeError, match="gloo"), lost_process_is_told():
        raise RuntimeError("gloo connection lost")  # there is no group that could have lost one


def test_synchronised_batch_norm_in_one_process_is_batch_norm() -> None:
    torch.manual_seed(0)
    plain, x = torch.nn.BatchNorm2d(4), torch.rand(2, 4, 5, 5)
    shared = synchronise_batch_norms(torch.nn.Sequential(torch.nn.BatchNorm2d(4)), torch.device("cpu"))
    assert type(shared[0]) is CpuSyncBatchNorm and list(shared.state_dict()) == [f"0.{k}" for k in plain.state_dict()]
    torch.testing.assert_close(shared(x), plain(x))
    torch.testing.assert_close(shared[0].running_var, plain.running_var)


def test_one_at_a_time_works_on_a_folder(tmp_path: Path) -> None:
    order = []

    def work() -> None:
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        other = threading.Thread(target=work)
        other.start()
        time.sleep(0.1)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
    with locked(tmp_path / "nowhere"):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        pass


def test_processes_share_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("yolov5_shufflenet.yaml")
    monkeypatch.setattr(utils.training.autobatch, "available_memory", lambda: 2**29)
    alone = utils.training.autobatch.check_train_batch_size(model, 256, torch.device("cpu"), 1000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert 4 * utils.training.autobatch.check_train_batch_size(model, 256, torch.device("cpu"), 1000) <= alone
