"""Small detectors and pictures for the tests of the browser demo."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from exports import network

import export
from models.weights.checkpoint import save_checkpoint, weights_content

NAMES = {0: "red", 1: "<b>blue</b>"}


def untrained(file: Path, imgsz: int = 64) -> Path:
    """Write the checkpoint of a network that is sure of some boxes, though of no particular ones."""
    model = network()
    model.names = dict(NAMES)
    save_checkpoint(file, weights_content(model, imgsz))
    return file


def to_onnx(checkpoint: Path, **flags: object) -> Path:
    """The .onnx file that export.py writes beside a checkpoint."""
    return export.run(weights=str(checkpoint), include="onnx", **flags)[0]


def draw_picture(file: Path, width: int = 150, height: int = 110) -> Path:
    """Write a picture of discs and bars on a grey that changes slowly."""
    rng = np.random.default_rng(3)
    slope = np.linspace(60, 190, width)[None, :, None] + np.linspace(-40, 40, height)[:, None, None]
    image = np.repeat(slope, 3, 2).clip(0, 255).astype(np.uint8)
    for _ in range(6):
        x, y, side = (int(v) for v in rng.integers((0, 0, 8), (width, height, 30)))
        color = tuple(int(v) for v in rng.integers(0, 256, 3))
        cv2.circle(image, (x, y), side, color, -1)
        cv2.rectangle(image, (y, x), (y + side, x + 9), color[::-1], -1)
    cv2.imwrite(str(file), image)
    return file
