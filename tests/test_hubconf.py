"""`torch.hub.load` as a user calls it: from any folder, every config, and beside another project's modules."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import ROOT, run_script

import hubconf
from models.inference.detections import Detections
from models.inference.hub import AutoShape
from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel
from utils.files import model_yamls

CONFIGS = sorted(model_yamls())


def test_every_config_has_its_entry_point_and_nothing_else_is_listed() -> None:
    listed = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")]
    assert sorted(listed) == sorted(["custom", *CONFIGS])
    for name in CONFIGS:
        entry = getattr(hubconf, name)
        assert entry.__name__ == name and f"{name}.yaml" in entry.__doc__


def test_a_config_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    model = torch.hub.load(".", "yolov5_stem_shufflenet", source="local", classes=3, device="cpu", _verbose=False)
    assert isinstance(model, AutoShape) and len(model.names) == 3 and model.stride == 128
    bare = torch.hub.load(".", "yolov5_shufflenet", source="local", autoshape=False, device="cpu", _verbose=False)
    assert isinstance(bare, DetectionModel) and len(bare.names) == 80


def test_custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DetectionModel("yolov5_shufflenet.yaml", nc=2)
    save_checkpoint(tmp_path / "best.pt", weights_content(model, 64))
    monkeypatch.chdir(tmp_path)
    model = torch.hub.load(str(ROOT), "custom", "best.pt", source="local", device="cpu", _verbose=False)
    results = model(np.zeros((48, 64, 3), np.uint8))
    assert isinstance(results, Detections) and results.s == (1, 3, 64, 64) and model.imgsz == 64


@pytest.mark.slow
def test_from_another_folder_in_a_fresh_process(tmp_path: Path) -> None:
    """torch.hub takes the folder off the path again: nothing may be imported from it later."""
    save_checkpoint(tmp_path / "best.pt", weights_content(DetectionModel("yolov5_shufflenet.yaml", nc=2), 64))
    (tmp_path / "use.py").write_text(f"""
import numpy as np, sys, torch
model = torch.hub.load({str(ROOT)!r}, "custom", path="best.pt", source="local", device="cpu")
assert {str(ROOT)!r} not in sys.path
model.conf, model.max_det = 0.0, 3
results = model([np.zeros((48, 64, 3), np.uint8)], profile=True, augment=True)
results.save(), results.crop(), results.print()
assert "pandas" not in sys.modules
print(len(results.pandas().xyxy[0]), "boxes")
""")
    done = run_script("use.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 boxes" in done.stdout and (tmp_path / "runs/detect/exp/image0.jpg").is_file()
    assert len(list((tmp_path / "runs/detect/exp2/crops").glob("*/*.jpg"))) == 3


@pytest.mark.parametrize("name", ["models", "utils"])
def test_modules_of_another_project_in_the_way(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType(name)
    other.__file__ = str(tmp_path / name / "__init__.py")
    monkeypatch.setitem(sys.modules, name, other)
    with pytest.raises(ImportError, match=f"another module '{name}' .* is already loaded") as e:
        torch.hub.load(str(ROOT), "yolov5_shufflenet", source="local")
    assert "\n" not in str(e.value)
