"""Every flag of train.py does something, seen from what a tiny run leaves."""

from __future__ import annotations

import copy
import csv
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import write_yolo_set

import models.run.setup
import train
from models.run import step
from models.run.setup import Run
from models.weights.checkpoint import load_checkpoint
from models.yolo import DetectionModel
from utils.data.batch_augment import augment_batch
from utils.data.dataset import DetectionDataset
from utils.errors import UserError
from utils.losses.compute_loss import ComputeLoss
from utils.system.precision import Precision

Train = Callable[..., Run]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo_set(tmp_path_factory.mktemp("flags") / "set", 8)


@pytest.fixture
def trained(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train with some flags; returns the run, with the state dict it began with as `run.began`."""
    runs = []

    def noting(*args, **kwargs) -> Run:
        run = models.run.setup.setup(*args, **kwargs)
        run.began = copy.deepcopy(run.model.state_dict())
        runs.append(run)
        return run

    monkeypatch.setattr(train, "setup", noting)

    def run(**flags) -> Run:
        usual = {"data": str(data), "imgsz": 64, "batch_size": 4, "epochs": 1, "workers": 0, "device": "cpu",
                 "project": str(tmp_path), "noplots": True, "amp": "off"}  # fmt: skip
        train.run(**{**usual, **flags})
        return runs[-1]

    return run


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes in which batches of images reach the network."""
    seen, real = [], torch.nn.Module.__call__

    def noting(module: torch.nn.Module, *args, **kwargs):
        if isinstance(module, DetectionModel) and module.training:
            seen.append(tuple(args[0].shape))
        return real(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", noting)
    return seen


def csv_rows(run: Run) -> list[dict[str, float]]:
    with open(run.folder / "results.csv", newline="") as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


def test_batch_size_minus_one(trained: Train, batches: list) -> None:
    run = trained(batch_size=-1, parts=1)
    chosen = yaml.safe_load((run.folder / "opt.yaml").read_text())["batch_size"]
    assert chosen == run.opt.batch_size == 8 and (8, 3, 64, 64) in batches


def test_multi_scale(trained: Train, batches: list) -> None:
    trained(multi_scale=True, epochs=3, noval=True, seed=2)
    assert {shape[2:] for shape in batches} == {(32, 32), (64, 64), (96, 96)}


def test_rect(trained: Train, batches: list) -> None:
    trained(rect=True, imgsz=128)
    assert {shape[2:] for shape in batches} == {(96, 128)}


def test_quad(trained: Train, batches: list) -> None:
    trained(quad=True)
    assert set(batches) == {(1, 3, 128, 128)}


def test_image_weights(trained: Train) -> None:
    run = trained(image_weights=True, epochs=2)
    weights = run.loader.batch_sampler.weights
    assert len(weights) == 8 and len(set(weights.round(9))) == 2  # half of the images have the rarer class too
    assert trained(epochs=2).loader.batch_sampler.weights is None


def test_label_smoothing(trained: Train) -> None:
    run = trained(label_smoothing=0.1)
    assert yaml.safe_load((run.folder / "hyp.yaml").read_text())["label_smoothing"] == 0.1
    assert (run.train_loss.positive, run.train_loss.negative) == (0.95, 0.05)


@pytest.mark.parametrize(("freeze", "frozen"), [([2], {0, 1}), ([1, 3], {1, 3}), ([0], set())])
def test_freeze(freeze: list[int], frozen: set[int], trained: Train) -> None:
    run = trained(freeze=freeze, hyp="hyp.short.yaml")  # steps after every batch
    changed = {int(k.split(".")[1]) for k, p in run.model.named_parameters() if not torch.equal(p, run.began[k])}
    learning = {i for i, m in enumerate(run.model.model) if any(True for _ in m.parameters())}
    assert changed == learning - frozen


@pytest.mark.parametrize("layers", [[22], [0, 21], [99]])
def test_freezing_the_head_is_refused(layers: list[int], trained: Train) -> None:
    with pytest.raises(UserError, match="--freeze .*this model has layers 0 to 21, the last of which must be trained"):
        trained(freeze=layers)


def test_save_period(trained: Train) -> None:
    run = trained(save_period=2, epochs=4)
    saved = {p.name for p in (run.folder / "weights").iterdir()}
    assert saved == {"best.pt", "last.pt", "epoch0.pt", "epoch2.pt"}
    assert load_checkpoint(run.folder / "weights/epoch2.pt")["epoch"] == 2


def test_patience(trained: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "fitness", lambda metrics: 0.5 if not made.append(1) and len(made) == 2 else 0.1)
    made: list[int] = []
    run = trained(patience=2, epochs=9)
    assert len(csv_rows(run)) == 4 and load_checkpoint(run.best)["epoch"] == 1
    with pytest.raises(UserError, match="this run is finished"):
        train.run(resume=str(run.folder))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_optimizer(name: str, trained: Train) -> None:
    assert type(trained(optimizer=name).state.optimizer).__name__ == name


def test_cos_lr(trained: Train) -> None:
    straight, cosine = ([r["x/lr2"] for r in csv_rows(trained(cos_lr=c, epochs=4, hyp="hyp.short.yaml", noval=True))]
                        for c in (False, True))  # fmt: skip
    assert straight != cosine and cosine[-1] < straight[-1]


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_cache(cache: str, trained: Train, data: Path) -> None:
    run = trained(cache=cache)
    images = data.parent / "images/train"
    if cache == "ram":
        assert len(run.loader.dataset._ram) == 8
    else:
        assert len(list(images.glob("*.train64.npy"))) == 8


def test_noautoanchor(trained: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(models.run.setup, "adapt_anchors", lambda *args: called.append(args))
    trained(noautoanchor=True)
    assert not called
    trained()
    assert len(called) == 1


def test_noval_and_nosave(trained: Train) -> None:
    run = trained(noval=True, nosave=True, epochs=2)
    rows = csv_rows(run)
    assert rows[0]["val/box_loss"] == 0 and rows[1]["val/box_loss"] > 0
    assert load_checkpoint(run.best)["epoch"] == 1 and load_checkpoint(run.last)["training"]["finished"]


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_amp_is_for_the_network_and_not_for_the_loss(
    amp: str, dtype: torch.dtype, trained: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = set(), ComputeLoss.__call__

    def noting(self: ComputeLoss, preds: list[torch.Tensor], targets: torch.Tensor) -> tuple:
        loss, parts = real(self, preds, targets)
        seen.add((preds[0].dtype, loss.dtype, preds[0].requires_grad))
        return loss, parts

    monkeypatch.setattr(ComputeLoss, "__call__", noting)
    run = trained(amp=amp)
    assert seen == {(dtype, torch.float32, True), (torch.float32, torch.float32, False)}  # the second: evaluation
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_tensorboard(trained: Train) -> None:
    pytest.importorskip("tensorboard")
    run = trained(tensorboard=True)
    assert list(run.folder.glob("events.out.tfevents.*"))


def test_evolve_and_its_resumption(data: Path, tmp_path: Path) -> None:
    flags = {"data": str(data), "imgsz": 64, "batch_size": 4, "epochs": 1, "workers": 0, "device": "cpu"}
    train.run(**flags, evolve=2, project=str(tmp_path), amp="off")
    first = (tmp_path / "exp/evolve.csv").read_text()
    train.run(evolve=3, resume_evolve=str(tmp_path / "exp"))
    train.run(**flags, evolve=3, project=str(tmp_path), name="whole", amp="off")
    resumed = (tmp_path / "exp/evolve.csv").read_text()
    assert resumed.startswith(first) and resumed == (tmp_path / "whole/evolve.csv").read_text()
    assert (tmp_path / "exp/evolve.png").is_file() and len(resumed.splitlines()) == 4
    train.run(**{**flags, "project": str(tmp_path)}, hyp=str(tmp_path / "exp/hyp_evolve.yaml"), name="best", amp="off")


def test_one_image_on_a_map_of_one_cell_is_refused(trained: Train) -> None:
    with pytest.raises(UserError, match="batch norm cannot learn from a single image .* --batch-size or --imgsz"):
        trained(imgsz=32, batch_size=1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"evolve": 2, "resume_evolve": "nowhere"}, "--resume-evolve: give the folder"),
        ({"resume_evolve": "nowhere"}, "--resume-evolve goes with --evolve N"),
        ({"evolve": 2, "resume_evolve": "nowhere", "epochs": 9}, "and with no other flag"),
        ({"evolve": 2, "resume": "nowhere"}, "not by --resume"),
    ],
)
def test_what_an_evolution_refuses(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train.run(**flags)


def test_evolution_needs_a_val_split(data: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(data.read_text())
    del content["val"]
    (tmp_path / "noval.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="--evolve compares results on the val split, and .*noval.yaml has none"):
        train.run(data=str(tmp_path / "noval.yaml"), evolve=2, project=str(tmp_path / "runs"))


def test_a_test_split_that_cannot_be_used_is_a_warning(
    data: Path, trained: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "with_test.yaml").write_text(data.read_text() + f"test: {tmp_path / 'empty'}\n")
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        run = trained(data=str(tmp_path / "with_test.yaml"))
    assert "the test split was skipped: no images" in caplog.text
    assert load_checkpoint(run.last)["training"]["finished"]


def test_a_missing_package_is_told_before_anything_is_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        train.run(data=str(data), tensorboard=True, project=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_times_are_told_and_a_slow_loader_is_warned_of(
    trained: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = DetectionDataset.__getitem__

    def slow(self: DetectionDataset, key: tuple[int, int]) -> tuple:
        time.sleep(0.15 if self.hyp else 0)
        return real(self, key)

    monkeypatch.setattr(DetectionDataset, "__getitem__", slow)
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        run = trained(epochs=2, noval=True)
    assert "the model waited" in caplog.text and "--workers" in caplog.text
    assert all(row["time/data"] >= 1.2 for row in csv_rows(run))


@pytest.mark.parametrize(("dtype", "advice"), [(torch.float32, ""), (torch.bfloat16, "--amp off")])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(
    dtype: torch.dtype, advice: str, trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ComputeLoss.__call__
    calls = []

    def broken(self: ComputeLoss, preds: list, targets: torch.Tensor) -> tuple:
        loss, parts = real(self, preds, targets)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 2 else loss), parts

    monkeypatch.setattr(ComputeLoss, "__call__", broken)
    monkeypatch.setattr(models.run.setup, "choose_precision", lambda amp, device: Precision(dtype, device, "as told"))
    with pytest.raises(UserError, match=rf"the loss is nan in epoch 0, batch 1.*lr0.*{advice}.*bad_batch.jpg"):
        trained()
    with np.load(tmp_path / "exp/bad_batch.npz") as kept:
        assert kept["images"].shape == (4, 3, 64, 64) and kept["targets"].shape[1] == 6 and len(kept["paths"]) == 4
    assert (tmp_path / "exp/bad_batch.jpg").is_file()
    assert load_checkpoint(tmp_path / "exp/weights/last.pt")["training"]["epoch"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"batch_size": -2}, "--batch-size is -2"),
        ({"quad": True, "batch_size": 6}, "--quad .*multiple of 4"),
        ({"image_weights": True, "rect": True}, "--image-weights .* choose one"),
        ({"image_weights": True, "noval": True}, "--image-weights uses the validation"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1.0"),
        ({"freeze": [-1]}, "--freeze is"),
        ({"freeze": ["a"]}, "--freeze is"),
        ({"amp": "fp16"}, "--amp fp16 is for CUDA GPUs"),
        ({"amp": "half"}, "--amp half.*one of auto, off, fp16, bf16"),
        ({"optimizer": "adam"}, "did you mean 'Adam'"),
        ({"save_period": -2}, "--save-period is -2"),
        ({"evolve": -1}, "--evolve is -1"),
    ],
)
def test_what_the_flags_refuse(flags: dict, message: str, trained: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        trained(**flags)
    assert not list(tmp_path.iterdir())


def test_gpu_augment_draws_colours_and_flips_in_the_step(
    trained: Train, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noting(images: torch.Tensor, targets: torch.Tensor, *args) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((images, targets, *augment_batch(images, targets, *args)))
        return seen[-1][2:]

    monkeypatch.setattr(step, "augment_batch", noting)
    run = trained(gpu_augment=True)
    assert not run.loader.dataset.colours and len(seen) == 2
    assert all(not torch.equal(before, after) for before, _, after, _ in seen)
    assert any(not torch.equal(before, after) for _, before, _, after in seen)
    first = [item[0].clone() for item in seen]
    seen.clear()
    trained(gpu_augment=True, name="again")
    assert all(torch.equal(a, b[0]) for a, b in zip(first, seen, strict=True))


def test_compile_calls_the_compiled_network(trained: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, _inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend=counting))
    run = trained(compile=True, noval=True)
    assert graphs and type(run.network).__name__ == "OptimizedModule"
    plain = trained(name="plain", noval=True)
    for a, b in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    content = load_checkpoint(run.best)
    assert content["model"].keys() == plain.model.state_dict().keys()
