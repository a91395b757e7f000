"""Placement of the labels of points in a plot, so that they overlap neither points nor each other."""

from __future__ import annotations

import numpy as np

MARK = 5.0  # half the side of a marker, in typographic points
RADII = (7.0, 13.0, 22.0, 34.0)  # distances from the centre at which a label is tried, in typographic points
TURNS = np.linspace(0, 2 * np.pi, 16, endpoint=False)
ROUNDS = 4


def place_labels(points: np.ndarray, sizes: np.ndarray, frame: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """Return the lower left corners (n, 2) of labels placed beside their points.

    points: (n, 2) centres; sizes: (n, 2) width and height of each label; frame: (4,) corners of the area in which the
    labels should lie; obstacles: (k, 4) corners of areas that they should not cover. All are in typographic points,
    with y pointing up. Each label in turn takes the position of lowest cost; this is repeated for several rounds, since
    in the first round a label does not know the positions of those after it.
    """
    marks = np.concatenate((points - MARK, points + MARK), 1)
    places = [_places(p, s) for p, s in zip(points, sizes, strict=True)]
    costs = [_fixed_costs(boxes, marks, frame, obstacles) for boxes in places]
    chosen: list[np.ndarray | None] = [None] * len(points)
    for _ in range(ROUNDS):
        for i, boxes in enumerate(places):
            others = np.array([c for j, c in enumerate(chosen) if j != i and c is not None]).reshape(-1, 4)
            cost = costs[i] + 4 * _overlap(boxes, others).sum(1)
            chosen[i] = boxes[int(cost.argmin())]
    return np.array(chosen, float).reshape(-1, 4)[:, :2]


def _places(point: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the candidate positions of a label as corners (p, 4), nearest first; each touches a circle at `point`."""
    directions = np.stack((np.cos(TURNS), np.sin(TURNS)), 1)
    half = size / 2
    boxes = []
    for radius in RADII:
        # the closer the direction is to an axis, the more the label is centred on that axis
        middle = point + directions * radius + np.sign(directions.round(6)) * half * np.minimum(
            np.abs(directions) * 2, 1)  # fmt: skip
        boxes.append(np.concatenate((middle - half, middle + half), 1))
    return np.concatenate(boxes)


def _fixed_costs(boxes: np.ndarray, marks: np.ndarray, frame: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """Return the part of each position's cost that does not depend on the other labels.

    These are the covered markers and obstacles, the area outside the frame, and the distance.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    outside = area - _overlap(boxes, frame[None])[:, 0]
    distance = np.repeat(np.arange(len(RADII)) * 12.0, len(TURNS)) + np.tile(_preference(), len(RADII))
    return 4 * _overlap(boxes, marks).sum(1) + 8 * outside + _overlap(boxes, obstacles).sum(1) + distance


def _preference() -> np.ndarray:
    """Return a cost per direction: lower beside the point than above or below it, and lower right than left."""
    return 3 * np.abs(np.sin(TURNS)) + 2 * (np.cos(TURNS) < 0)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection areas (n, m) of boxes a (n, 4) and b (m, 4)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return sides.clip(0).prod(2)
