"""Boxes follow pixels: a coloured rectangle is drawn, the picture changed, and the rectangle found again."""

from __future__ import annotations

import numpy as np
import pytest
from drawings import STILL, drawn, found, rng

from utils.data.augment import (
    augment_hsv,
    box_candidates,
    flip_left_right,
    flip_up_down,
    letterbox,
    mixup,
    random_perspective,
)


@pytest.mark.parametrize("flip", [flip_left_right, flip_up_down])
def test_flips_are_exact_and_undo_themselves(flip) -> None:
    im, labels = drawn(40, 60, (5, 7, 20, 30))
    im2, labels2 = flip(im, labels)
    assert labels2[0, 1:].tolist() == found(im2, 0).tolist()
    back, labels3 = flip(im2, labels2)
    assert np.array_equal(back, im) and np.array_equal(labels3, labels)


@pytest.mark.parametrize(
    ("change", "slack"),
    [
        ({}, 1),
        ({"translate": 0.2}, 2),
        ({"scale": 0.5}, 2),
        ({"translate": 0.1, "scale": 0.5}, 2),
        ({"perspective": 0.0005}, 3),
        ({"degrees": 90.0}, None),
        ({"shear": 10.0}, None),
        ({"degrees": 20.0, "shear": 5.0, "translate": 0.1, "scale": 0.3}, None),
    ],
)
@pytest.mark.parametrize("seed", range(6))
def test_affine_box_holds_the_pixels(change: dict, slack: int | None, seed: int) -> None:
    im, labels = drawn(160, 200, (60, 50, 110, 100))
    im2, labels2 = random_perspective(im, labels, {**STILL, **change}, rng(seed))
    assert im2.shape == im.shape and labels2.shape == (1, 5)
    pixels = found(im2, 0)
    if slack is not None:
        np.testing.assert_allclose(labels2[0, 1:], pixels, atol=slack)
    else:  # the box around a turned box is larger than what it holds, never smaller
        assert (labels2[0, 1:3] <= pixels[:2] + 2).all() and (labels2[0, 3:] >= pixels[2:] - 2).all()
        assert ((labels2[0, 3:] - labels2[0, 1:3]) <= 2.2 * (pixels[2:] - pixels[:2])).all()


@pytest.mark.parametrize(
    ("shape", "new", "options", "expected_shape", "ratio", "pad"),
    [
        ((1080, 810), 640, {}, (640, 480), (640 / 1080,) * 2, (0.0, 0.0)),
        ((720, 1280), 640, {}, (384, 640), (0.5, 0.5), (0.0, 12.0)),
        ((720, 1280), 640, {"auto": False}, (640, 640), (0.5, 0.5), (0.0, 140.0)),
        ((100, 50), 200, {"auto": False, "scaleup": False}, (200, 200), (1.0, 1.0), (75.0, 50.0)),
        ((100, 50), (64, 64), {"scaleFill": True, "auto": False}, (64, 64), (64 / 50, 64 / 100), (0.0, 0.0)),
        ((1, 3000), 640, {"auto": False}, (640, 640), (640 / 3000,) * 2, (0.0, 319.5)),
    ],
)
def test_letterbox_table(shape, new, options, expected_shape, ratio, pad) -> None:
    im, r, p = letterbox(np.zeros((*shape, 3), np.uint8), new, **options)
    assert im.shape[:2] == expected_shape
    assert r == pytest.approx(ratio) and p == pytest.approx(pad)


def test_letterbox_box_follows_pixels() -> None:
    im, labels = drawn(100, 200, (20, 30, 80, 70))
    out, ratio, pad = letterbox(im, 320, auto=False)
    expected = labels[0, 1:] * [*ratio, *ratio] + [*pad, *pad]
    np.testing.assert_allclose(found(out, 0, 40), expected, atol=1)


def test_hsv_keeps_greys_grey_and_zero_gain_does_nothing() -> None:
    im, _ = drawn(20, 20, (5, 5, 15, 15))
    assert augment_hsv(im, rng(), 0, 0, 0) is im
    changed = augment_hsv(im, rng(1), 0.1, 0.5, 0.5)
    assert not np.array_equal(changed, im)
    assert np.ptp(changed[0, 0].astype(int)) == 0


def test_mixup_keeps_all_labels_and_half_of_each_picture() -> None:
    a, la = drawn(20, 20, (0, 0, 20, 20), 0)
    b, lb = drawn(20, 20, (0, 0, 20, 20), 2)
    im, labels = mixup(a, la, b, lb, rng())
    assert labels[:, 0].tolist() == [0, 2]
    assert 60 < im[0, 0, 0] < 200 and 60 < im[0, 0, 2] < 200


@pytest.mark.parametrize(
    ("after", "kept"),
    [([0, 0, 10, 10], True), ([0, 0, 1, 10], False), ([0, 0, 3, 3], False), ([0, 0, 1000, 5], False)],
)
def test_lost_boxes_are_left_out(after: list, kept: bool) -> None:
    before = np.array([[0, 0, 10, 10.0]])
    assert box_candidates(before, np.array([after], float)).tolist() == [kept]


def test_same_generator_same_picture() -> None:
    im, labels = drawn(64, 64, (10, 10, 40, 40))
    hyp = {**STILL, "degrees": 30.0, "scale": 0.5}
    first, second = (random_perspective(im, labels, hyp, rng(7)) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
