"""Boxes and labels on images, and crops."""

from __future__ import annotations

import numpy as np
import pytest

from utils.draw.boxes import Annotator, color_of, crop_box


def test_annotator_draws_where_it_should() -> None:
    painter = Annotator(np.zeros((100, 100, 3), np.uint8), line_width=1)
    painter.box_label((20, 40, 60, 80), "", (0, 0, 255))
    ys, xs = np.nonzero(painter.result()[..., 2] > 128)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (20, 40, 60, 80)


@pytest.mark.parametrize("label", ["person 0.87", "人 0.87", "é"])
@pytest.mark.parametrize("box", [(0, 0, 5, 5), (90, 90, 100, 100), (-10, -10, 200, 200)])
def test_labels_of_any_alphabet_fit_into_the_picture(label: str, box: tuple) -> None:
    painter = Annotator(np.zeros((100, 160, 3), np.uint8))
    painter.box_label(box, label, color_of(3))
    assert painter.result().shape == (100, 160, 3) and painter.result().any()


def test_crop_is_the_box_with_a_margin() -> None:
    im = np.arange(100 * 100, dtype=np.int32).reshape(100, 100)
    crop = crop_box(np.stack((im,) * 3, -1), (40, 40, 60, 60), gain=1.0, pad=10)
    assert crop.shape[:2] == (31, 31) and crop[0, 0, 0] == 35 * 100 + 35
    assert crop_box(np.zeros((10, 10, 3)), (-5, -5, 3, 3)).size > 0
