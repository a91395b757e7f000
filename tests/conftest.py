"""Fixtures, and the threads that tests use."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_yolo_set

torch.set_num_threads(1)  # the networks are tiny: more threads mostly wait for each other


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """What a test draws without a seed of its own is the same in every run; tests that seed take other seeds."""
    random.seed(20)
    np.random.seed(20)
    torch.manual_seed(20)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Use one thread again, whatever the tests before have set; of the trainings, only those with --parts use more."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def every_log_level() -> None:
    """Reset the levels of pytest's own log handlers, because libraries of exports raise those of all root handlers."""
    for handler in logging.root.handlers:
        handler.setLevel(logging.NOTSET)


@pytest.fixture
def yolo_set(tmp_path: Path) -> Path:
    """The data yaml of a small drawn set."""
    return write_yolo_set(tmp_path / "squares")
