"""Unusual environments: odd paths, no home folder, no network, no display, a read-only checkout, broken packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, write_yolo_set

pytestmark = pytest.mark.slow
TOP = ("models", "utils", "my_tools", "data", "train.py", "val.py", "detect.py", "export.py", "hubconf.py",
       "requirements.txt")  # fmt: skip
# all steps of a user in one process, because starting a process for each takes seconds
ALL = """
import sys, detect, export, train, val
from my_tools import compare
data, weights = sys.argv[1], "runs/train/ein Lauf/weights/best.pt"
train.run(data=data, epochs=1, imgsz=64, batch_size=4, workers=1, device="cpu", name="ein Lauf")
val.run(data=data, weights=weights, device="cpu")
detect.run(weights=weights, source="data/images", device="cpu", save_csv=True, conf_thres=1e-4)
(file,) = export.run(weights=weights, include="torchscript")
detect.run(weights=str(file), source="data/images", device="cpu")
compare.run(weights=[weights], data=data, seconds=0.01, draws=0, workers=0, device="cpu")
print("all done")
"""
# train in a folder that is not writable, then with another --project
TWICE = """
import sys, train
from utils.errors import UserError
flags = {"data": sys.argv[1], "epochs": 1, "imgsz": 64, "batch_size": 4, "workers": 1, "device": "cpu"}
try:
    train.run(**flags)
except UserError as e:
    print(e)
train.run(**flags, project=sys.argv[2])
"""


def checkout(folder: Path) -> Path:
    """Copy the program into a new folder and return the folder."""
    folder.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", "vendor")
    for name in TOP:
        (shutil.copytree(ROOT / name, folder / name, ignore=ignore) if (ROOT / name).is_dir() else
         shutil.copy(ROOT / name, folder / name))  # fmt: skip
    return folder


def run(*words: object, cwd: Path, before: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess:
    """Run Python in a folder, without the environment variables of displays, PYTHONPATH and XDG."""
    less = {
        k: v
        for k, v in os.environ.items()
        if k not in ("DISPLAY", "WAYLAND_DISPLAY", "PYTHONPATH", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    }
    return subprocess.run([*before, sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True,
                          timeout=300, env={**less, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **env})  # fmt: skip


def without_network() -> tuple[str, ...]:
    """Return the command prefix that runs a program in an empty network namespace, or () if that is not allowed."""
    command = ("unshare", "-n")
    possible = shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode
    return command if possible else ()


def test_odd_path_no_home_no_network_no_screen(tmp_path: Path) -> None:
    place = tmp_path / "Übung 数据 no. 1's"
    folder = checkout(place / "check out")
    data = write_yolo_set(place / "data sets/квадраты", 8)
    done = run("-c", ALL, data, cwd=folder, before=without_network(), HOME="/proc/none",
               PYTHONPATH=str(folder))  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("all done\n"), done.stdout + done.stderr
    assert (folder / "runs/detect/exp/predictions.csv").is_file()
    assert "Traceback" not in done.stderr


def test_a_checkout_that_cannot_be_written(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout")
    data = write_yolo_set(tmp_path / "set", 8)
    if os.geteuid() == 0:
        mount = ("unshare", "-m", "sh", "-c", f'mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && '
                 'exec "$@"', "sh")  # fmt: skip
        if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
            pytest.skip("needs permission to mount file systems")
    else:
        mount = ()
        folder.chmod(0o555)
    try:
        done = run("-c", TWICE, data, tmp_path / "runs", cwd=folder, before=mount, PYTHONPATH=str(folder))
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0 and "choose another --project" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "runs/exp/weights/best.pt").is_file()


@pytest.mark.parametrize(
    "script", ["train.py", "detect.py", "val.py", "my_tools/voc2yolo.py", "my_tools/make_shapes.py"]
)
def test_without_libgl_the_right_opencv_is_named(script: str, tmp_path: Path) -> None:
    (tmp_path / "cv2").mkdir()
    reason = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2/__init__.py").write_text(f"raise ImportError({reason!r})\n")
    done = run(script, cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "opencv-python-headless" in done.stderr and reason in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_torchvision_of_another_torch(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    error = "RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision/__init__.py").write_text(f"raise {error}\n")
    data = write_yolo_set(tmp_path / "set", 8)
    done = run("train.py", "--data", data, "--epochs", 1, "--imgsz", 64, "--batch-size", 4, "--workers", 0, "--device",
               "cpu", "--project", tmp_path / "runs", cwd=ROOT, PYTHONPATH=str(tmp_path))  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stderr
