"""Parameter groups, schedule, warm-up, smoothed weights, early stopping, anchors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from models.yolo import Model
from utils.data.labels import LabelIndex
from utils.settings.config import load_hyp, load_model_cfg
from utils.training.anchors import adapt_anchors, best_possible_recall, fit_anchors, label_sizes, warn_of_unfit
from utils.training.optim import EarlyStopping, ModelEMA, create_optimizer, lr_factor, set_rates


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_groups(name: str) -> None:
    model = Model("yolov5_shufflenet.yaml")
    optimizer = create_optimizer(model, name, 0.01, 0.9, 0.0005)
    kinds = {g["kind"]: g for g in optimizer.param_groups}
    assert [g["kind"] for g in optimizer.param_groups] == ["bias", "weight", "norm"]
    assert [kinds[k]["weight_decay"] for k in ("bias", "weight", "norm")] == [0.0, 0.0005, 0.0]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert all(p.ndim == 4 for p in kinds["weight"]["params"])


@pytest.mark.parametrize(("cosine", "half"), [(False, 0.55), (True, 0.55)])
def test_schedule(cosine: bool, half: float) -> None:
    lf = lr_factor(10, 0.1, cosine)
    assert (lf(0), lf(5), lf(10)) == pytest.approx((1.0, half, 0.1))
    assert all(lf(e) > lf(e + 1) for e in range(10))


def test_warmup_raises_weights_and_lowers_biases() -> None:
    hyp = load_hyp("hyp.scratch-low")
    optimizer = create_optimizer(Model("yolov5_shufflenet.yaml"), "SGD", hyp["lr0"], hyp["momentum"], 0.0)
    seen = []
    for part in (0, 0.5, 1):
        set_rates(optimizer, part, 0.01, hyp)
        seen.append([g["lr"] for g in optimizer.param_groups[:2]] + [optimizer.param_groups[0]["momentum"]])
    expected = [[0.1, 0.0, 0.8], [0.055, 0.005, 0.8685], [0.01, 0.01, 0.937]]
    np.testing.assert_allclose(seen, expected)


def test_ema_follows_weights_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    ema = ModelEMA(model, decay=0.5, tau=1e-9)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 4
        model[1].num_batches_tracked += 7
    ema.update(model)
    torch.testing.assert_close(ema.ema[0].weight, before + 0.5)
    assert ema.ema[1].running_mean.tolist() == [2, 2] and ema.ema[1].num_batches_tracked == 7
    assert not any(p.requires_grad for p in ema.ema.parameters())


@pytest.mark.parametrize(("patience", "stops_at"), [(2, 4), (0, None), (99, None)])
def test_early_stopping(patience: int, stops_at: int | None) -> None:
    stopper = EarlyStopping(patience)
    stops = [e for e, f in enumerate([0.1, 0.2, 0.3, 0.1, 0.2, 0.1]) if stopper(e, f)]
    assert (stops[0] if stops else None) == stops_at and stopper.best_epoch == 2


def index_of(sizes: list[tuple[float, float]]) -> LabelIndex:
    values = np.array([[0, 0.5, 0.5, w, h] for w, h in sizes], np.float32)
    return LabelIndex(np.array([b"a"]), np.array([[100, 200]], np.int32), values, np.array([0, len(values)]))


def test_label_sizes_in_network_pixels() -> None:
    assert label_sizes(index_of([(0.5, 0.5)]), 320).tolist() == [[160, 80]]


def test_recall_by_hand() -> None:
    sizes = np.array([[10.0, 10], [100, 100]])
    assert best_possible_recall(sizes, np.array([[20.0, 20]]), 4.0) == (0.5, 0.5)


def test_anchors_that_fit_stay_and_others_are_replaced() -> None:
    rng = np.random.default_rng(0)
    head = Model("yolov5_shufflenet.yaml").model[-1]
    before = head.anchors.clone()
    adapt_anchors(index_of(rng.uniform(0.1, 0.4, (300, 2)).tolist()), head, 4.0, 640)
    assert torch.equal(head.anchors, before)
    tiny = index_of(np.stack((rng.uniform(0.001, 0.004, 300), rng.uniform(0.002, 0.008, 300)), 1).tolist())
    adapt_anchors(tiny, head, 4.0, 640)
    assert not torch.equal(head.anchors, before)
    anchors = (head.anchors * head.stride.reshape(-1, 1, 1)).reshape(-1, 2).numpy()
    assert best_possible_recall(label_sizes(tiny, 640), anchors, 4.0)[0] > 0.98
    assert (np.diff(anchors.prod(1)) >= 0).all()


def test_new_anchors_follow_the_order_of_the_strides() -> None:
    cfg = load_model_cfg("yolov5_shufflenet.yaml")
    cfg["head"][-1][0] = [20, 17, 14]
    head = Model(cfg).model[-1]
    rng = np.random.default_rng(0)
    adapt_anchors(index_of(rng.uniform(0.001, 0.006, (300, 2)).tolist()), head, 4.0, 640)
    areas = (head.anchors * head.stride.reshape(-1, 1, 1)).prod(-1).mean(-1)
    assert head.stride.tolist() == [32, 16, 8] and areas[0] > areas[1] > areas[2]


@pytest.mark.parametrize(
    ("sizes", "chosen", "words"),
    [
        ([(0.001, 0.001)] * 5, False, "none of the 5 labels fits .* 0.64x0.32 px, the anchors 10x13 to 373x326 px"),
        ([(0.5, 0.001), (0.002, 0.004)], False, "the labels are 1.3x1.3 to 320x0.32 px"),
        ([(0.001, 0.001)], True, "leave out --noautoanchor"),
        ([(0.001, 0.001), (0.1, 0.2)], True, ""),  # one label fits
        ([], True, ""),
    ],
)
def test_labels_that_fit_no_anchor_are_a_warning(
    sizes: list, chosen: bool, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = Model("yolov5_shufflenet.yaml").model[-1]
    index = index_of(sizes) if sizes else LabelIndex(np.array([b"a"]), np.array([[9, 9]], np.int32),
                                                     np.zeros((0, 5), np.float32), np.array([0, 0]))  # fmt: skip
    warn_of_unfit(index, head, 4.0, 640, chosen)
    assert re.search(words, caplog.text) if words else not caplog.text
    assert ("--noautoanchor" in caplog.text) == (chosen and bool(words))


def test_kmeans_with_fewer_kinds_of_labels_than_anchors() -> None:
    anchors = fit_anchors(np.array([[30.0, 30]] * 20), 9, 4.0, np.random.default_rng(0))
    assert anchors.shape == (9, 2) and (anchors > 0).all()
