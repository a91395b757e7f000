"""The programs of docs/deploy.md, run as a user runs them, without this repository: they find what we find."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from exports import need_packages, network
from helpers import ROOT, shared
from test_docs import FENCED, page

import detect
import export
from models.inference.runtime import load_runtime
from models.weights.checkpoint import save_checkpoint, weights_content
from utils.boxes import scale_boxes, xywh2xyxy
from utils.data.augment import letterbox
from utils.data.images import read_image
from utils.evaluation.nms import non_max_suppression

CPU = torch.device("cpu")
PICTURE = ROOT / "data/images/shapes1.jpg"
SIZE = (160, 192)  # not the proportions of the picture, so that there are bars
PROGRAMS = {  # by the name in the first line
    found[1]: code for _, code in FENCED.findall(page("docs/deploy.md"))
    if (found := re.match(r"(?:#|//) (\w+\.\w+)\n", code))
}  # fmt: skip
EXPORTS = {  # what the programs run: flags of export.py
    "nms": {"include": "onnx", "nms": True}, "plain": {"include": "onnx"},
    "dynamic": {"include": "onnx", "dynamic": True}, "half": {"include": "onnx", "half": True},
    "ncnn": {"include": "ncnn"}, "ncnn_half": {"include": "ncnn", "half": True},
}  # fmt: skip


def weights(folder: Path) -> Path:
    """A checkpoint that finds some dozens of boxes of either class all over a picture, none next to a threshold."""
    model = network()
    model.names = {0: 'red "brick" \\', 1: "blue, or 'azure'"}
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = None
    with torch.no_grad():  # the statistics of pictures, or all places of a picture would give next to the same
        model.train()(torch.from_numpy(export.samples("", (192, 256))))
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_var.clamp_(min=0.15)  # or what is rounded would be enlarged beyond what export.py allows
    for conv in model.eval().model[-1].m:
        conv.weight.data *= 12
        bias = conv.bias.data.reshape(3, -1)
        bias[:, :2] -= 5
        bias[:, 2:4] -= 6  # boxes of some pixels
        bias[:, 4] -= 2
        bias[:, 5:] -= 4.5
    file = folder / "best.pt"
    save_checkpoint(file, weights_content(model, max(SIZE)))
    return file


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def expected(best: Path) -> np.ndarray:
    """What detect.py finds with grey bars up to the whole size: (m, 6) in the picture's pixels."""
    image = read_image(PICTURE)
    fitted = letterbox(image, SIZE, auto=False)[0][..., ::-1].transpose(2, 0, 1)
    decoded = load_runtime(best, CPU).predict(torch.from_numpy(fitted.copy())[None])
    (found,) = non_max_suppression(decoded)
    scale_boxes(SIZE, found[:, :4], image.shape)
    assert len(found) > 20 and len(found[:, 5].unique()) == 2
    return found.numpy()


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder with the programs and a picture."""
    for name, code in PROGRAMS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    shutil.copy(PICTURE, tmp_path / "street.jpg")
    return tmp_path


def exported(kind: str, best: Path, folder: Path) -> str:
    """Export into a folder; the name of the file there."""
    need_packages(EXPORTS[kind]["include"])
    shutil.copy(best, folder / "best.pt")
    (file,) = export.run(weights=str(folder / "best.pt"), imgsz=list(SIZE), **EXPORTS[kind])
    (folder / "best.pt").unlink()
    return file.name


def run(folder: Path, *words: str, timeout: float = 60) -> subprocess.CompletedProcess:
    """A command in a folder, where nothing of this repository can be imported."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def boxes(output: str) -> list[tuple[str, np.ndarray]]:
    """Name and five numbers of each line that a program prints."""
    rows = [line.rsplit(" ", 5) for line in output.splitlines() if not line.startswith("network:")]
    return [(name, np.array(numbers, float)) for name, *numbers in rows]


def check_equal(output: str, expected: np.ndarray, best: Path, pixels: float = 0.02) -> None:
    """That a program's lines are the expected boxes, within `pixels` and what it rounds, in the same order."""
    names = load_runtime(best, CPU).names
    found = boxes(output)
    assert [name for name, _ in found] == [names[int(cls)] for cls in expected[:, 5]]
    numbers = np.stack([n for _, n in found])
    np.testing.assert_allclose(numbers[:, 1:], expected[:, :4], atol=0.05 + pixels)
    np.testing.assert_allclose(numbers[:, 0], expected[:, 4], atol=0.005 + pixels / 200)


def check_picture(folder: Path, name: str) -> None:
    """The result has the picture's size, and red frames."""
    drawn, plain = cv2.imread(str(folder / name)), cv2.imread(str(PICTURE))
    assert drawn.shape == plain.shape
    red = (drawn[..., 2] > 200) & (drawn[..., :2] < 80).all(2)
    assert red.mean() > 0.02 + ((plain[..., 2] > 200) & (plain[..., :2] < 80).all(2)).mean()


@pytest.mark.parametrize("kind", EXPORTS)
def test_python_programs_find_what_we_find(kind: str, best: Path, expected: np.ndarray, user: Path) -> None:
    model, program = exported(kind, best, user), "run_ncnn.py" if "ncnn" in kind else "run_onnx.py"
    ran = run(user, sys.executable, program, model, "street.jpg", "--repeat", "2", "--threads", "1")
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    assert re.fullmatch(r"network: median \d+\.\d ms, fastest \d+\.\d ms", ran.stdout.splitlines()[-1])
    check_picture(user, "result.jpg")
    check_equal(ran.stdout, expected, best, 1.5 if "half" in kind else 0.02)


@pytest.mark.parametrize("kind", ["plain", "half", "dynamic", "nms"])
def test_the_opencv_program_finds_what_we_find(kind: str, best: Path, expected: np.ndarray, user: Path) -> None:
    version = tuple(map(int, cv2.__version__.split(".")[:2]))
    model, loads = exported(kind, best, user), kind != "nms" and version >= ((5, 0) if kind == "dynamic" else (4, 7))
    ran = run(user, sys.executable, "run_opencv.py", model, "street.jpg")
    if not loads:
        assert ran.returncode == 1 and not ran.stdout and "Traceback" not in ran.stderr
        assert ran.stderr.splitlines()[-1].startswith(f"OpenCV {cv2.__version__} cannot run {model}; 4.7 is needed")
        return
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    check_picture(user, "result.jpg")
    check_equal(ran.stdout, expected, best, 1.5 if kind == "half" else 0.02)


@pytest.mark.parametrize(("program", "kind"), [("run_onnx.py", "nms"), ("run_ncnn.py", "ncnn"),
                                               ("run_opencv.py", "plain")])  # fmt: skip
def test_a_picture_that_is_none_is_one_line(program: str, kind: str, best: Path, user: Path) -> None:
    model = exported(kind, best, user)
    (user / "empty.jpg").write_bytes(b"")
    for name in ("missing.jpg", "boxes.py", "empty.jpg", "."):
        ran = run(user, sys.executable, program, model, name)
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"{name} is no picture that can be read\n")


def test_ncnn_in_python_tells_of_a_model_that_is_none(best: Path, user: Path) -> None:
    model = exported("ncnn", best, user)
    (user / model / "model.ncnn.param").write_text("no model")
    for name in (model, "missing_ncnn"):
        ran = run(user, sys.executable, "run_ncnn.py", name, "street.jpg")
        assert ran.returncode == 1 and ran.stderr.endswith(f"{name} is no model that ncnn can read\n")
        assert "Traceback" not in ran.stderr


def test_the_opencv_program_tells_of_a_model_that_is_none(user: Path) -> None:
    for name in ("missing.onnx", "boxes.py", "."):
        ran = run(user, sys.executable, "run_opencv.py", name, "street.jpg")
        assert (ran.returncode, ran.stderr) == (1, f"{name} is not an ONNX file written by export.py\n")


def test_float16_and_threads_change_little(best: Path, expected: np.ndarray, user: Path) -> None:
    model = exported("ncnn", best, user)
    ran = run(user, sys.executable, "run_ncnn.py", model, "street.jpg", "--fp16", "--threads", "2", "--out", "r.png")
    assert ran.returncode == 0 and len(boxes(ran.stdout)) == pytest.approx(len(expected), abs=4)
    check_picture(user, "r.png")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nms", "plain", "ncnn"])
def test_a_trained_network_on_a_photograph(kind: str, user: Path) -> None:
    """What detect.py writes for the same file, for a photograph."""
    model = exported(kind, shared("weights/v5lite-s.pt"), user)
    shutil.copy(shared("images/bus.jpg"), user / "bus.jpg")
    program = "run_ncnn.py" if kind == "ncnn" else "run_onnx.py"
    ran = run(user, sys.executable, program, model, "bus.jpg")
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    flags = {"save_txt": True, "save_conf": True, "nosave": True, "amp": "off", "device": "cpu"}
    folder = detect.run(weights=str(user / model), source=str(user / "bus.jpg"), project=str(user), **flags)
    rows = np.loadtxt(folder / "labels/bus.txt")
    height, width = read_image(user / "bus.jpg").shape[:2]
    expected = np.column_stack((xywh2xyxy(rows[:, 1:5]) * [width, height, width, height], rows[:, 5], rows[:, 0]))
    assert len(rows) > 4
    check_equal(ran.stdout, expected, user / model, 0.5)  # detect.py rounds to whole pixels


@pytest.mark.slow
def test_ncnn_in_cpp_finds_what_we_find(best: Path, expected: np.ndarray, user: Path) -> None:
    missing = [tool for tool in ("cmake", "c++") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    model = exported("ncnn", best, user)
    ran = run(user, "cmake", "-S", ".", "-B", "build", "-DCMAKE_CXX_FLAGS=-Wall -Wextra")
    if package := re.search(r'provided by "(\w+)"', ran.stderr):
        pytest.skip(f"needs {package[1]} for C++, in CMAKE_PREFIX_PATH if it is not where CMake looks")
    assert ran.returncode == 0, ran.stderr
    ran = run(user, "cmake", "--build", "build", timeout=300)
    assert ran.returncode == 0 and "warning" not in ran.stdout + ran.stderr, ran.stdout + ran.stderr
    program = str(user / "build/run_ncnn")
    ran = run(user, program, model, "street.jpg", "r.png", "1", "2")
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    check_equal(ran.stdout, expected, best)
    check_picture(user, "r.png")
    assert ran.stdout.splitlines()[-1].startswith("network: median ")
    ran = run(user, program, model, "street.jpg", "r.png", "2", "0", "fp16")
    assert ran.returncode == 0 and len(boxes(ran.stdout)) == pytest.approx(len(expected), abs=4)
    (user / "empty.jpg").write_bytes(b"")
    for name in ("missing.jpg", "boxes.py", "empty.jpg", "."):
        ran = run(user, program, model, name)
        assert (ran.returncode, ran.stderr) == (1, f"{name} is no picture that can be read\n")
    ran = run(user, program, ".", "street.jpg")
    assert (ran.returncode, ran.stderr) == (1, ". is no model that ncnn can read\n")
    assert run(user, program).returncode == 2


@pytest.mark.slow
def test_the_measuring_program_measures(user: Path) -> None:
    """In the project's folder, as the page says; here with its modules in the path, and not for long."""
    need_packages("onnx")
    need_packages("ncnn")
    shutil.copytree(ROOT / "data", user / "data")
    code = PROGRAMS["measure.py"]
    assert "rounds, repeat = sys.argv[1:] or CONFIGS, 5, 20" in code
    (user / "measure.py").write_text(code.replace("CONFIGS, 5, 20", "CONFIGS, 1, 2"), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "measure.py", "yolov5_shufflenet"]
    ran = subprocess.run(command, cwd=user, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"yolov5_shufflenet +(run_\w+\.py [12]: \d+\.\d ms *){4}", ran.stdout.splitlines()[-1])
