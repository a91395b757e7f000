"""Random sets of objects and detections of them, as realistic as scoring needs them."""

from __future__ import annotations

import numpy as np

WIDTH, HEIGHT = 640, 480


def random_set(
    images: int, nc: int, seed: int = 0, objects: float = 5, made_up: float = 15, missed: float = 0.2,
    difficult: float = 0.0, jitter: float = 0.08, steps: int = 0,
) -> tuple[list[np.ndarray], list[np.ndarray]]:  # fmt: skip
    """Detections (m, 6) float32, best first, and objects (k, 7) of each image; some images have none of either.

    steps: confidences in so many steps, so that many are equal (0: as they come).
    """
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(images):
        boxes = _boxes(rng, rng.poisson(objects))
        cls = rng.integers(0, nc, len(boxes)).astype(float)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        truths.append(np.column_stack((cls, boxes, area, rng.random(len(boxes)) < difficult)))
        twice = np.concatenate((np.arange(len(boxes)), np.flatnonzero(rng.random(len(boxes)) < 0.3)))
        kept = twice[rng.random(len(twice)) >= missed]
        noise = rng.normal(0, jitter, (len(kept), 4)) * np.tile(boxes[kept, 2:] - boxes[kept, :2], 2)
        other = np.where(rng.random(len(kept)) < 0.1, rng.integers(0, nc, len(kept)), cls[kept])
        hits = np.column_stack((boxes[kept] + noise, rng.beta(3, 2, len(kept)), other))
        count = rng.poisson(made_up)
        rest = np.column_stack((_boxes(rng, count), rng.beta(0.6, 6, count), rng.integers(0, nc, count)))
        rows = np.concatenate((hits, rest)).astype(np.float32)
        if steps:
            rows[:, 4] = np.ceil(rows[:, 4] * steps) / steps
        found.append(rows[np.argsort(-rows[:, 4], kind="stable")])
    return found, truths


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(np.log(10), np.log(250), (count, 1)) + rng.normal(0, 0.3, (count, 2)))
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides).clip(1)
    return np.concatenate((corners, corners + sides), 1)
