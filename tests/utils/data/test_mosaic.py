"""Mosaics: boxes follow pixels, and the pixels are those of a large canvas that is warped."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from drawings import STILL, drawn, found, rng

from utils.boxes import xywhn2xyxy
from utils.data import mosaic as module
from utils.data.augment import random_perspective
from utils.data.mosaic import lay_out, mosaic, size_at

SMALLER = {**STILL, "scale": 0.4, "translate": 0.1}


def tiles(factor: float = 1.0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four pictures with a rectangle each, and its label in fractions; factor: resolution at which they are drawn."""
    images, labels = [], []
    for k, (h, w, box) in enumerate([(100, 80, (10, 10, 50, 60)), (60, 100, (10, 10, 50, 50)),
                                     (100, 100, (40, 40, 90, 90)), (90, 100, (30, 20, 60, 80))]):  # fmt: skip
        h, w, (x1, y1, x2, y2) = int(h * factor), int(w * factor), (int(v * factor) for v in box)
        images.append(drawn(h, w, (x1, y1, x2, y2), k)[0])
        labels.append(np.array([[k, (x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h]], np.float32))
    return images, labels


@pytest.mark.parametrize("hyp", [STILL, SMALLER, {**STILL, "scale": 0.9}, {**STILL, "degrees": 2.0}])
@pytest.mark.parametrize("factor", [1.0, 0.5, 1.7])
@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_their_pictures(seed: int, factor: float, hyp: dict) -> None:
    """Whatever the resolution of the pictures: their longer side becomes that of the result."""
    im, labels = mosaic(*tiles(factor), 100, hyp, rng(seed))
    assert im.shape == (100, 100, 3)
    for cls, *box in labels.tolist():
        np.testing.assert_allclose(found(im, int(cls), 90), box, atol=1.01 + 2 * hyp["degrees"] + (factor < 1))


def photographs(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Smooth pictures of noise, so that a shift by part of a pixel would be seen."""
    made = [rng(k).integers(0, 256, (h // 8, w // 8, 3), np.uint8) for k, (h, w) in enumerate(sizes)]
    return [cv2.resize(im, (w, h), interpolation=cv2.INTER_CUBIC) for im, (h, w) in zip(made, sizes, strict=True)]


def by_canvas(images: list, labels: list, s: int, hyp: dict, generator: np.random.Generator) -> tuple:
    """The same random choices, with all four on a canvas of twice the side that is warped in one piece."""
    yc, xc = (int(v) for v in generator.uniform(s // 2, 2 * s - s // 2, 2))
    sizes = [size_at(s, im.shape) for im in images]
    corners = [(xc - w if k % 2 == 0 else xc, yc - h if k < 2 else yc) for k, (w, h) in enumerate(sizes)]
    moved = [np.concatenate((v[:, :1], xywhn2xyxy(v[:, 1:], *size, *c)), 1)
             for v, c, size in zip(labels, corners, sizes, strict=True)]  # fmt: skip
    moved = np.concatenate(moved)
    moved[:, 1:] = moved[:, 1:].clip(0, 2 * s)
    return random_perspective(lay_out(images, corners, sizes, s), moved, hyp, generator, (s, s))


SHAPES = [(160, 120), (90, 160), (160, 160), (120, 160)]
LABELS = [np.array([[k, 0.3, 0.3, 0.4, 0.5], [k, 0.8, 0.7, 0.2, 0.1]], np.float32) for k in range(4)]


@pytest.mark.parametrize("seed", range(10))
def test_pixels_are_those_of_a_canvas(seed: int) -> None:
    """Where the warp moves by whole pixels: to the last bit."""
    images = photographs(SHAPES)
    (direct, kept), (warped, expected) = (f(images, LABELS, 160, STILL, rng(seed)) for f in (mosaic, by_canvas))
    np.testing.assert_array_equal(direct, warped)
    np.testing.assert_allclose(kept, expected, atol=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_scaled_pixels_lie_where_they_would_on_a_canvas(seed: int) -> None:
    """To within the half pixel by which pictures are moved to whole ones."""
    images = photographs(SHAPES)
    (direct, kept), (warped, expected) = (f(images, LABELS, 160, SMALLER, rng(seed)) for f in (mosaic, by_canvas))
    np.testing.assert_allclose(kept, expected, atol=1.01)
    blurred = [cv2.GaussianBlur(im, (0, 0), 2).astype(int) for im in (direct, warped)]
    assert np.abs(blurred[0] - blurred[1]).mean() < 4
    assert (np.abs(direct.astype(int) - warped).max(2) > 60).mean() < 0.03  # the seams


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ((10, 0, 10, 0, 10), ((0, 10), (0, 10), (0, 10))),
        ((10, -5, 5, 0, 5), ((5, 10), (0, 5), (0, 5))),
        ((10, 0, 20, 3, 9), ((1, 5), (3, 9), (2, 10))),  # half a source pixel more at both sides
        ((20, 0, 10, 3, 9), ((6, 18), (3, 9), (3, 9))),
        ((10, -40, -20, 0, -20), ((0, 10), (0, 0), (-40, -20))),  # out of sight
        ((3, 0, 100, 50, 60), ((1, 2), (50, 60), (33, 67))),
    ],
)
def test_cut(line: tuple[int, ...], expected: tuple) -> None:
    assert module._cut(*line) == expected
