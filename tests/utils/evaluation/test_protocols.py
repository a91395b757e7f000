"""VOC's AP against a plain implementation and by hand; AP by size against faster-coco-eval."""

from __future__ import annotations

import numpy as np
import pytest
from detections import random_set

from utils.evaluation.coco import FIGURES, score_coco
from utils.evaluation.protocols import (
    FALSE,
    HIT,
    IGNORED,
    coco_ap,
    match_sizes,
    match_voc,
    overlap,
    score_voc,
    size_ap,
    voc_ap,
)

BOX, NEAR, FAR = (0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60)


def detection(box: tuple, confidence: float = 0.9, cls: int = 0) -> list[float]:
    return [*box, confidence, cls]


def thing(box: tuple, difficult: int = 0, cls: int = 0) -> list[float]:
    return [cls, *box, (box[2] - box[0]) * (box[3] - box[1]), difficult]


def rows(values: list, columns: int) -> np.ndarray:
    return np.array(values, float).reshape(-1, columns)


def slow_voc(found: list, truths: list, cls: int, points: bool) -> float | None:
    """The devkit's rule in plain loops: AP of a class, None if it has no object that counts."""
    total = sum(1 for t in truths for o in t if o[0] == cls and not o[6])
    if not total:
        return None
    every = [(d[4], i, d) for i, f in enumerate(found) for d in f.tolist() if d[5] == cls]
    taken, hits, misses, curve = set(), 0, 0, []
    for _, i, d in sorted(every, key=lambda e: -e[0]):
        best, which = -1.0, None
        for k, o in enumerate(truths[i].tolist()):
            if o[0] == cls:
                w, h = min(d[2], o[3]) - max(d[0], o[1]), min(d[3], o[4]) - max(d[1], o[2])
                inter = w * h if w > 0 and h > 0 else 0.0
                iou = inter / ((d[2] - d[0]) * (d[3] - d[1]) + (o[3] - o[1]) * (o[4] - o[2]) - inter)
                if iou > best:
                    best, which = iou, k
        if best >= 0.5 and truths[i][which][6]:
            continue
        if best >= 0.5 and (i, which) not in taken:
            taken.add((i, which))
            hits += 1
        else:
            misses += 1
        curve.append((hits / total, hits / (hits + misses)))
    if points:
        return sum(max((p for r, p in curve if r >= k / 10), default=0.0) for k in range(11)) / 11
    area, last = 0.0, 0.0
    for n, (r, _) in enumerate(curve):
        area += (r - last) * max(p for _, p in curve[n:])
        last = r
    return area


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_voc_agrees_with_plain_loops(seed: int, points: bool) -> None:
    found, truths = random_set(30, 4, seed, difficult=0.3, objects=(0.5, 3, 6, 10)[seed], steps=(0, 5, 20, 0)[seed])
    truths[0], truths[1] = truths[0][:0], truths[1][:0]  # images without objects, the second without detections too
    found[1] = found[1][:0]
    score = score_voc(found, truths, 6, points)  # two of the six classes have no object
    expected = {c: slow_voc(found, truths, c, points) for c in range(6)}
    assert score.classes.tolist() == [c for c, ap in expected.items() if ap is not None]
    np.testing.assert_allclose(score.ap[:, 0], [ap for ap in expected.values() if ap is not None], atol=1e-12)
    assert score.figures["mAP50"] == pytest.approx(score.ap.mean()) and 0.05 < score.figures["mAP50"] < 1


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        ([], [thing(BOX)], []),
        ([detection(BOX)], [], [FALSE]),
        ([detection(BOX)], [thing(BOX)], [HIT]),
        ([detection(BOX)], [thing(BOX, cls=1)], [FALSE]),
        ([detection(BOX)], [thing(BOX, difficult=1)], [IGNORED]),
        ([detection(BOX), detection(NEAR, 0.8)], [thing(BOX, difficult=1)], [IGNORED, IGNORED]),
        ([detection(BOX), detection(NEAR, 0.8)], [thing(BOX)], [HIT, FALSE]),
        ([detection(BOX, 0.7), detection(NEAR, 0.8)], [thing(BOX)], [FALSE, HIT]),  # the more confident one first
        ([detection(BOX, 0.8), detection(NEAR, 0.8)], [thing(BOX)], [HIT, FALSE]),  # equals: as they come
        # the second overlaps the first object most, which is taken; it does not look for the other one
        ([detection(BOX), detection(NEAR, 0.8)], [thing(BOX), thing((0, 0, 10, 7))], [HIT, FALSE]),
        ([detection(BOX)], [thing((0, 0, 10, 5))], [HIT]),  # IoU 0.5 is enough
        ([detection(FAR)], [thing(BOX), thing(FAR, difficult=1)], [IGNORED]),
    ],
)
def test_match_voc_by_hand(found: list, truth: list, expected: list[int]) -> None:
    assert match_voc(rows(found, 6), rows(truth, 7)).tolist() == expected


@pytest.mark.parametrize(
    ("recall", "precision", "points", "area"),
    [
        ([], [], 0.0, 0.0),
        ([1.0], [1.0], 1.0, 1.0),
        ([0.5, 0.5, 1.0], [1, 0.5, 2 / 3], (6 * 1 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3),
        ([0.0, 0.3], [0.0, 0.5], 4 * 0.5 / 11, 0.3 * 0.5),  # a recall of 3 / 10 reaches the point 0.3
    ],
)
def test_voc_ap_by_hand(recall: list, precision: list, points: float, area: float) -> None:
    assert voc_ap(np.array(recall), np.array(precision), True) == pytest.approx(points)
    assert voc_ap(np.array(recall), np.array(precision), False) == pytest.approx(area)


def test_classes_with_difficult_objects_only_are_left_out_of_the_mean() -> None:
    found = [rows([detection(BOX), detection(BOX, 0.5, cls=1)], 6)]
    truths = [rows([thing(BOX), thing(BOX, 1, cls=1)], 7)]
    score = score_voc(found, truths, 3)
    assert (score.classes.tolist(), score.objects.tolist(), score.figures["mAP50"]) == ([0], [1], 1.0)
    assert score_voc(found, [truths[0][1:]], 3).figures["mAP50"] == 0


def test_detections_in_images_without_labels_count_as_false() -> None:
    found = [rows([detection(BOX, 0.8)], 6), rows([detection(BOX, 0.9)], 6)]
    truths = [rows([thing(BOX)], 7), rows([], 7)]
    assert score_voc(found, truths, 1).figures["mAP50"] == pytest.approx(0.5)


def test_overlap_with_a_crowd_is_the_share_of_the_detection() -> None:
    a, b = np.array([[0, 0, 10, 10.0]]), np.array([[0, 0, 5, 10], [0, 0, 5, 10.0]])
    assert overlap(a, b, np.array([0, 1])).tolist() == [[0.5, 0.5]]
    assert overlap(b, a, np.array([1])).tolist() == [[1.0], [1.0]]
    assert overlap(a[:0], b).shape == (0, 2)


SMALL, LARGE = (0, 0, 20, 20), (0, 0, 200, 200)


@pytest.mark.parametrize(
    ("found", "truth", "small", "large"),
    [
        ([detection(SMALL)], [thing(SMALL)], [HIT], [IGNORED]),  # finds an object of another size
        ([detection(SMALL)], [], [FALSE], [IGNORED]),  # finds nothing, and is of another size
        ([detection((0, 0, 33, 33))], [thing((0, 0, 30, 30))], [HIT], [IGNORED]),  # the object's size decides
        ([detection(LARGE), detection(LARGE, 0.5)], [thing(LARGE)], [IGNORED, IGNORED], [HIT, FALSE]),
        ([detection(LARGE), detection(LARGE, 0.5)], [thing(LARGE, 1)], [IGNORED] * 2, [IGNORED] * 2),
        # 1024 square pixels belong to small and medium; the detection prefers the object that counts
        ([detection((0, 0, 30, 31))], [thing((0, 0, 30, 31)), thing((0, 0, 33, 33))], [HIT], [IGNORED]),
    ],
)
def test_match_sizes_by_hand(found: list, truth: list, small: list[int], large: list[int]) -> None:
    outcome = match_sizes(rows(found, 6), rows(truth, 7))
    assert outcome[:, 1, 0].tolist() == small and outcome[:, 3, 0].tolist() == large


def test_coco_ap_by_hand() -> None:
    assert coco_ap(np.array([0.5]), np.array([1.0])) == pytest.approx(51 / 101)  # the points 0 to 0.50
    assert coco_ap(np.zeros(0), np.zeros(0)) == 0


def test_sizes_without_objects_have_no_ap() -> None:
    ap, objects = size_ap([rows([detection(SMALL)], 6)], [rows([thing(SMALL)], 7)], 1)
    assert ap[:2] == pytest.approx([1, 1]) and np.isnan(ap[2:]).all() and objects.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("images", "flags"),
    [(60, {}), (60, {"difficult": 0.3}), (5, {"steps": 4, "objects": 2}), (4, {"made_up": 400, "objects": 20})],
    ids=["plain", "with difficult ones", "few, equal confidences", "more than 100 of a class in an image"],
)
def test_size_ap_agrees_with_faster_coco_eval(images: int, flags: dict) -> None:
    pytest.importorskip("faster_coco_eval")
    found, truths = random_set(images, 3, seed=5, **flags)
    ap, _ = size_ap(found, truths, 3)
    figures = score_coco(found, truths, 3).figures
    assert list(figures) == FIGURES
    np.testing.assert_allclose(ap, [figures[k] for k in (FIGURES[0], "APsmall", "APmedium", "APlarge")], atol=1e-9)
