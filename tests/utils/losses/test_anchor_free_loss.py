"""Loss of anchor-free heads."""

from __future__ import annotations

import math

import pytest
import torch

from models.yolo import DetectionModel
from utils.losses.anchor_free_loss import AnchorFreeLoss, distribution_loss
from utils.losses.assigners import ASSIGNERS
from utils.losses.box_terms import BOX_TERMS
from utils.losses.class_terms import CLASS_TERMS
from utils.losses.compute_loss import ComputeLoss, loss_of, scaled_gains
from utils.settings.config import load_hyp

HYP = {"box": 7.5, "dfl": 1.5, "cls": 0.5}


def small_model(reg_max: int = 4, **hyp: object) -> DetectionModel:
    torch.manual_seed(0)
    model = DetectionModel({
        "nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 8]], [-1, 1, "Conv", [16, 3, 2]]],
        "head": [[[0, 1], 1, "AnchorFreeDetect", ["nc", reg_max, 8]]]})  # fmt: skip
    model.hyp = {**HYP, **hyp}
    return model


def batch(images: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = [[k, k % 2, 0.3 + 0.1 * k, 0.5, 0.3, 0.4] for k in range(images) for _ in range(1 + k % 2)]
    return torch.rand(images, 3, 64, 64, generator=generator), torch.tensor(labels)


@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("reg_max", [0, 4])
def test_it_learns_a_batch_by_heart(assigner: str, reg_max: int) -> None:
    model = small_model(reg_max, assigner=assigner).train()
    images, targets = batch()
    loss_of_batch, optimizer = AnchorFreeLoss(model), torch.optim.AdamW(model.parameters(), 0.01)
    first = loss_of_batch(model(images), targets)[1]
    for _ in range(150):
        loss, parts = loss_of_batch(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert parts[0] < 0.3 * first[0] and parts.sum() < 0.5 * first.sum()
    found = model.eval()(images)[0]
    for image, own, *xywh in targets.tolist():
        best = found[int(image), found[int(image), :, 5 + int(own)].argmax()]
        assert (best[:4] - 64 * torch.tensor(xywh)).abs().max() < 4


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_small_objects_are_learnt_although_boxes_begin_large(assigner: str) -> None:
    """At the start, boxes are 15 strides wide and scores tiny, so the alignment of 12 px labels is below 1e-12."""
    model = small_model(16, assigner=assigner).train()
    images = torch.full((2, 3, 64, 64), 0.1)
    places = [[0, 0.4, 0.3], [0, 0.7, 0.6], [1, 0.25, 0.5]]
    for image, x, y in places:
        left, top = int(64 * x) - 6, int(64 * y) - 6
        images[image, :, top : top + 12, left : left + 12] = 0.9
    targets = torch.tensor([[image, 0, x, y, 12 / 64, 12 / 64] for image, x, y in places])
    loss_of_batch, optimizer = AnchorFreeLoss(model), torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(150):
        loss, parts = loss_of_batch(model(images), targets)
        assert parts[0] > 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.eval()(images)[0][..., 5].max() > 0.5


def test_fl_gamma_means_the_focal_loss_as_with_anchors() -> None:
    model, (images, targets) = small_model().eval(), batch()
    raw = model(images)[1]
    losses = []
    for hyp in ({}, {"fl_gamma": 1.5}, {"class_loss": "focal", "fl_gamma": 1.5}):
        model.hyp = {**HYP, **hyp}
        losses.append(AnchorFreeLoss(model)(raw, targets)[0].item())
    assert losses[1] == losses[2] != losses[0]


@pytest.mark.parametrize("terms", [{"box_loss": name} for name in BOX_TERMS] + [{"class_loss": n} for n in CLASS_TERMS])
def test_every_term_has_finite_gradients(terms: dict[str, str]) -> None:
    model = small_model(**terms)
    images, targets = batch()
    loss, parts = AnchorFreeLoss(model)(model(images), targets)
    loss.backward()
    assert loss.item() == pytest.approx(parts.sum().item() * 4, rel=1e-5)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_without_labels_only_class_scores_are_learnt() -> None:
    model = small_model()
    loss, parts = AnchorFreeLoss(model)(model(batch()[0]), torch.zeros(0, 6))
    assert parts[0] == parts[1] == 0 and parts[2] > 0 and loss.isfinite()


def test_parts_of_a_batch_add_up_with_the_means_of_each_part() -> None:
    model, (images, targets) = small_model().eval(), batch()
    compute = AnchorFreeLoss(model)
    raw = model(images)[1]
    whole, parts = compute(raw, targets)
    assert torch.equal(compute.of_part(raw, targets, 0, 4)[0], whole)
    halves = [compute.of_part([r[k : k + 2] for r in raw], targets, k, 4) for k in (0, 2)]
    own = [compute([r[k : k + 2] for r in raw], targets[(targets[:, 0] // 2 == k // 2)] - torch.eye(6)[0] * k)
           for k in (0, 2)]  # fmt: skip
    for half, alone in zip(halves, own, strict=True):
        assert half[0].item() == pytest.approx(alone[0].item(), rel=1e-5)  # a mean over 2 images times 4, halved
        assert torch.allclose(half[1] * 2, alone[1])


def test_several_processes_learn_what_one_does() -> None:
    """The sum of the target scores is taken over all processes, so that their losses add up."""
    model, (images, targets) = small_model().eval(), batch()
    raw, counts = model(images)[1], []
    shares = [([r[k : k + 2] for r in raw], targets[targets[:, 0] // 2 == k // 2] - torch.eye(6)[0] * k)
              for k in (0, 2)]  # fmt: skip
    for preds, own in shares:
        AnchorFreeLoss(model, lambda t: counts.append(t) or t)(preds, own)
    losses = [AnchorFreeLoss(model, lambda t: sum(counts))(preds, own)[0] for preds, own in shares]
    whole = AnchorFreeLoss(model)(raw, targets)[0]
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-5)


def test_distribution_loss_by_hand() -> None:
    """Equal logits give each of 4 values a probability of 1/4; a distance of 1.25 is 3/4 of 1 and 1/4 of 2."""
    flat = distribution_loss(torch.zeros(1, 4, 4).log_softmax(2), torch.full((1, 4), 1.25))
    assert flat.item() == pytest.approx(math.log(4), rel=1e-5)
    logits = torch.zeros(1, 4, 4)
    logits[0, :, 1] = math.log(3)  # value 1 has probability 1/2, the others 1/6
    expected = 0.75 * math.log(2) + 0.25 * math.log(6)
    sure = logits.log_softmax(2)
    assert distribution_loss(sure, torch.full((1, 4), 1.25)).item() == pytest.approx(expected, rel=1e-5)
    assert distribution_loss(sure, torch.full((1, 4), 99.0)).isfinite().all()  # beyond the last value


def test_the_head_decides_which_loss_it_is() -> None:
    free, usual = small_model(), DetectionModel("yolov5n.yaml", nc=2)
    usual.hyp = scaled_gains(load_hyp("hyp.scratch-low"), usual.model[-1], 320)
    assert isinstance(loss_of(free), AnchorFreeLoss) and isinstance(loss_of(usual), ComputeLoss)
    assert scaled_gains(HYP, free.model[-1], 320) == HYP  # they need no scaling
