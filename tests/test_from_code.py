"""Every public run() takes Path, NumPy and torch scalars, tuples and lists; values of other types name the flag."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, write_yolo_set

import hubconf
from models.inference.hub import AutoShape
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.settings.options import TrainOptions, ValOptions
from utils.settings.values import converted_flags, hints_of

TOOLS = "compare compare_formats slim voc2yolo make_shapes benchmark web_demo convert_weights".split()
RUNS = ("train", "val", "detect", "export", *(f"my_tools.{name}" for name in TOOLS))


def hints(module: str) -> Mapping[str, Any]:
    """The annotated types of a run()'s flags."""
    loaded = importlib.import_module(module)
    options = {"train": TrainOptions, "val": ValOptions}.get(module) or getattr(loaded, "Options", loaded.run)
    assert not is_dataclass(options) or {f.name for f in fields(options)} == set(hints_of(options))
    return {name: hint for name, hint in hints_of(options).items() if name != "given"}


FLAGS = [(module, name, hint) for module in RUNS for name, hint in hints(module).items()]


def members(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]


class Foreign:
    """An object that is no value of any flag."""


@pytest.mark.parametrize(("module", "name", "hint"), FLAGS, ids=[f"{m}-{n}" for m, n, _ in FLAGS])
def test_a_value_of_a_wrong_type_names_the_flag(module: str, name: str, hint: Any) -> None:
    run = importlib.import_module(module).run
    flag = f"--{name.replace('_', '-')}"
    wrong: list[object] = [Foreign(), {"a": 1}, 1j, [Foreign()], b"x", float("nan")]
    wrong += [] if {bool, str} & set(members(hint)) else [True]
    for value in wrong:
        with pytest.raises(UserError, match=rf"^{flag} (is|nan must be) ") as e:
            run(**{name: value})
        assert "\n" not in str(e.value) and len(str(e.value)) < 300


def sample(hint: Any) -> tuple[object, object]:
    """A value from code for an annotated type, and what it becomes."""
    scalars = {int: (np.int64(3), 3), float: (np.float32(0.5), 0.5), bool: (np.bool_(True), True),
               str: (Path("a"), "a"), Path: (Path("a"), Path("a"))}  # fmt: skip
    kind = members(hint)[0]
    if get_origin(kind) not in (Sequence, list, tuple):
        return (Path("a"), Path("a")) if Path in members(hint) else scalars[kind]
    value, becomes = sample(get_args(kind)[0])
    return (value, value), (becomes, becomes) if get_origin(kind) is tuple else [becomes, becomes]


@pytest.mark.parametrize(("module", "name", "hint"), FLAGS, ids=[f"{m}-{n}" for m, n, _ in FLAGS])
def test_values_from_code_are_taken(module: str, name: str, hint: Any) -> None:
    value, becomes = sample(hint)
    assert converted_flags({name: value}, {name: hint}, module) == {name: becomes}


@pytest.mark.slow
def test_a_training_and_what_follows_it(tmp_path: Path) -> None:
    data = write_yolo_set(tmp_path / "set", 8)
    import detect
    import export
    import train
    import val

    train.run(data=data, cfg=Path("yolov5_shufflenet.yaml"), hyp=Path("hyp.scratch-low.yaml"), epochs=np.int64(1),
              imgsz=np.int32(64), batch_size=torch.tensor(4), device=torch.device("cpu"), project=tmp_path, name="run",
              freeze=np.array([0]), noplots=np.bool_(True), label_smoothing=np.float32(0.5),
              workers=np.uint8(0))  # fmt: skip
    options = yaml.safe_load((tmp_path / "run/opt.yaml").read_text())
    assert (options["data"], options["epochs"], options["device"]) == (str(data), 1, "cpu")
    assert (options["label_smoothing"], options["freeze"], options["noplots"]) == (0.5, [0], True)
    best = tmp_path / "run/weights/best.pt"
    results = val.run(data=data, weights=best, imgsz=np.int64(64), conf_thres=np.float32(0.25), noplots=np.True_,
                      project=tmp_path / "val", device="cpu", workers=np.int64(0))  # fmt: skip
    assert len(results.summary) >= 4
    image = ROOT / "data/images" / sorted(p.name for p in (ROOT / "data/images").iterdir())[0]
    folder = detect.run(best, source=image, imgsz=np.array([64, 96]), classes=(np.int64(0),), project=tmp_path,
                        device=torch.device("cpu"), conf_thres=np.float64(0.25), max_det=np.int16(5))  # fmt: skip
    assert (folder / image.name).is_file()
    assert export.run(weights=best, include=("torchscript",), imgsz=np.int64(64))[0].is_file()


def test_the_small_tools(tmp_path: Path) -> None:
    from my_tools import convert_weights, make_shapes, voc2yolo

    drawn = make_shapes.run(out=tmp_path / "VOCshapes", images=np.int64(10), size=np.int32(96))
    summary = voc2yolo.run(source=(drawn,), out=tmp_path / "yolo", split=np.array([0.5, 0.5]), seed=np.int64(1))
    assert summary is not None and (tmp_path / "yolo/images").is_dir()
    with pytest.raises(UserError, match="nowhere.pt: no such file"):
        convert_weights.run(tmp_path / "nowhere.pt", out=tmp_path / "x.pt")


def test_the_command_in_a_report_is_of_the_converted_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from my_tools import compare

    commands = []
    monkeypatch.setattr(compare, "load_candidates", lambda *args: [])
    monkeypatch.setattr(compare, "compare", lambda *args: commands.append(args[-1]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare.run(weights=(Path("a.pt"), "b.pt"), source=ROOT / "data/images", draws=np.int64(0), imgsz=np.int64(64),
                    half=np.False_, device=torch.device("cpu"), labels=np.array(["a", "b"]),
                    project=tmp_path)  # fmt: skip
    assert "--weights a.pt b.pt" in commands[0] and "--draws 0 --imgsz 64 --device cpu --labels a b" in commands[0]


def test_hub_calls(tmp_path: Path) -> None:
    model = hubconf.yolov5_shufflenet(classes=np.int64(2), channels=torch.tensor(3), device=torch.device("cpu"),
                                      _verbose=np.bool_(False))  # fmt: skip
    assert isinstance(model, AutoShape) and len(model.names) == 2
    model.conf, model.iou, model.max_det = np.float32(0.5), np.float64(0.5), np.int64(9)
    image = np.zeros((64, 64, 3), np.uint8)
    for classes, size in (((np.int64(0),), np.int64(64)), (np.array([0, 1]), np.array([64, 96])), (None, (64, 96))):
        model.classes = classes
        assert len(model(image, size=size)) == 1
    network = hubconf.yolov5_shufflenet(autoshape=0, _verbose=False, device="cpu")
    assert isinstance(network, DetectionModel)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "message"),
    [
        ("custom", (), {}, "custom: missing a required argument: 'path'"),
        ("custom", (5,), {}, "custom: path is 5, it must be a text or a path"),
        ("custom", (Path("nowhere.pt"),), {}, "nowhere.pt: no such file"),
        ("custom", ("a.pt",), {"autoshap": 1}, "custom: unknown key 'autoshap'"),
        ("yolov5n", (True,), {}, r"yolov5n\(pretrained=True\): weights are not downloaded"),
        ("custom", ("a.pt",), {"device": 0.5}, "custom: device is 0.5, it must be a text or a whole number or"),
        ("yolov5n", (), {"classes": "2"}, "yolov5n: classes is '2', it must be a whole number"),
        ("yolov5n", (), {"pretrained": ["a.pt"]}, "yolov5n: pretrained is .* it must be True or False or a text or"),
    ],
)
def test_wrong_hub_calls(name: str, args: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        getattr(hubconf, name)(*args, **kwargs)


@pytest.mark.parametrize("module", RUNS)
def test_an_unknown_flag_is_named(module: str) -> None:
    with pytest.raises(UserError, match=r"run: unknown key 'no_such_flag'"):
        importlib.import_module(module).run(no_such_flag=1)
