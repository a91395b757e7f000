"""The bootstrap: the same figures as the evaluation's, also for images drawn several times or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from utils.evaluation.bootstrap import Interval, by_class, interval_of, mean_ap, resample
from utils.evaluation.metrics import ap_per_class
from utils.report.comparison import Difference

Image = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # correct, conf, pred_cls, true_cls


def some_images(count: int, seed: int = 0, skill: float = 0.6) -> list[Image]:
    """Images with a few labels of three classes and detections, of which about `skill` are hits where they can be."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        m, true = int(rng.integers(0, 12)), rng.integers(0, 3, rng.integers(0, 6))
        found, free = rng.integers(0, 3, m), np.bincount(true, minlength=3)
        level = np.zeros(m, int)  # a hit up to that IoU threshold
        for d, cls in enumerate(found):
            if free[cls] and rng.random() < skill:
                free[cls] -= 1
                level[d] = rng.integers(1, 11)
        correct = np.arange(10)[None] < level[:, None]
        # two on one label: the surer one takes it at low IoU, the better one at high IoU
        for a, b in zip(np.flatnonzero(level), np.flatnonzero(level == 0), strict=False):
            if found[a] == found[b]:
                correct[b] = ~correct[a]
        images.append((correct, rng.random(m), found.astype(float), true.astype(float)))
    return images


def expected(images: list[Image]) -> tuple[float, float]:
    ap = ap_per_class(*(np.concatenate(part) for part in zip(*images, strict=True)))[5]
    return float(ap[:, 0].mean()), float(ap.mean())


def detections(images: list[Image]):
    return by_class(*(list(part) for part in zip(*images, strict=True)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("skill", [0.0, 0.05, 0.6, 1.0])
def test_drawn_images_score_as_if_they_were_there_as_often(seed: int, skill: float) -> None:
    images = some_images(25, seed, skill)
    assert mean_ap(detections(images), np.ones(25, int)) == pytest.approx(expected(images), abs=1e-12)
    counts = np.bincount(np.random.default_rng(seed).integers(0, 25, 25), minlength=25)
    drawn = [image for image, n in zip(images, counts, strict=True) for _ in range(n)]
    assert mean_ap(detections(images), counts) == pytest.approx(expected(drawn), abs=1e-12)


def test_nothing_found_and_nothing_to_find() -> None:
    nothing = (np.zeros((0, 10), bool), np.zeros(0), np.zeros(0), np.zeros(0))
    missed = (np.zeros((0, 10), bool), np.zeros(0), np.zeros(0), np.zeros(2))
    assert mean_ap(detections([nothing]), np.ones(1, int)) == (0.0, 0.0)
    assert mean_ap(detections([nothing, missed]), np.array([1, 1])) == (0.0, 0.0)


def test_models_are_drawn_the_same_images_and_a_seed_repeats() -> None:
    good, bad = detections(some_images(30, 1, 0.9)), detections(some_images(30, 1, 0.2))
    figures = resample([good, bad, good], 50, seed=3)
    assert figures.shape == (51, 3, 2)
    assert np.array_equal(figures[:, 0], figures[:, 2])
    assert np.array_equal(figures, resample([good, bad, good], 50, seed=3))
    assert not np.array_equal(figures, resample([good, bad, good], 50, seed=4))
    assert len({tuple(row) for row in figures[:, 0].tolist()}) > 40
    difference = interval_of(figures[:, 0, 0] - figures[:, 1, 0])
    assert 0 < difference.low < difference.value < difference.high


def test_interval_narrows_with_more_images() -> None:
    spread = []
    for count in (20, 320):
        i = interval_of(resample([detections(some_images(count))], 200)[:, 0, 0])
        spread.append(i.high - i.low)
    assert spread[1] < 0.5 * spread[0]


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"),
                                                     (-0.1, 0.1, "undecided"), (0.0, 0.1, "undecided")])
def test_a_difference_is_decided_only_where_the_interval_leaves_zero_out(low: float, high: float, verdict: str) -> None:
    assert Difference(0, 1, "mAP50", Interval(0.05, low, high)).verdict == verdict
