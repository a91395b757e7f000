"""The README: its test command is CI's, its table of models is recomputed, the example in docs/python.md runs."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import GOLDEN, ROOT, run_main, run_script

from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import Model
from utils.files import model_yamls
from utils.system.profiling import count_gflops

REFERENCE = json.loads((GOLDEN / "models.json").read_text())
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
ROWS = re.findall(r"^\| `(\w+\.yaml)` \| ([\d,]+) \| ([\d.]+) \| ([\d/]+) \|$", README, re.MULTILINE)


def test_requirement_files_of_the_install_commands_exist() -> None:
    named = {w for c in COMMANDS for w in c.split() if w.startswith("requirements")}
    assert named == {"requirements.txt", "requirements-dev.txt"} and all((ROOT / n).is_file() for n in named)


def test_ci_runs_the_readme_test_command() -> None:
    (command,) = [c for c in COMMANDS if c.endswith("&& pytest")]
    assert command in (ROOT / ".ci/run").read_text()


def test_requirements_agree_with_pyproject() -> None:
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert set(re.findall(r'"(.+?)"', listed.group(1))) == set((ROOT / "requirements.txt").read_text().split())


@pytest.mark.parametrize(("name", "params", "gflops", "strides"), ROWS)
def test_table_of_models(name: str, params: str, gflops: str, strides: str) -> None:
    if known := REFERENCE.get(name.removesuffix(".yaml")):  # test_yolo.py compares these with the models
        assert f"{known['params']:,}" == params and "/".join(map(str, known["stride"])) == strides
        assert float(gflops) == pytest.approx(known["gflops_640"], rel=0.01)
        return
    model = Model(name, nc=20)
    assert f"{sum(p.numel() for p in model.parameters()):,}" == params
    assert "/".join(f"{s:g}" for s in model.stride) == strides
    assert f"{count_gflops(model):.2f}" == gflops


def test_table_holds_every_config() -> None:
    assert {r[0] for r in ROWS} == {file.name for file in model_yamls().values()}


@pytest.mark.parametrize("name", ["train", "val", "detect", "models.yolo", "my_tools.voc2yolo", "my_tools.make_shapes",
                                  "my_tools.check_resume", "my_tools.convert_weights"])
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run_main(monkeypatch, importlib.import_module(name), "--help") == 0
    assert capsys.readouterr().out.startswith("usage:")


def test_data_yamls_read_as_yolov5_reads_them() -> None:
    for file in Path(ROOT / "data").glob("*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert {"path", "train", "val", "names"} <= set(content)


def test_the_example_for_code_runs(tmp_path: Path) -> None:
    """Line for line, with a network that finds something, from a folder of its own; only the viewer is left out."""
    (example,) = [b for b in re.findall(r"```python\n(.*?)```", PYTHON_PAGE, re.DOTALL) if "torch.hub.load" in b]
    model = Model("yolov5_shufflenet.yaml", nc=2).eval()
    with torch.no_grad():
        for conv in model.model[-1].m:
            conv.bias.reshape(model.model[-1].na, -1)[:, 4:] = 3.0
    weights = tmp_path / "runs/train/exp/weights/best.pt"
    weights.parent.mkdir(parents=True)
    save_checkpoint(weights, weights_content(model, 64))
    shutil.copytree(ROOT / "data/images", tmp_path / "data/images")
    code = example.replace('load(".", ', f"load({str(ROOT)!r}, ").replace("results.show()", "")
    (tmp_path / "example.py").write_text(code + "\nprint(len(table), 'rows,', len(crops), 'crops')\n")
    done = run_script("example.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows, crops = re.search(r"(\d+) rows, (\d+) crops", done.stdout).groups()
    assert 0 < int(rows) < int(crops)
    assert len(list((tmp_path / "runs/detect/exp").glob("*.jpg"))) == 3
