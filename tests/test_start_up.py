"""What a script imports when it starts: each heavy package costs the user a wait."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import run_script

from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel

# some of them are imported by torch itself in some versions, and do not count then
HEAVY = """torchvision pandas matplotlib seaborn scipy sympy tensorboard PIL onnx onnxruntime onnxscript openvino nncf
    triton torch._dynamo torch._inductor torch.utils.flop_counter torch.utils.tensorboard faster_coco_eval utils.voc
    utils.report utils.training utils.draw.plots models.run models.slimming utils.system.download""".split()

# runs a script as `python script args...` does, then prints its exit code, the modules that it imported, and whether
# garbage is collected again
PROBE = """
import gc, runpy, sys
sys.argv, before = sys.argv[1:], set()
if {torch}:
    import torch
    before |= set(sys.modules)
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as e:
    code = e.code or 0
print()
print(code, gc.isenabled(), *(set(sys.modules) - before))
"""


def imports(*words: object, torch: bool = False) -> tuple[bool, set[str]]:
    """Whether garbage is collected again after the imports of a script; and its imports, on request without torch's."""
    done = run_script("-c", PROBE.format(torch=torch), *words)
    code, collects, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    return collects == "True", set(modules)


@pytest.mark.parametrize("script", ["train.py", "val.py", "export.py", "detect.py"])
def test_help_needs_no_heavy_package(script: str) -> None:
    _, modules = imports(script, "--help")
    assert not modules & {"torch", "numpy", "cv2", "tqdm", *HEAVY}


def test_detect_imports_what_it_uses(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", weights_content(DetectionModel("yolov5_shufflenet.yaml", nc=2), 64))
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((48, 64, 3), 90, np.uint8))
    collects, modules = imports("detect.py", "--weights", tmp_path / "w.pt", "--source", tmp_path / "a.jpg", "--device",
                                "cpu", "--project", tmp_path / "runs", torch=True)  # fmt: skip
    assert not modules & set(HEAVY) and {"cv2", "models.yolo"} <= modules
    assert collects and (tmp_path / "runs/exp/a.jpg").is_file()
