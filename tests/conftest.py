"""Fixtures, and the threads that tests use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import write_yolo_set

torch.set_num_threads(1)  # the networks are tiny: more threads mostly wait for each other


@pytest.fixture
def yolo_set(tmp_path: Path) -> Path:
    """The data yaml of a small drawn set."""
    return write_yolo_set(tmp_path / "squares")
