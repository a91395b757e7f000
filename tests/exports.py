"""What tests of exported models share: which packages are missing, and a network that finds something."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from models.export.exporters import FORMATS
from models.yolo import DetectionModel

NEEDS = {kind: format_.packages for kind, format_ in FORMATS.items()}


def missing(kind: str) -> list[str]:
    return [package for package in NEEDS[kind] if importlib.util.find_spec(package) is None]


def need_packages(kind: str) -> None:
    if missing(kind):
        pytest.skip(f"{kind}: needs {' and '.join(missing(kind))}")


def network(cfg: str | dict = "yolov5_shufflenet.yaml", nc: int = 2) -> DetectionModel:
    """A detector that is sure of some boxes, with the batch norms of a trained one."""
    torch.manual_seed(0)
    model = DetectionModel(cfg, nc=nc).eval()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.uniform_(-0.1, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    for conv in (m for m in model.model[-1].modules() if isinstance(m, torch.nn.Conv2d) and m.bias is not None):
        conv.bias.data += 5.0
    model.names = {0: "red", 1: "blue, or 'azure'"} if nc == 2 else {k: f"class {k}" for k in range(nc)}
    return model
