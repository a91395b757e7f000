"""Matching and AP against the reference and by hand; the confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detections import random_set
from helpers import golden

from utils.evaluation.coco import score_coco
from utils.evaluation.metrics import ConfusionMatrix, ap_per_class, compute_ap, fitness, process_batch, smooth
from utils.evaluation.protocols import coco_ap

IOUV = torch.linspace(0.5, 0.95, 10)


def test_reference_matches_and_figures() -> None:
    z = golden("metrics.npz")
    correct = [process_batch(torch.tensor(z[f"det{i}"]), torch.tensor(z[f"lab{i}"]), IOUV) for i in range(40)]
    np.testing.assert_array_equal(torch.cat(correct), z["correct"])
    _, _, p, r, f1, ap, classes = ap_per_class(z["correct"], z["conf"], z["pcls"], z["tcls"])[:7]
    for name, value in {"p": p, "r": r, "f1": f1, "ap": ap, "classes": classes}.items():
        np.testing.assert_allclose(value, z[name], atol=1e-4)
    assert ap[:, 0].mean() == pytest.approx(float(z["map50"]), abs=1e-4)
    assert ap.mean() == pytest.approx(float(z["map"]), abs=1e-4)


DET = [0, 0, 10, 10, 0.9, 0]


@pytest.mark.parametrize(
    ("detections", "labels", "hits_at_50"),
    [
        ([], [[0, 0, 0, 10, 10]], []),
        ([DET], [], [False]),
        ([DET], [[0, 0, 0, 10, 10]], [True]),
        ([DET], [[1, 0, 0, 10, 10]], [False]),  # another class
        ([DET], [[0, 20, 20, 30, 30]], [False]),  # another place
        ([DET, [0, 0, 10, 9, 0.8, 0]], [[0, 0, 0, 10, 10]], [True, False]),  # two hits on one object
        ([DET, [20, 0, 30, 10, 0.8, 0]], [[0, 20, 0, 30, 10], [0, 0, 0, 10, 10]], [True, True]),
    ],
)
def test_process_batch_by_hand(detections: list, labels: list, hits_at_50: list[bool]) -> None:
    correct = process_batch(torch.tensor(detections).reshape(-1, 6), torch.tensor(labels).reshape(-1, 5), IOUV)
    assert correct.shape == (len(detections), 10)
    assert correct[:, 0].tolist() == hits_at_50


def test_perfect_detections_score_one() -> None:
    tp = np.ones((4, 10), bool)
    *_, p, r, _, ap, classes = ap_per_class(tp, np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 1]),
                                            np.array([0, 0, 1, 1]))[:7]  # fmt: skip
    np.testing.assert_allclose((p, r), 1)
    np.testing.assert_allclose(ap, 0.995, atol=1e-9)  # COCO's 101 points with YOLOv5's closing point
    assert classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("conf", "pred_cls", "true_cls"),
    [([], [], []), ([], [], [0, 1]), ([0.5], [0], [])],
    ids=["nothing at all", "labels but no detection", "a detection but no label"],
)
def test_empty_sides(conf: list, pred_cls: list, true_cls: list) -> None:
    tp = np.zeros((len(conf), 10), bool)
    _, _, p, _, _, ap, classes, _ = ap_per_class(tp, np.array(conf), np.array(pred_cls), np.array(true_cls))
    assert len(p) == len(ap) == len(classes) == len(set(true_cls))
    assert not ap.any()


def test_compute_ap_of_a_half_right_ranking() -> None:
    # hit, miss, hit of two objects: precision 1 up to recall 0.5, then 2/3
    ap, _, _ = compute_ap(np.array([0.5, 0.5, 1.0]), np.array([1, 0.5, 2 / 3]))
    assert ap == pytest.approx(0.5 + 0.5 * 2 / 3, abs=0.01)


def test_smooth_keeps_length_and_constants() -> None:
    assert smooth(np.full(50, 3.0), 0.1) == pytest.approx(np.full(50, 3.0))


def test_fitness_weights() -> None:
    assert fitness(np.array([0.9, 0.9, 0.5, 0.25])) == pytest.approx(0.1 * 0.5 + 0.9 * 0.25)


def test_confusion_matrix_counts() -> None:
    matrix = ConfusionMatrix(2)
    found = torch.tensor([[0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 0], [50, 50, 60, 60, 0.7, 1.0],
                          [0, 0, 10, 10, 0.1, 1]])  # fmt: skip
    labels = torch.tensor([[0, 0, 0, 10, 10], [1, 20, 20, 30, 30], [1, 80, 80, 90, 90.0]])
    matrix.process_batch(found, labels)
    expected = np.zeros((3, 3))
    expected[0, 0] = 1  # right
    expected[0, 1] = 1  # class 1 taken for 0
    expected[2, 1] = 1  # missed
    expected[1, 2] = 1  # made up
    np.testing.assert_array_equal(matrix.matrix, expected)


@pytest.mark.parametrize(("images", "tolerance"), [(600, 1e-3), (20, 1e-2)])
def test_ap_is_cocos_but_for_the_end_of_the_curve(images: int, tolerance: float) -> None:
    """YOLOv5 draws a line from the last point of a curve to recall 1, precision 0, where COCO counts nothing.

    The triangle below it, (1 - recall) * precision / 2 of the last point, is the whole of the difference.
    """
    pytest.importorskip("faster_coco_eval")
    found, truths = random_set(images, 4, seed=2)
    correct = [process_batch(torch.tensor(f), torch.tensor(t[:, :5], dtype=torch.float32), IOUV)
               for f, t in zip(found, truths, strict=True)]  # fmt: skip
    detections, tp = np.concatenate(found), np.concatenate(correct)
    true = np.concatenate(truths)[:, 0]
    ap = ap_per_class(tp, detections[:, 4], detections[:, 5], true)[5]
    order = np.argsort(-detections[:, 4], kind="stable")
    by_coco, triangles = np.zeros((2, 4, 10))
    for c in range(4):
        hits = tp[order][detections[order, 5] == c].cumsum(0)
        recall, precision = hits / (true == c).sum(), hits / np.arange(1, len(hits) + 1)[:, None]
        by_coco[c] = [coco_ap(recall[:, t], precision[:, t]) for t in range(10)]
        triangles[c] = (1 - recall[-1]) * precision[-1] / 2
    expected = score_coco(found, truths, 4).figures["AP"]
    assert by_coco.mean() == pytest.approx(expected, abs=1e-3)  # the matches are COCO's
    assert ap.mean() - triangles.mean() == pytest.approx(expected, abs=tolerance)
    assert triangles.mean() > 3e-3
