"""The loss against the reference numbers, and its edges."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import golden

from models.yolo import DetectionModel
from utils.errors import UserError
from utils.losses import compute_loss
from utils.losses.box_terms import BOX_TERMS
from utils.losses.class_terms import CLASS_TERMS
from utils.losses.compute_loss import ComputeLoss, focal_weights, moved
from utils.settings.config import load_hyp


def loss_of(anchors: np.ndarray, nc: int, hyp: dict) -> ComputeLoss:
    head = SimpleNamespace(nc=nc, na=anchors.shape[1], nl=len(anchors), anchors=torch.tensor(anchors))
    return ComputeLoss(SimpleNamespace(model=[head], hyp=hyp))


@pytest.mark.parametrize("name", ["loss_scratch_low", "loss_voc"])
def test_reference_loss_and_gradients(name: str) -> None:
    z = golden(f"{name}.npz")
    preds = [torch.tensor(z[f"pred{i}"], requires_grad=True) for i in range(3)]
    loss, items = loss_of(z["anchors"], int(z["nc"]), json.loads(str(z["hyp"])))(preds, torch.tensor(z["targets"]))
    loss.backward()
    np.testing.assert_allclose(loss.detach(), z["loss"], rtol=1e-5)
    np.testing.assert_allclose(items, z["items"], rtol=1e-5)
    for i, pred in enumerate(preds):
        np.testing.assert_allclose(pred.grad, z[f"grad{i}"], atol=1e-7, rtol=1e-4)


def test_shares_of_a_batch_add_up_to_the_loss_of_the_whole() -> None:
    """Two images each their own process: the counts are summed, as an exchange between them would."""
    z = golden("loss_voc.npz")
    hyp, nc = json.loads(str(z["hyp"])), int(z["nc"])
    whole = [torch.tensor(z[f"pred{i}"], requires_grad=True) for i in range(3)]
    targets = torch.tensor(z["targets"])
    images = len(whole[0])
    loss, items = loss_of(z["anchors"], nc, hyp)(whole, targets)
    loss.backward()
    alone = loss_of(z["anchors"], nc, hyp)
    counts = []
    for k in range(images):
        own = targets[targets[:, 0] == k].clone()
        own[:, 0] = 0
        counts.append(torch.tensor([1, *(len(x[0]) for x in alone.build_targets([p[k : k + 1] for p in whole], own))]))
    shared = loss_of(z["anchors"], nc, hyp)
    shared.total = lambda _: torch.stack(counts).sum(0)
    parts, losses, grads = torch.zeros(3), torch.zeros(1), []
    for k in range(images):
        own = targets[targets[:, 0] == k].clone()
        own[:, 0] = 0
        preds = [torch.tensor(z[f"pred{i}"][k : k + 1], requires_grad=True) for i in range(3)]
        one, part = shared(preds, own)
        one.backward()
        parts, losses = parts + part, losses + one.detach()
        grads.append([p.grad for p in preds])
    np.testing.assert_allclose(losses, loss.detach(), rtol=1e-5)
    np.testing.assert_allclose(parts, items, rtol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(torch.cat([g[i] for g in grads]), whole[i].grad, atol=1e-6, rtol=1e-4)


ANCHORS = np.array([[[2.0, 2.0], [4, 4], [8, 8]]] * 3, np.float32)


def maps(nc: int = 2) -> list[torch.Tensor]:
    return [torch.zeros(1, 3, s, s, 5 + nc, requires_grad=True) for s in (8, 4, 2)]


def test_no_labels_costs_objectness_only() -> None:
    loss, (box, obj, cls) = loss_of(ANCHORS, 2, load_hyp("hyp.scratch-low"))(maps(), torch.zeros(0, 6))
    assert box == 0 and cls == 0 and obj > 0 and torch.isfinite(loss).all()


@pytest.mark.parametrize("xy", [(0.0, 0.0), (1.0, 1.0), (0.999999, 0.5), (0.5, 0.0)])
def test_labels_at_the_border_stay_in_the_map(xy: tuple[float, float]) -> None:
    preds = maps()
    loss, _ = loss_of(ANCHORS, 2, load_hyp("hyp.scratch-low"))(preds, torch.tensor([[0, 1, *xy, 0.3, 0.3]]))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in preds)


def test_a_centre_on_the_far_border_is_the_far_edge_of_the_last_cell() -> None:
    targets = torch.tensor([[0, 1, 1.0, 1.0, 0.3, 0.3]])
    for image, _, y, x, box, *_ in loss_of(ANCHORS, 2, load_hyp("hyp.scratch-low")).build_targets(maps(), targets):
        last = (y == y.max()) & (x == x.max())
        assert len(image) == 0 or (box[last, :2] == 1.0).all()


@pytest.mark.parametrize("count", [0, 1, 9])
def test_targets_copied_together_are_the_same(count: int) -> None:
    """As on a GPU: two copies in place of seven for each map."""
    rng = np.random.default_rng(count)
    numbers = [rng.integers(2, size=(count, 2)), rng.uniform(0.1, 0.9, (count, 4))]
    targets = torch.from_numpy(np.concatenate(numbers, 1).astype(np.float32))
    levels = loss_of(ANCHORS, 2, load_hyp("hyp.scratch-low")).build_targets(maps(), targets)
    copies = []
    for level, same in zip(levels, moved(levels, lambda t: copies.append(t) or t.clone()), strict=True):
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(level, same, strict=True))
    assert len(copies) == 2


def test_bfloat16_maps_are_scored_in_float32() -> None:
    targets = torch.tensor([[0, 1, 0.4, 0.4, 0.3, 0.3]])
    compute = loss_of(ANCHORS, 2, load_hyp("hyp.scratch-low"))
    low, _ = compute([m.bfloat16() for m in maps()], targets)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, compute(maps(), targets)[0])


def test_a_better_box_costs_less() -> None:
    compute = loss_of(ANCHORS, 2, load_hyp("hyp.scratch-low"))
    targets = torch.tensor([[0, 1, 0.5625, 0.5625, 0.25, 0.25]])
    good, bad = maps(), maps()
    with torch.no_grad():
        for m in bad:
            m[..., 2:4] = 3.0  # nearly four times the anchor
    assert compute(good, targets)[1][0] < compute(bad, targets)[1][0]


def test_focal_weights_fade_easy_examples() -> None:
    w = focal_weights(torch.tensor([5.0, 0.0]), torch.ones(2), gamma=1.5)
    assert w[0] < 0.01 * w[1]


@pytest.mark.parametrize("terms", [{"box_loss": name} for name in BOX_TERMS] + [{"class_loss": n} for n in CLASS_TERMS])
def test_every_box_and_class_term_can_be_used(terms: dict[str, str]) -> None:
    hyp = load_hyp("hyp.scratch-low")
    preds = [p.detach().clone().requires_grad_() for p in maps()]
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.3], [0, 0, 0.2, 0.3, 0.1, 0.2]])
    usual = loss_of(ANCHORS, 2, hyp)(preds, targets)[0]
    loss, _ = loss_of(ANCHORS, 2, {**hyp, **terms})(preds, targets)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in preds)
    assert torch.equal(loss, usual) == (next(iter(terms.values())) in ("ciou", "bce"))


@pytest.mark.parametrize(
    ("cfg", "assigner", "message"),
    [("yolov5n.yaml", "task_aligned", "task_aligned cannot be used with the head Detect, which takes anchor_ratio"),
     ("yolov5_shufflenet_free.yaml", "anchor_ratio", "AnchorFreeDetect, which takes task_aligned or simota"),
     ("yolov5n.yaml", "anchor_ratio", ""), ("yolov5_shufflenet_free.yaml", "simota", "")],
)  # fmt: skip
def test_an_assigner_that_does_not_fit_the_head_is_told(cfg: str, assigner: str, message: str) -> None:
    model = DetectionModel(cfg, nc=2)
    model.hyp = {**load_hyp("hyp.free"), "assigner": assigner}
    with pytest.raises(UserError, match=message) if message else nullcontext():
        compute_loss.loss_of(model)
