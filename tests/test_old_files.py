"""Files written by an older version, `facts.json` says which: they load, resume bit for bit, and run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT

import train
from models.inference.runtime import load_runtime
from models.run import resume
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint
from utils.data import labels
from utils.system.device import cpu_info

OLD = ROOT / "tests" / "old_version"
FACTS = json.loads((OLD / "facts.json").read_text())
EXPECTED = np.load(OLD / "expected.npz", allow_pickle=False)


def same_machine() -> bool:
    """Whether sums come out as on the machine that wrote the files: the same kernels of the same torch."""
    here = (torch.__version__, cpu_info().get("model name"), torch.backends.cpu.get_cpu_capability())
    return here == (FACTS["torch"], FACTS["cpu"], FACTS["capability"])


def differences(a: object, b: object, where: str = "") -> list[str]:
    """Where two trees of plain values and tensors differ."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        keys = [f"{where}/{k}" for k in a.keys() ^ b.keys()]
        return keys + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, (list, tuple)):
        return [d for k, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{where}/{k}")]
    return [] if a == b or a != a and b != b else [where]


@pytest.fixture
def cut_off(tmp_path: Path) -> Path:
    """The run folder of the training that was stopped in its second epoch."""
    (tmp_path / "exp/weights").mkdir(parents=True)
    shutil.copy(OLD / "last.pt", tmp_path / "exp/weights/last.pt")
    return tmp_path / "exp"


def test_a_checkpoint_gives_the_same_boxes() -> None:
    model = model_from_checkpoint(load_checkpoint(OLD / "best.pt"), OLD / "best.pt")
    assert model.names == {0: "red", 1: "blue"} and model.stride.tolist() == [8, 16]
    check_boxes(OLD / "best.pt")


@pytest.mark.parametrize(("file", "package"), [("best.torchscript", "torch"), ("best.onnx", "onnxruntime")])
def test_an_exported_model_runs(file: str, package: str) -> None:
    pytest.importorskip(package)
    check_boxes(OLD / file)


def check_boxes(file: Path) -> None:
    y = load_runtime(file, torch.device("cpu")).predict(torch.from_numpy(EXPECTED["x"]))
    np.testing.assert_allclose(y.numpy()[..., :4], EXPECTED["y"][..., :4], atol=1e-3)
    np.testing.assert_allclose(y.numpy()[..., 4:], EXPECTED["y"][..., 4:], atol=1e-5)


def test_a_state_in_mid_training_is_restored_whole(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Restored(Exception):
        pass

    def keep(run, stop) -> None:
        resume.save_state(run)
        raise Restored

    before = load_checkpoint(cut_off / "weights/last.pt", training=True)
    monkeypatch.setattr(train, "train", keep)
    with pytest.raises(Restored):
        train.run(resume=str(cut_off))
    after = load_checkpoint(cut_off / "weights/last.pt", training=True)
    # added since then
    assert after["options"].pop("parts") == 1 and after["training"].pop("several_batches") is False
    assert after["options"].pop("teacher") == after["training"].pop("teacher") == ""
    assert after["training"]["processes"][0]["losses"].pop() == 0
    assert [d for d in differences(before, after) if d not in ("/commit", "/date")] == []


def test_a_training_is_resumed_to_the_same_end(cut_off: Path) -> None:
    train.run(resume=str(cut_off))
    ours, theirs = (load_checkpoint(f, training=True) for f in (cut_off / "weights/last.pt", OLD / "whole.pt"))
    for k, v in theirs["model"].items():
        torch.testing.assert_close(ours["model"][k], v, rtol=1e-3, atol=1e-4, msg=k)
    times = 3  # the last columns of results.csv
    rows, expected = (np.array(c["training"]["rows"])[:, :-times] for c in (ours, theirs))
    np.testing.assert_allclose(rows[0], expected[0], rtol=0)  # the epoch that the older version trained
    np.testing.assert_allclose(rows, expected, rtol=0.05, atol=1e-3)
    if same_machine():
        assert np.array_equal(rows, expected)
        assert ours["training"]["processes"][0]["losses"].pop() == 0  # the teacher's
        other = ("/commit", "/date", "/options", "/training/rows", "/training/seconds", "/training/several_batches",
                 "/training/teacher")
        assert [d for d in differences(ours, theirs) if not d.startswith(other)] == []


def test_a_label_cache_is_used() -> None:
    cache = OLD / "labels.cache.npz"
    with np.load(cache, allow_pickle=False) as z:
        fingerprint, images = str(z["fingerprint"]), [os.fsdecode(f) for f in z["files"]]
    index = labels.read_cache(cache, fingerprint, images, 2)
    assert index is not None
    fresh = labels._scan([str(OLD / "set/images/train" / Path(image).name) for image in images], 2, "")
    assert np.array_equal(index.shapes, fresh.shapes) and np.array_equal(index.values, fresh.values)
    assert np.array_equal(index.offsets, fresh.offsets) and index.problems == ()


def test_a_label_cache_has_the_same_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labels.fingerprint_of(["/a/images/x.png"], 2) == FACTS["fingerprint_of_missing"]
    monkeypatch.setattr(labels.os, "stat", lambda path, **_: SimpleNamespace(st_size=123, st_mtime_ns=456))
    assert labels.fingerprint_of(["/a/images/x.png", "/a/images/ü.jpg"], 2) == FACTS["fingerprint"]


def test_a_label_cache_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(OLD / "set", tmp_path / "set")
    images = tmp_path / "set/images/train"
    labels.load_labels((images,), 2)
    cache = tmp_path / "set/labels/train.cache.npz"
    with np.load(cache, allow_pickle=False) as z:
        np.savez(cache, **{k: v for k, v in z.items() if k != "notes"})  # as the older version wrote it
    calls, real = [], labels._has_long_rows
    monkeypatch.setattr(labels, "_has_long_rows", lambda files: (calls.append(1), real(files))[1])
    monkeypatch.setattr(labels, "_scan", lambda *_: pytest.fail("scanned again"))
    for _ in range(2):
        assert labels.load_labels((images,), 2).notes == ()
    assert len(calls) == 1
