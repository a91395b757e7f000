"""Pictures with a rectangle in the colour of its class, and the rectangle found again."""

from __future__ import annotations

import numpy as np

from utils.data.augment import GREY

COLOURS = ((0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255))
STILL = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0, "perspective": 0.0}


def drawn(h: int, w: int, box: tuple[int, int, int, int], cls: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture with one rectangle in the colour of its class, and its label."""
    im = np.full((h, w, 3), GREY, np.uint8)
    x1, y1, x2, y2 = box
    im[y1:y2, x1:x2] = COLOURS[cls]
    return im, np.array([[cls, *box]], np.float32)


def found(im: np.ndarray, cls: int, tolerance: int = 90) -> np.ndarray:
    """The box around all pixels near the colour of a class."""
    ys, xs = np.nonzero(np.abs(im.astype(int) - COLOURS[cls]).max(2) < tolerance)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
