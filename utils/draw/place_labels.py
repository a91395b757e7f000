"""Where the labels of points go, so that they cover neither points nor one another."""

from __future__ import annotations

import numpy as np

MARK = 5.0  # points from a point's centre that its marker takes
RADII = (7.0, 13.0, 22.0, 34.0)  # how far from the centre a label is tried
TURNS = np.linspace(0, 2 * np.pi, 16, endpoint=False)
ROUNDS = 4


def place_labels(points: np.ndarray, sizes: np.ndarray, frame: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """The lower left corners (n, 2) of labels beside their points; in all of this y goes up, and units are the same.

    points: (n, 2) centres; sizes: (n, 2) width and height of each label; frame: (4,) corners within which labels are
    to lie; obstacles: (k, 4) corners of what they had better not cover. One label after another takes the place that
    costs least, several times round, since the first did not know of the last.
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
    """Corners (p, 4) of the places tried for a label, the nearest first: it touches a circle round the point."""
    directions = np.stack((np.cos(TURNS), np.sin(TURNS)), 1)
    half = size / 2
    boxes = []
    for radius in RADII:
        # the nearer the direction is to an axis, the more the label's middle lies on it
        middle = point + directions * radius + np.sign(directions.round(6)) * half * np.minimum(
            np.abs(directions) * 2, 1)  # fmt: skip
        boxes.append(np.concatenate((middle - half, middle + half), 1))
    return np.concatenate(boxes)


def _fixed_costs(boxes: np.ndarray, marks: np.ndarray, frame: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """What each place costs whatever the other labels do: covered marks and lines, area outside, distance."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    outside = area - _overlap(boxes, frame[None])[:, 0]
    distance = np.repeat(np.arange(len(RADII)) * 12.0, len(TURNS)) + np.tile(_preference(), len(RADII))
    return 4 * _overlap(boxes, marks).sum(1) + 8 * outside + _overlap(boxes, obstacles).sum(1) + distance


def _preference() -> np.ndarray:
    """Beside the point is better than above or below it, and right better than left."""
    return 3 * np.abs(np.sin(TURNS)) + 2 * (np.cos(TURNS) < 0)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The areas (n, m) that boxes a (n, 4) and b (m, 4) share."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return sides.clip(0).prod(2)
