"""Colours and flips of a batch, against what the loader does with single images."""

import cv2
import numpy as np
import pytest
import torch

from utils.data.batch_augment import augment_batch, scale_hsv

NOTHING = dict.fromkeys(("hsv_h", "hsv_s", "hsv_v", "flipud", "fliplr"), 0.0)


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 24, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "gains", [(1, 1, 1), (1, 0.4, 1), (1, 1.7, 1), (1, 1, 0.5), (1, 1, 1.6), (0.9, 1, 1), (1.4, 0.8, 1.2)]
)
def test_gains_are_those_of_opencv_in_floats(gains: tuple[float, ...]) -> None:
    images = pictures(2)
    out = scale_hsv(images, torch.tensor([gains, gains]))
    for im, got in zip(images, out, strict=True):
        hsv = cv2.cvtColor(im.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2HSV) * np.float32(gains)
        hsv[..., 0] %= 360
        hsv[..., 1:] = hsv[..., 1:].clip(0, 1)
        expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        assert np.abs(got.permute(1, 2, 0).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("color", [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
def test_colours_on_the_edges_stay_with_gains_of_one(color: tuple[float, ...]) -> None:
    images = torch.tensor(color, dtype=torch.float32).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.allclose(scale_hsv(images, torch.ones(1, 3)), images, atol=1e-6)


@pytest.mark.parametrize(("key", "axis", "column"), [("flipud", 2, 3), ("fliplr", 3, 2)])
def test_flips_turn_images_and_their_labels(key: str, axis: int, column: int) -> None:
    images = pictures(3)
    targets = torch.tensor([[0, 1, 0.2, 0.3, 0.1, 0.2], [2, 0, 0.6, 0.9, 0.3, 0.1]])
    out, moved = augment_batch(images, targets, {**NOTHING, key: 1.0}, np.random.default_rng(0))
    assert torch.equal(out, images.flip(axis))
    expected = targets.clone()
    expected[:, column] = 1 - expected[:, column]
    assert torch.allclose(moved, expected)
    assert targets[0, column] == pytest.approx((0.2, 0.3)[column - 2])  # what came in is as it was


def test_each_image_is_drawn_for_itself_and_the_seed_decides() -> None:
    images = pictures(16)
    targets = torch.stack([torch.tensor([k, 0, 0.25, 0.5, 0.1, 0.1]) for k in range(16)])
    hyp = {**NOTHING, "fliplr": 0.5, "hsv_v": 0.4}
    out, moved = augment_batch(images, targets, hyp, np.random.default_rng(3))
    again, _ = augment_batch(images, targets, hyp, np.random.default_rng(3))
    other, _ = augment_batch(images, targets, hyp, np.random.default_rng(4))
    flipped = moved[:, 2] > 0.5
    assert torch.equal(out, again) and not torch.equal(out, other)
    assert 2 < flipped.sum() < 14
    for k in range(16):
        before = images[k].flip(2) if flipped[k] else images[k]
        ratio = (out[k].amax(0) / before.amax(0))[before.amax(0) < 0.6]
        assert ratio.std() < 1e-3 and 0.6 <= ratio.mean() <= 1.4


def test_without_anything_to_do_all_stays() -> None:
    images, targets = pictures(2), torch.zeros(0, 6)
    out, same = augment_batch(images, targets, NOTHING, np.random.default_rng(0))
    assert torch.equal(out, images) and same.shape == (0, 6)
