"""NMS against the reference, with torchvision's kernel and with our own."""

from __future__ import annotations

import builtins
import json
import logging

import numpy as np
import pytest
import torch
from helpers import golden

from utils import nms as module
from utils.nms import nms_kernel, non_max_suppression, plain_nms


@pytest.fixture(params=["torchvision", "own"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "own":
        monkeypatch.setattr(module, "nms_kernel", lambda device: plain_nms)
    return request.param


@pytest.mark.parametrize("name", ["nms_default", "nms_val", "nms_agnostic_classes"])
def test_reference_detections(name: str, kernel: str) -> None:
    z = golden(f"{name}.npz")
    found = non_max_suppression(torch.tensor(z["pred"]), **json.loads(str(z["kw"])))
    for i, rows in enumerate(found):
        np.testing.assert_allclose(rows, z[f"out{i}"], atol=1e-3)


def crowd(n: int = 700, nc: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, n, 5 + nc, generator=g)
    x[..., :2] *= 600
    x[..., 2:4] = x[..., 2:4] * 60 + 10
    return x


@pytest.mark.parametrize("options", [{}, {"multi_label": True}, {"agnostic": True}, {"classes": [0, 2]},
                                     {"multi_label": True, "classes": [1]}, {"conf_thres": 0.6}, {"max_det": 5000}])
@pytest.mark.parametrize("levels", [0, 7])
def test_looking_at_the_best_gives_the_same_as_looking_at_all(
    options: dict, levels: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many scores are equal."""
    x = crowd(1500)
    if levels:
        x[..., 4:] = (x[..., 4:] * levels).round() / levels
    options = {"conf_thres": 0.001, "iou_thres": 0.6, "max_det": 40, **options}
    quick = non_max_suppression(x, **options)[0]
    best = module._best
    monkeypatch.setattr(module, "_best", lambda conf, count: best(conf, int((conf > options["conf_thres"]).sum())))
    assert torch.equal(quick, non_max_suppression(x, **options)[0]) and len(quick) > 30


@pytest.mark.parametrize(("scores", "count", "expected"), [
    ([0.1, 0.5, 0.3], 2, [1, 2]),
    ([0.5, 0.1, 0.5, 0.5], 2, [0, 2]),  # of equals the first
    ([0.2, 0.2, 0.9, 0.2], 3, [2, 0, 1]),
    ([0.3], 0, []),
])  # fmt: skip
def test_best(scores: list[float], count: int, expected: list[int]) -> None:
    assert module._best(torch.tensor(scores), count).tolist() == expected


@pytest.mark.parametrize("error", [ImportError("no module"), RuntimeError("operator torchvision::nms does not exist")])
def test_broken_torchvision_costs_a_warning(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name.startswith("torchvision"):
            raise error
        return real(name, *args, **kwargs)

    expected = non_max_suppression(crowd(500))
    nms_kernel.cache_clear()
    monkeypatch.setattr(builtins, "__import__", broken)
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        found = non_max_suppression(crowd(500))
        non_max_suppression(crowd(500))
    monkeypatch.undo()
    nms_kernel.cache_clear()
    assert torch.equal(found[0], expected[0])
    assert len(caplog.records) == 1 and "pip install" in caplog.text and str(error) in caplog.text


@pytest.mark.parametrize("n", [0, 1, 200])
def test_own_kernel_equals_torchvision(n: int) -> None:
    ops = pytest.importorskip("torchvision.ops", reason="needs a torchvision that loads", exc_type=Exception)
    g = torch.Generator().manual_seed(n)
    corner = torch.rand(n, 2, generator=g) * 50
    boxes = torch.cat((corner, corner + torch.rand(n, 2, generator=g) * 30), 1)
    boxes[1:4, 2:] = boxes[1:4, :2]  # boxes without area overlap nothing, not even themselves
    scores = torch.rand(n, generator=g)
    assert torch.equal(plain_nms(boxes, scores, 0.5), ops.nms(boxes, scores, 0.5))


@pytest.mark.parametrize("classes", [1, 3, 90])
@pytest.mark.parametrize("options", [{"multi_label": True}, {}, {"agnostic": True}, {"max_det": 40}])
def test_one_class_after_the_other_finds_the_same(
    classes: int, options: dict, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    g = torch.Generator().manual_seed(classes)
    pred = torch.rand(2, 900, 5 + classes, generator=g)
    pred[..., :2] *= 600
    pred[..., 2:4] = pred[..., 2:4] * 80 + 20
    pred[..., 4:] = (pred[..., 4:] * 20).round() / 20  # with equal scores
    found = {}
    for many in (1, 10**9):
        monkeypatch.setattr(module, "MANY", many)
        found[many] = non_max_suppression(pred, 0.3, 0.5, **options)
    assert all(torch.equal(a, b) and len(a) > 20 for a, b in zip(*found.values(), strict=True))


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
def test_hand_made_cases(rows: list, options: dict, expected: list, kernel: str) -> None:
    pred = torch.tensor(rows).reshape(1, -1, 7)
    found = [(round(c, 4), int(k)) for c, k in non_max_suppression(pred, **options)[0][:, 4:].tolist()]
    assert found == expected


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValueError, match="conf_thres"):
        non_max_suppression(crowd(10), conf_thres=1.5)
