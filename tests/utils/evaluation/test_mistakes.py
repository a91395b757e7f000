"""Which detections and labels are mistakes, what their captions say, and that only the worst are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.draw.mistakes import CAPTION, COLUMNS, GREEN, HEADING, RED, draw_tile, mistakes_picture
from utils.evaluation.mistakes import KEPT, TILE, Mistake, Mistakes, cut_tile, false_detections, missed_labels, worst

NAMES = {0: "cat", 1: "dog"}
BOX, NEAR, HALF, FAR = (10, 10, 50, 50), (10, 10, 50, 48), (10, 10, 50, 25), (100, 100, 120, 120)
NO_LABELS = np.zeros((0, 5), np.float32)


def found(*rows: tuple) -> np.ndarray:
    return np.array([[*box, confidence, cls] for box, confidence, cls in rows], np.float32).reshape(-1, 6)


def labels(*rows: tuple) -> np.ndarray:
    return np.array([[cls, *box] for box, cls in rows], np.float32).reshape(-1, 5)


@pytest.mark.parametrize(
    ("detections", "true", "ignored", "expected"),
    [
        (found((BOX, 0.9, 0)), labels((BOX, 0)), NO_LABELS, []),
        (found((BOX, 0.9, 0)), NO_LABELS, NO_LABELS, [(0, "cat 0.90: background")]),
        (found((BOX, 0.9, 0)), labels((FAR, 0)), NO_LABELS, [(0, "cat 0.90: background")]),
        (found((BOX, 0.9, 1)), labels((BOX, 0)), NO_LABELS, [(0, "dog 0.90: on cat")]),
        (found((HALF, 0.9, 0)), labels((BOX, 0)), NO_LABELS, [(0, "cat 0.90: poor box 0.38")]),
        (found((BOX, 0.9, 0), (NEAR, 0.8, 0)), labels((BOX, 0)), NO_LABELS, [(1, "cat 0.80: duplicate")]),
        (found((BOX, 0.9, 0)), NO_LABELS, labels((NEAR, 0)), []),  # on a difficult object
        (found((BOX, 0.9, 1)), NO_LABELS, labels((NEAR, 0)), [(0, "dog 0.90: background")]),
        (found(), labels((BOX, 0)), NO_LABELS, []),
    ],
)
def test_false_detections(detections, true, ignored, expected: list) -> None:
    assert false_detections(detections, true, ignored, NAMES) == expected


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        (found((BOX, 0.9, 0)), []),
        (found(), [(0, "cat: nothing found")]),
        (found((FAR, 0.9, 0)), [(0, "cat: nothing found")]),
        (found((HALF, 0.9, 0)), [(0, "cat: nothing found")]),
        (found((BOX, 0.249, 0)), [(0, "cat: only 0.24")]),
        (found((BOX, 0.9, 1), (NEAR, 0.1, 0)), [(0, "cat: called dog 0.90")]),
    ],
)
def test_missed_labels(detections: np.ndarray, expected: list) -> None:
    assert missed_labels(detections, labels((BOX, 0)), NAMES) == expected


def test_only_the_worst_are_kept_whatever_the_order_and_the_split() -> None:
    confidences = np.linspace(0.3, 0.99, 40)
    image = torch.full((3, 128, 160), 90, dtype=torch.uint8)
    jobs = [(found((BOX, c, 0)), labels(((90, 90, 91 + k, 110), 1)), f"/{k:02d}.jpg")
            for k, c in enumerate(confidences)]  # fmt: skip
    one, two, three = Mistakes(NAMES), Mistakes(NAMES), Mistakes(NAMES)
    for k, (f, t, path) in enumerate(jobs):
        one.add(image, f, t, NO_LABELS, path)
        (two if k % 3 else three).add(image, f, t, NO_LABELS, path)
    assert len(one.kept) == 2 * KEPT
    assert [m.weight for m in one.kept[:KEPT]] == pytest.approx(confidences[::-1][:KEPT])
    assert [m.weight for m in one.kept[KEPT:]] == [20.0 * (40 - k) for k in range(KEPT)]
    shared = worst([*three.kept, *two.kept])
    assert [m[:5] for m in shared] == [m[:5] for m in one.kept]
    np.testing.assert_array_equal(mistakes_picture(shared), mistakes_picture(one.kept))


def test_faint_detections_are_no_mistakes() -> None:
    mistakes = Mistakes(NAMES)
    mistakes.add(torch.zeros(3, 64, 64, dtype=torch.uint8), found((BOX, 0.2, 0)), NO_LABELS, NO_LABELS, "/a.jpg")
    assert mistakes.kept == []


@pytest.mark.parametrize("box", [BOX, (0, 0, 160, 128), (150, 120, 160, 128), (-20, -20, 5, 5), (10, 10, 10, 10)])
def test_a_tile_fits_its_place_and_shows_both_boxes(box: tuple) -> None:
    corners = np.array([box], np.float32)
    crop = cut_tile(torch.zeros(3, 128, 160, dtype=torch.uint8), corners[0], corners, corners + 3)
    tile = draw_tile(Mistake("false", 0.9, "/a.jpg", 0, "cat", *crop))
    assert tile.dtype == np.uint8 and max(tile.shape[:2]) == TILE and tile.shape[2] == 3
    assert all((tile == colour).all(2).any() for colour in (RED, GREEN))


def test_a_tile_of_a_detection_beside_the_image() -> None:
    box = np.array([[300, 10, 310, 30]], np.float32)  # test-time augmentation makes such
    crop = cut_tile(torch.zeros(3, 64, 64, dtype=torch.uint8), box[0], box, box[:0])
    assert draw_tile(Mistake("false", 0.9, "/a.jpg", 0, "cat", *crop)).size


def test_picture_without_mistakes_and_with_some() -> None:
    assert mistakes_picture([]).shape == (2 * HEADING, COLUMNS * TILE, 3)
    mistakes = Mistakes({0: "猫\n"})
    mistakes.add(torch.zeros(3, 64, 64, dtype=torch.uint8), found((BOX, 0.9, 0)), NO_LABELS, NO_LABELS, "/a.jpg")
    assert mistakes_picture(mistakes.kept).shape == (2 * HEADING + TILE + CAPTION, COLUMNS * TILE, 3)
