"""slim.py as a user runs it: what it writes and says, that it repeats, that train.py goes on, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import run_main, write_yolo_set

import train
import val
from models.slimming import reconstruct
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint, save_checkpoint, weights_content
from models.yolo import DetectionModel
from my_tools import slim
from my_tools.slim import fitted
from utils.errors import UserError
from utils.system.console import LOGGER

CFG = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [[-1, 1, "Conv", [16, 6, 2, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]],
    "head": [
        [-1, 1, "C3", [32, False]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "SPPF", [32, 5]],
        [[3, 5], 1, "Detect", ["nc", "anchors"]],
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo_set(tmp_path_factory.mktemp("slim") / "set", 12)


def checkpoint(path: Path, *names: str) -> Path:
    torch.manual_seed(0)
    model = DetectionModel(CFG, nc=len(names))
    model.names = dict(enumerate(names))
    save_checkpoint(path, weights_content(model, 64, half=False))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("weights") / "best.pt", "red", "blue")


@pytest.fixture
def flags(tmp_path: Path, data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(slim, "time_in_turns", lambda calls, budget: torch.tensor([[0.001, 0.002]]).numpy())
    return {"weights": str(weights), "to": "slimconv", "data": str(data), "batches": 3, "batch_size": 4, "steps": 2,
            "workers": 0, "device": "cpu", "project": str(tmp_path)}  # fmt: skip


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(LOGGER, level, lambda text, *_: lines.append(str(text)))
    return lines


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize(("to", "blocks"), [("slimconv", ["C3Slim", "SlimNeck"]), ("slimneck", ["VoVGSCSP", "GSConv"])])
def test_files_and_figures(flags: dict, weights: Path, printed: list[str], to: str, blocks: list[str]) -> None:
    before = weights.read_bytes()
    folder = slim.run(**{**flags, "to": to})
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "weights/slim.pt", "model.yaml", "layers.csv", "before_after.csv"}  # fmt: skip
    assert weights.read_bytes() == before
    content = load_checkpoint(folder / "weights/slim.pt")
    assert (content["imgsz"], content["options"]["to"], list(content["names"].values())) == (64, to, ["red", "blue"])
    assert {v.dtype for v in content["model"].values() if v.is_floating_point()} == {torch.float16}
    model = model_from_checkpoint(content)
    assert [type(model.model[i]).__name__ for i in (3, 4)] == blocks
    assert DetectionModel(folder / "model.yaml").state_dict().keys() == model.state_dict().keys()

    rows = table(folder / "layers.csv")
    assert [(r["layer"], r["to"], r["left"]) for r in rows] == [
        ("3", blocks[0], ""), ("4", blocks[1], ""),
        ("5", "", "SPPF has no light form; only Conv and C3 have one")]  # fmt: skip
    assert int(rows[1]["parameters_after"]) == model.model[4].np < int(rows[1]["parameters_before"])
    assert 0 < float(rows[0]["unexplained"]) < 1.5
    figures = {r["figure"]: r for r in table(folder / "before_after.csv")}
    assert list(figures) == ["parameters", "GFLOPs at 64 px", "file, MiB", "ms per image, median", "ms per image, p95",
                             "P", "R", "mAP50", "mAP50-95"]  # fmt: skip
    assert int(figures["parameters"]["after"]) == sum(p.numel() for p in model.parameters())
    assert all(float(r["after"]) < float(r["before"]) for r in list(figures.values())[:3])
    assert float(figures["ms per image, p95"]["after"]) == 2
    text = "\n".join(printed)
    assert "fitting to 8 training images, measured on 4 apart from these" in text and ", 1 threads)" in text
    command = f"python train.py --weights {folder / 'weights/slim.pt'} --data {flags['data']} --imgsz 64 --epochs 20"
    assert printed[-1].splitlines()[-1] == f"next      {command} --teacher {flags['weights']}"


@pytest.mark.slow
@pytest.mark.parametrize("with_cfg", [False, True])
def test_train_goes_on(flags: dict, data: Path, tmp_path: Path, printed: list[str], with_cfg: bool) -> None:
    folder = slim.run(**flags)
    cfg = {"cfg": str(folder / "model.yaml")} if with_cfg else {}
    options = {"epochs": 1, "imgsz": 64, "batch_size": 4, "workers": 0, "device": "cpu", "noplots": True, "amp": "off",
               "noautoanchor": True, "project": str(tmp_path), "name": "tuned"}  # fmt: skip
    train.run(weights=str(folder / "weights/slim.pt"), data=str(data), **options, **cfg)
    taken = next(line for line in printed if "tensors loaded" in line)
    begun, trained = (load_checkpoint(p) for p in (folder / "weights/slim.pt", tmp_path / "tuned/weights/best.pt"))
    assert trained["yaml"]["head"] == begun["yaml"]["head"] and trained["anchors"] == begun["anchors"]
    total = len(begun["model"])
    assert f"{total - with_cfg} of {total} tensors loaded" in taken  # with --cfg the anchors are the yaml's


def test_the_same_seed_gives_the_same_weights(flags: dict) -> None:
    folders = [slim.run(**{**flags, "layers": "4", "seed": seed}) for seed in (0, 0, 1)]
    first, second, other = (load_checkpoint(folder / "weights/slim.pt")["model"] for folder in folders)
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert any(not torch.equal(v, other[k]) for k, v in first.items())


def test_without_data_the_kernels_alone_are_fitted(flags: dict, printed: list[str]) -> None:
    folder = slim.run(**{**flags, "data": "", "to": "slimneck", "layers": "4"})
    assert "accuracy will be poor" in printed[0] and "--data DATA.yaml" in printed[-1]
    assert [0.4 < float(r["unexplained"]) < 0.6 for r in table(folder / "layers.csv")] == [True]
    assert [r["figure"] for r in table(folder / "before_after.csv")][-1] == "ms per image, p95"


def test_other_classes_are_carried_over_by_name(flags: dict, tmp_path: Path, printed: list[str]) -> None:
    other = checkpoint(tmp_path / "three.pt", "green", "Blue", "red")
    content = load_checkpoint(slim.run(**{**flags, "weights": str(other)}) / "weights/slim.pt")
    assert list(content["names"].values()) == ["red", "blue"]
    assert "three.pt: its head is first converted to the 2 classes of squares.yaml" in "\n".join(printed)
    rows = content["model"]["model.6.m.0.bias"].float().reshape(2, 7)
    theirs = load_checkpoint(other)["model"]["model.6.m.0.bias"].half().float().reshape(2, 8)
    assert torch.equal(rows[:, :5], theirs[:, :5]) and torch.equal(rows[:, 5:], theirs[:, [7, 6]])


def test_layers_above_max_error_are_left(flags: dict, printed: list[str]) -> None:
    """The limit lies between the two layers."""
    flags["steps"] = 0
    worse, better = sorted(table(slim.run(**flags) / "layers.csv")[:2], key=lambda r: -float(r["lost"]))
    limit = (float(worse["lost"]) + float(better["lost"])) / 2
    folder = slim.run(**{**flags, "max_error": limit})
    left = {r["layer"]: r["left"] for r in table(folder / "layers.csv")}
    assert (left[worse["layer"]], left[better["layer"]]) == ("above --max-error", "")
    layer = model_from_checkpoint(load_checkpoint(folder / "weights/slim.pt")).model[int(worse["layer"])]
    assert type(layer).__name__ == worse["from"]
    assert any("left as it was" in line for line in printed)


def test_a_fit_that_is_worse_than_the_start_is_not_taken(flags: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(new: torch.nn.Module, old: torch.nn.Module, inputs: list) -> None:
        for p in new.parameters():
            p.mul_(100)

    flags.update(layers="4", steps=0)
    good = table(slim.run(**flags) / "layers.csv")[0]
    monkeypatch.setattr(reconstruct, "fit_block", spoil)
    start = table(slim.run(**flags) / "layers.csv")[0]
    assert float(good["unexplained"]) < float(start["unexplained"]) < 10  # spoilt it would be thousands


def test_the_figures_are_those_of_val_py(flags: dict, weights: Path, tmp_path: Path) -> None:
    """Of the file as it lies there, however many images are fitted to at once."""
    content = load_checkpoint(weights)
    for key in ("model.6.m.0", "model.6.m.1"):
        content["model"][f"{key}.weight"].normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
        content["model"][f"{key}.bias"].zero_()
    weights = tmp_path / "lively.pt"
    save_checkpoint(weights, content)
    folder = slim.run(**{**flags, "weights": str(weights), "batch_size": 5})
    figures = {r["figure"]: r for r in table(folder / "before_after.csv")}
    for file, column in ((weights, "before"), (folder / "weights/slim.pt", "after")):
        results = val.run(weights=str(file), data=flags["data"], workers=0, device="cpu", noplots=True,
                          project=flags["project"])  # fmt: skip
        assert [float(figures[k][column]) for k in ("P", "R", "mAP50", "mAP50-95")] == list(results.summary)
    assert figures["mAP50"]["before"] != figures["mAP50"]["after"] and float(figures["mAP50"]["before"]) > 0


def test_validation_images_are_not_fitted_to(flags: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_yolo_set(tmp_path / "other", 6)
    for file in (tmp_path / "other/images/val").iterdir():
        cv2.imwrite(str(file), np.full((96, 128, 3), 1, np.uint8))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(slim, "fitted", lambda o, s, batches, opt: seen.extend(batches) or fitted(o, s, batches, opt))
    slim.run(**{**flags, "data": str(data)})
    assert len(torch.cat(seen)) == 6 and (torch.cat(seen).flatten(1).max(1).values > 200).all()


def test_the_files_make_one_model(flags: dict) -> None:
    """model.yaml and slim.pt, rebuilt apart, give the same."""
    folder = slim.run(**flags)
    content = load_checkpoint(folder / "weights/slim.pt")
    whole, rebuilt = model_from_checkpoint(content).eval(), DetectionModel(folder / "model.yaml").eval()
    rebuilt.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in content["model"].items()})
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(rebuilt(x)[0], whole(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("to", ["slimneck", "slimconv"])
def test_kernels_that_are_all_zero(flags: dict, tmp_path: Path, to: str) -> None:
    content = load_checkpoint(flags["weights"])
    content["model"]["model.4.conv.weight"].zero_()
    save_checkpoint(tmp_path / "pruned.pt", content)
    folder = slim.run(**{**flags, "weights": str(tmp_path / "pruned.pt"), "data": "", "to": to, "layers": "4"})
    assert float(table(folder / "layers.csv")[0]["unexplained"]) == 0


def test_a_result_is_not_written_over_itself(flags: dict) -> None:
    folder = slim.run(**{**flags, "data": "", "layers": "4", "name": "a"})
    with pytest.raises(UserError, match="slim.pt would be written over itself; give another --name"):
        slim.run(**{**flags, "weights": str(folder / "weights/slim.pt"), "layers": "3", "name": "a", "exist_ok": True})


def test_a_folder_of_the_users_stays(flags: dict, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    flags.update(name="mine", exist_ok=True, data="")
    with pytest.raises(UserError, match="every layer is above"):
        slim.run(**flags, max_error=1e-9)
    (tmp_path / "mine/weights").rmdir()
    (tmp_path / "mine/weights").write_text("notes")
    with pytest.raises(UserError, match="mine/weights is a file, where the checkpoint's folder has to be"):
        slim.run(**flags)
    assert (tmp_path / "mine/weights").read_text() == "notes"


def test_classes_that_are_not_known(flags: dict, tmp_path: Path, printed: list[str]) -> None:
    """By name where there are names, as train.py takes them; by number where there are none."""
    other = checkpoint(tmp_path / "other.pt", "blue", "green")
    slim.run(**{**flags, "weights": str(other), "layers": "4"})
    assert any("other.pt was not trained on red: their rows" in line for line in printed)
    nameless = checkpoint(tmp_path / "nameless.pt", "0", "1")
    slim.run(**{**flags, "weights": str(nameless), "layers": "4"})
    assert any("no class name in common: classes are matched by index" in line for line in printed)


def test_a_run_folder_stands_for_its_checkpoint(flags: dict, tmp_path: Path) -> None:
    folder = slim.run(**{**flags, "data": "", "layers": "4", "name": "first"})
    again = slim.run(**{**flags, "weights": str(folder), "data": "", "layers": "3", "name": "second"})
    assert model_from_checkpoint(load_checkpoint(again / "weights/slim.pt")).model[4].__class__.__name__ == "SlimNeck"
    with pytest.raises(UserError, match="a folder without weights/best.pt"):
        slim.run(**{**flags, "weights": str(tmp_path)})


def test_a_slower_model_is_said_to_be_slower(flags: dict, printed: list[str]) -> None:
    slim.run(**{**flags, "data": ""})
    assert any("not faster here" in line for line in printed)  # the times of these tests are 1 and 2 ms


def test_one_batch_is_warned_of(flags: dict, printed: list[str]) -> None:
    slim.run(**{**flags, "batches": 1, "layers": "4"})
    assert any("the same batch is used to fit and to measure" in line for line in printed)


@pytest.mark.parametrize("with_data", [True, False])
def test_nothing_is_left_behind_if_every_layer_is_too_bad(flags: dict, tmp_path: Path, with_data: bool) -> None:
    data = flags["data"] if with_data else ""
    with pytest.raises(UserError, match="every layer is above --max-error, the best with 0"):
        slim.run(**{**flags, "data": data, "max_error": 1e-9, "name": "none"})
    assert not (tmp_path / "none").exists()


def test_interrupting_leaves_nothing(flags: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slim, "fit_layer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        slim.run(**{**flags, "name": "stopped"})
    assert not (tmp_path / "stopped").exists()


def test_badly_fitting_layers_are_named(flags: dict, monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    monkeypatch.setattr(slim, "POOR", 0.0)
    slim.run(**flags)
    assert any("layers 3, 4 lose more than 0.0; --max-error 0.0 leaves" in line for line in printed)


def test_memory_bounds_the_batches(flags: dict, monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> None:
    monkeypatch.setattr(slim, "HELD", 1)
    slim.run(**flags)
    text = "\n".join(printed)
    assert "1 of 3 batches are used" in text and "fitting to 4 training images, measured on 4\n" in text + "\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ""}, "--weights is missing"),
        ({"weights": "no_such.pt"}, "no_such.pt: no such file"),
        ({"to": "slimnek"}, r"--to slimnek: one of slimneck, slimconv \(did you mean 'slimneck'\?\)"),
        ({"layers": "7"}, "there is no layer 7; this model has layers 0 to 6, neck is 3-5"),
        ({"layers": "0,5"}, "nothing that --to slimconv can replace: 0 Conv: its row .*; 5 SPPF"),
        ({"group_size": 0}, "--group-size, --batches and --batch-size must be 1 or more"),
        ({"max_error": 0.0}, "--max-error 0.0 must be above 0"),
        ({"data": "no_such.yaml"}, "--data 'no_such.yaml' does not exist"),
        ({"too": "slimneck"}, "slim.run: unknown key 'too'"),
        ({"imgsz": 0}, "--imgsz 0: must be 1 or more pixels"),
        ({"seed": 10**30}, r"--seed 1000000000000000000000000000000 is too large"),
        ({"layers": 7}, "there is no layer 7"),
    ],
)
def test_wrong_flags(flags: dict, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        slim.run(**{**flags, **changes})
    assert not (tmp_path / "exp").exists()


def test_data_of_other_classes_is_refused(flags: dict, tmp_path: Path, data: Path) -> None:
    content = yaml.safe_load(data.read_text())
    other = data.with_name("other.yaml")
    other.write_text(yaml.safe_dump({**content, "names": ["a", "b", "c"]}))
    with pytest.raises(UserError, match="has 2 classes, none of which .*other.yaml lists"):
        slim.run(**{**flags, "data": str(other)})


def test_command_line(monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path, capsys) -> None:
    words = ("--weights", weights, "--to", "slimconv", "--layers", "3", "--project", tmp_path, "--device", "cpu")
    monkeypatch.setattr(slim, "time_in_turns", lambda calls, budget: torch.ones(2, 2).numpy())
    assert run_main(monkeypatch, slim, *words, "--group-size", "4") == 0
    assert load_checkpoint(tmp_path / "exp/weights/slim.pt")["yaml"]["head"][0][3] == [32, False, 4]
    assert run_main(monkeypatch, slim, *words, "--to", "other") == 1
    assert "--to other: one of slimneck, slimconv" in capsys.readouterr().err
