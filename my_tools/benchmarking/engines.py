"""The networks of benchmark.py in other inference engines, as far as these are installed."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from models.export.engines import installed, onnx_session
from models.export.exported import ExportedRuntime
from models.export.exporters import FORMATS, Job, onnx_graph
from models.export.facts import ExportFacts
from models.export.form import ExportForm
from models.export.quantize import Calibration
from models.yolo import DetectionModel

CPU = torch.device("cpu")
# name in the table -> export format, whether int8, precision (amp), required packages
RUN_AS = MappingProxyType({
    "ONNX Runtime": ("onnx", False, "off", ("onnx", "onnxruntime")),
    "ONNX Runtime int8": ("onnx", True, "off", ("onnx", "onnxruntime")),
    "OpenVINO": ("openvino", False, "off", ("openvino",)),
    "OpenVINO bf16": ("openvino", False, "bf16", ("openvino",)),
    "OpenVINO int8": ("openvino", True, "bf16", ("openvino", "nncf")),
})  # fmt: skip
TARGETS = MappingProxyType({
    ("yolov5_shufflenet", "ONNX Runtime"): 0.24, ("yolov5_shufflenet", "OpenVINO"): 0.25,
    ("yolov5_shufflenet", "OpenVINO bf16"): 0.15, ("yolov5_shufflenet", "OpenVINO int8"): 0.1,
    ("yolov5s", "OpenVINO bf16"): 0.2,
})  # fmt: skip


@contextmanager
def engine_calls(model: DetectionModel, image: Tensor) -> Iterator[dict[str, Callable[[], object]]]:
    """Yield functions that run exported forms of a network on an image (1, 3, h, w) uint8; their files exist meanwhile.

    int8 models are calibrated on noise, which is enough for timing. ONNX Runtime also runs the fused network with its
    channel shuffles.
    """
    calls: dict[str, Callable[[], object]] = {}
    height, width = image.shape[2:]
    example = image / 255
    form = ExportForm(model.cpu(), (height, width))
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, height, width), np.uint8)
    if installed("onnx", "onnxruntime"):
        with torch.no_grad():
            session = onnx_session(onnx_graph(copy.deepcopy(model).fuse(), example), CPU)
        calls["fused, ONNX Runtime"] = partial(session.run, None, {"images": example.numpy()})
    with tempfile.TemporaryDirectory() as folder:
        for number, (what, (kind, int8, amp, packages)) in enumerate(RUN_AS.items()):
            if not installed(*packages):
                continue
            facts = ExportFacts({k: str(k) for k in range(form.no - 5)}, int(model.stride.max()), (height, width))
            out = Path(folder) / f"{number}{FORMATS[kind].suffix}"
            FORMATS[kind].write(Job(form, example, out, facts, calibration=Calibration(noise) if int8 else None))
            calls[what] = partial(ExportedRuntime(out, CPU, amp=amp).predict, image)
        yield calls
