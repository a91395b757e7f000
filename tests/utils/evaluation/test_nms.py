"""NMS against the reference, against torchvision's kernel class by class, and by hand."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from helpers import golden, run_script

from utils.boxes import xywh2xyxy
from utils.evaluation import nms as module
from utils.evaluation.nms import best_first, non_max_suppression


@pytest.mark.parametrize("name", ["nms_default", "nms_val", "nms_agnostic_classes"])
def test_reference_detections(name: str) -> None:
    z = golden(f"{name}.npz")
    found = non_max_suppression(torch.tensor(z["pred"]), **json.loads(str(z["kw"])))
    for i, rows in enumerate(found):
        np.testing.assert_allclose(rows, z[f"out{i}"], atol=1e-3)


def crowd(n: int = 700, nc: int = 3, images: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(images, n, 5 + nc, generator=g)
    x[..., :2] *= 600
    x[..., 2:4] = x[..., 2:4] * 60 + 10
    return x


@pytest.mark.parametrize("options", [{}, {"multi_label": True}, {"agnostic": True}, {"classes": [0, 2]},
                                     {"multi_label": True, "classes": [1]}, {"conf_thres": 0.6}, {"max_det": 5000}])
@pytest.mark.parametrize("levels", [0, 7])
def test_looking_at_the_best_gives_the_same_as_looking_at_all(
    options: dict, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many scores are equal."""
    x = crowd(1500)
    if levels:
        x[..., 4:] = (x[..., 4:] * levels).round() / levels
    options = {"conf_thres": 0.001, "iou_thres": 0.6, "max_det": 40, **options}
    quick = non_max_suppression(x, **options)[0]
    monkeypatch.setattr(module, "best_first", lambda scores, count: best_first(scores, len(scores)))
    assert torch.equal(quick, non_max_suppression(x, **options)[0]) and len(quick) > 30


@pytest.mark.parametrize(("scores", "count", "expected"), [
    ([0.1, 0.5, 0.3], 2, [1, 2]),
    ([0.5, 0.1, 0.5, 0.5], 2, [0, 2]),  # of equals the first
    ([0.2, 0.2, 0.9, 0.2], 3, [2, 0, 1]),
    ([0.3, 0.4], 5, [1, 0]),
    ([], 3, []),
])  # fmt: skip
def test_best_first(scores: list[float], count: int, expected: list[int]) -> None:
    assert best_first(np.array(scores, np.float32), count).tolist() == expected


@pytest.mark.parametrize("order", ["random", "rising", "the sample sees nothing high", "the sample has the highest",
                                   "one value"])  # fmt: skip
@pytest.mark.parametrize("length", [850, 1300, 2100, 100_000])
def test_the_best_of_very_many(order: str, length: int) -> None:
    """Of so many a sample is looked at first, which may be wrong."""
    scores = np.random.default_rng(0).random(length, np.float32)
    if order == "rising":
        scores.sort()
    elif order == "one value":
        scores[:] = 0.5
    elif order == "the sample has the highest":
        scores[:: len(scores) // (8 * 50)][:49] = 2.0
    elif order != "random":
        scores[:: len(scores) // (8 * 50)] = 2.0  # higher than all that is to be found
        scores[1:40] = 3.0
    expected = np.argsort(-scores, kind="stable")[:50]
    np.testing.assert_array_equal(best_first(scores, 50), expected)


@pytest.mark.parametrize("most", [40, 300, 2000])
@pytest.mark.parametrize("multi_label", [False, True])
def test_only_so_many_candidates_are_looked_at(most: int, multi_label: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with the highest scores, in whatever way they are chosen."""
    x = crowd(1500)
    x[..., 4:] = (x[..., 4:] * 50).round() / 50
    scores = x[0, :, 5:] * x[0, :, 4:5]
    if not multi_label:
        scores = scores.max(1, keepdim=True).values
    monkeypatch.setattr(module, "MAX_CANDIDATES", most)
    found = non_max_suppression(x, 0.001, 1.0, multi_label=multi_label, max_det=9999)[0]  # nothing overlaps by more
    expected = scores[scores > 0.001].sort(descending=True).values[:most]
    assert torch.equal(found[:, 4], expected) and len(found) == min(most, len(expected))


def test_memory_of_many_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of an image does not grow with its classes."""
    monkeypatch.setattr(module, "MAX_CANDIDATES", 100)
    kept = module._candidates(crowd(1000, 80)[0], 0.0, None, True)
    assert len(kept.scores) == len(kept.place) == 100 and kept.xywh.size == 4000 and kept.xywh.base is None


@pytest.mark.parametrize(("iou_thres", "kept"), [(0.6, 1), (0.61, 2), (0.59, 1)])
def test_an_overlap_at_the_threshold(iou_thres: float, kept: int) -> None:
    """3/5 as a float32 is above 0.6, as torchvision has it."""
    boxes = torch.tensor([[2.5, 2, 5, 4, 0.9, 1], [2.5, 1.2, 5, 2.4, 0.8, 1]])
    assert len(non_max_suppression(boxes[None], 0.1, iou_thres)[0]) == kept


@pytest.mark.filterwarnings("error")
def test_boxes_without_end_or_number() -> None:
    x = crowd(50)
    x[0, 3, 2], x[0, 4, 0], x[0, 5, :4] = np.inf, -np.inf, np.nan
    assert len(non_max_suppression(x)[0]) > 3


@pytest.mark.parametrize("classes", [1, 3, 90])
@pytest.mark.parametrize("max_det", [30, 5000])
@pytest.mark.parametrize("agnostic", [False, True])
def test_equals_torchvision_class_by_class(classes: int, max_det: int, agnostic: bool) -> None:
    """Without moving the classes apart, which costs float32 the last digits of a box; images of unlike fullness."""
    ops = pytest.importorskip("torchvision.ops", reason="needs a torchvision that loads", exc_type=Exception)
    pred = crowd(900, classes, images=4)
    pred[..., 4:] = (pred[..., 4:] * 20).round() / 20  # with equal scores
    pred[1, 100:, 4], pred[2, :, 4], pred[3, ::2, 2:4] = 0, 0, 0  # few boxes, none, and some without area
    found = non_max_suppression(pred, 0.3, 0.5, agnostic=agnostic, multi_label=True, max_det=max_det)
    for rows, x in zip(found, pred, strict=True):
        scores = x[:, 5:] * x[:, 4:5]
        row, cls = (scores > 0.3).nonzero(as_tuple=True)
        order = scores[row, cls].argsort(descending=True, stable=True)
        row, cls = row[order], cls[order]
        boxes, conf, group = xywh2xyxy(x[row, :4]), scores[row, cls], cls * (not agnostic)
        kept = [torch.zeros(0, dtype=torch.long)]
        for c in group.unique():
            mine = (group == c).nonzero()[:, 0]
            kept.append(mine[ops.nms(boxes[mine], conf[mine], 0.5)])
        kept = torch.cat(kept).sort().values[:max_det]
        assert torch.equal(rows, torch.cat((boxes[kept], conf[kept, None], cls[kept, None].float()), 1))
    assert len(found[0]) >= 30 and not len(found[2])


def test_a_batch_gives_what_its_images_give() -> None:
    pred = crowd(400, images=5)
    alone = [non_max_suppression(x[None], 0.01, 0.6, multi_label=True)[0] for x in pred]
    assert all(map(torch.equal, non_max_suppression(pred, 0.01, 0.6, multi_label=True), alone))


def test_detection_needs_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision that does not fit torch is the commonest fault of an installation."""
    monkeypatch.setitem(sys.modules, "torchvision", None)  # an import of it raises
    assert len(non_max_suppression(crowd(500))[0])
    code = ("import sys; sys.modules['torchvision'] = None; import detect; assert 'matplotlib' not in sys.modules; "
            "import hubconf, train, val")  # fmt: skip
    ran = run_script("-c", code)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_detections_are_of_the_predictions_type(dtype: torch.dtype) -> None:
    found = non_max_suppression(crowd(100).to(dtype).requires_grad_())[0]
    assert found.dtype == dtype and not found.requires_grad and len(found)


def box(x: float, conf: float, *scores: float) -> list[float]:
    return [x, 10, 10, 10, conf, *scores]


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ([], {}, []),
        ([box(10, 0.2, 1, 0)], {}, []),  # below the threshold
        ([box(10, 0.9, 1, 0), box(11, 0.8, 1, 0)], {}, [(0.9, 0)]),  # same class: one goes
        ([box(10, 0.9, 1, 0), box(11, 0.8, 0, 1)], {}, [(0.9, 0), (0.8, 1)]),  # other class: both stay
        ([box(10, 0.9, 1, 0), box(11, 0.8, 0, 1)], {"agnostic": True}, [(0.9, 0)]),
        ([box(10, 0.9, 1, 0.9)], {"multi_label": True}, [(0.9, 0), (0.81, 1)]),
        ([box(10, 0.9, 1, 0), box(90, 0.8, 0, 1)], {"classes": [1]}, [(0.8, 1)]),
        ([box(10, 0.9, 1, 0), box(90, 0.8, 0, 1)], {"max_det": 1}, [(0.9, 0)]),
    ],
)
def test_hand_made_cases(rows: list, options: dict, expected: list) -> None:
    pred = torch.tensor(rows).reshape(1, -1, 7)
    found = [(round(c, 4), int(k)) for c, k in non_max_suppression(pred, **options)[0][:, 4:].tolist()]
    assert found == expected


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValueError, match="conf_thres"):
        non_max_suppression(crowd(10), conf_thres=1.5)
