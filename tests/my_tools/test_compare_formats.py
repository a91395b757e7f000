"""compare_formats.py: one table and one picture of a model in several engines and number formats."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import cv2
import pytest
from exports import missing, network
from helpers import write_yolo_set

import export
from models.weights.checkpoint import save_checkpoint, weights_content
from my_tools import compare_formats
from utils.errors import UserError


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "best.pt", weights_content(network(), 64))
    return tmp_path / "best.pt"


def test_table_and_chart(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_formats, "has_bf16", lambda: True)
    monkeypatch.setattr(compare_formats.export.Judge, "map50", lambda self, file: 0.5)
    engines = ["pytorch", "torchscript", *(kind for kind in ("onnx", "ncnn") if not missing(kind))]
    rows = compare_formats.run(weights=str(weights), data=str(write_yolo_set(tmp_path / "set", 6)), engines=engines,
                               seconds=0.01, project=str(tmp_path / "runs"))  # fmt: skip
    precisions = {kind: [r.precision for r in rows if r.engine == kind] for kind in engines}
    expected = {"pytorch": ["float32", "bf16"], "torchscript": ["float32"], "onnx": ["float32", "float16", "int8"],
                "ncnn": ["float32", "float16"]}  # fmt: skip
    assert precisions == {kind: expected[kind] for kind in engines}
    assert all(r.ms > 0 and r.mib > 0 for r in rows) and rows[0].ratio == 1
    folder = tmp_path / "runs/exp"
    with open(folder / "table.csv", encoding="utf-8", newline="") as f:
        table = list(csv.DictReader(f))
    figures = [(r["engine"], r["precision"], float(r["ms"])) for r in table]
    assert figures == [(r.engine, r.precision, r.ms) for r in rows]
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == len(rows) + 2 and "6 val images" in text
    assert cv2.imread(str(folder / "chart.png")).shape[1] > 1000
    assert not list(folder.glob("*/best.pt")) and (folder / "float32/best.torchscript").is_file()
    by_map = {r.map50 for r in rows if r.precision == "float32"}
    assert max(by_map) - min(by_map) < 1e-3, "the same network on the same squares"


def test_what_cannot_be_had_is_left_out(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = compare_formats.importlib.util.find_spec
    monkeypatch.setattr(compare_formats.importlib.util, "find_spec",
                        lambda name: None if name in ("onnx", "ncnn") else real(name))  # fmt: skip
    with pytest.raises(UserError, match="none of these is installed"):
        compare_formats.run(weights=str(weights), data=str(write_yolo_set(tmp_path / "set", 6)), seconds=0.01,
                            engines=["onnx", "ncnn"], project=str(tmp_path / "runs"))  # fmt: skip
    said = capsys.readouterr().out
    assert re.search("ONNX Runtime is left out: onnx( and onnxruntime)? not installed", said)
    assert "ncnn is left out" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"data": ""}, "--data is missing"), ({"engines": ["onnxx"]}, "--engines onnxx: one of pytorch, torchscript"),
     ({"seconds": 0}, "--seconds 0 must"), ({"seconds": float("nan")}, "--seconds nan must"),
     ({"imgsz": 0}, "--imgsz 0 must"), ({"weight": "a"}, "weight")],
)  # fmt: skip
def test_refused(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare_formats.run(**{"data": "shapes.yaml", **flags})


def test_an_exported_model_is_refused(weights: Path) -> None:
    (file,) = export.run(weights=str(weights))
    with pytest.raises(UserError, match="is an exported model already; give the checkpoint"):
        compare_formats.run(weights=str(file), data="shapes.yaml")
