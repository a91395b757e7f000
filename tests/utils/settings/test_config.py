"""yaml files: what is accepted, and the one line that a wrong one costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from utils.errors import UserError
from utils.settings.config import load_hyp, load_yaml, save_yaml
from utils.settings.dataset import load_data
from utils.settings.options import TrainOptions


@pytest.mark.parametrize("file", sorted((ROOT / "data/hyps").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_hyp_loads(file: Path) -> None:
    hyp = load_hyp(file.name)
    assert hyp["lr0"] == yaml.safe_load(file.read_text())["lr0"] and "nbs" in hyp


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0.1", "unknown key 'lr'.*did you mean 'lr"),
        ("lr0: fast", "lr0 is 'fast', it must be a number"),
        ("lr0: 1e-2", "lr0 is '1e-2', it must be a number"),  # yaml reads 1e-2 as a text
        ("fliplr: 1.5", "fliplr is 1.5, it must be a number from 0 to 1"),
        ("mosaic: .nan", "mosaic is nan"),
        ("lr0: true", "lr0 is True"),
        ("- 1\n- 2", "no 'key: value' lines"),
        ("lr0: [", "x.yaml:1: not valid yaml"),
        ("a: !!python/object/apply:os.system ['touch ran']", "not valid yaml"),
    ],
)
def test_wrong_hyp(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as e:
        load_hyp(tmp_path / "x.yaml")
    assert "x.yaml" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": ["a"]}, "there is no 'train:' or 'val:'"),
        ({"train": "x"}, "'names' must list"),
        ({"train": "x", "names": ["a"], "nc": 2}, "nc is 2, but there are 1 names"),
        ({"train": "x", "names": {0: "a", 2: "b"}}, "must be 0 to 1"),
        ({"train": "x", "names": ["a"], "tset": "y"}, "unknown key 'tset'.*did you mean 'test'"),
        ({"train": 3, "names": ["a"]}, "train must be a folder"),
        ({"train": "x", "names": ["a"], "path": 5}, "path is 5"),
        ({"train": "x", "names": ["a"], "defaults": 5}, "defaults must be"),
    ],
)
def test_wrong_data(tmp_path: Path, content: dict, message: str) -> None:
    save_yaml(tmp_path / "set.yaml", content)
    with pytest.raises(UserError, match=message):
        load_data(tmp_path / "set.yaml")


def test_data_paths_and_names(tmp_path: Path) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    save_yaml(tmp_path / "d.yaml", {"path": "set", "train": ["a", "b"], "val": "/c", "names": {0: "x", 1: "y"}})
    data = load_data(tmp_path / "d.yaml")
    assert data.train == (tmp_path / "set/a", tmp_path / "set/b") and data.val == (Path("/c"),)
    assert (data.nc, data.names) == (2, {0: "x", 1: "y"})
    assert data.existing("train") == (tmp_path / "set/a",)


def test_a_name_may_be_a_block_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("train: x\nnames:\n  0: |\n    traffic light\n  1: 7\n")
    assert load_data(tmp_path / "d.yaml").names == {0: "traffic light", 1: "7"}


def test_names_may_follow_from_nc(tmp_path: Path) -> None:
    save_yaml(tmp_path / "d.yaml", {"train": "x", "nc": 2})
    assert load_data(tmp_path / "d.yaml").names == {0: "class0", 1: "class1"}


def test_voc_that_is_not_there_names_the_commands() -> None:
    data = load_data("VOC.yaml")
    missing = type(data)(data.yaml_file, data.names, data.path, train=(Path("/nowhere"),), hint=data.hint)
    with pytest.raises(UserError) as e:
        missing.existing("train")
    assert "python my_tools/voc2yolo.py" in str(e.value) and "--download" in str(e.value)


def test_near_names_are_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'VOC.yaml'"):
        load_data("voc.yml")
    with pytest.raises(UserError, match="is empty"):
        load_data("")


def test_load_yaml_of_binary_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="UTF-8"):
        load_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'.*did you mean 'epochs'"),
        ({"epochs": 0}, "--epochs is 0, the least is 1"),
        ({"batch_size": "16"}, "--batch-size is '16', it must be a whole number"),
        ({"optimizer": "adamw"}, "did you mean 'AdamW'"),
        ({"cache": "tape"}, "--cache tape: one of ram, disk"),
        ({"rect": 2}, "--rect is 2, it must be True or False"),
    ],
)
def test_wrong_options(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainOptions.from_flags(flags)


def test_data_defaults_yield_to_given_flags() -> None:
    opt = TrainOptions.from_flags({"epochs": 3, "imgsz": None})
    taken = opt.with_defaults({"epochs": 40, "imgsz": 192, "optimizer": "AdamW"}, "d.yaml")
    assert (opt.epochs, opt.imgsz, opt.optimizer) == (3, 192, "AdamW")
    assert taken == ["--imgsz 192", "--optimizer AdamW"]
    with pytest.raises(UserError, match="d.yaml: defaults: unknown key 'epoch'"):
        opt.with_defaults({"epoch": 1}, "d.yaml")
    with pytest.raises(UserError, match="d.yaml: defaults: --imgsz is 'big'"):
        opt.with_defaults({"imgsz": "big"}, "d.yaml")


def test_hyper_parameters_that_a_data_yaml_names() -> None:
    outside = str(ROOT / "data/VOC.yaml")
    with pytest.raises(UserError, match="d.yaml: defaults: hyp is .*VOC.yaml, it must lead to a file in data/hyps"):
        TrainOptions().with_defaults({"hyp": outside}, "d.yaml")
    for name in ("hyp.scratch-med.yaml", "data/hyps/hyp.scratch-med.yaml"):
        assert TrainOptions().with_defaults({"hyp": name}, "d.yaml") == [f"--hyp {name}"]
    assert TrainOptions.from_flags({"hyp": "own.yaml"}).with_defaults({"hyp": outside}, "d.yaml") == []
