"""What is learnt from a teacher: terms worked out by hand, and networks that come to agree with a teacher."""

from __future__ import annotations

import math

import pytest
import torch

from models.yolo import DetectionModel
from utils.boxes import box_iou, xywh2xyxy
from utils.losses.distillation import FEATURE_TERMS, ChannelWise, Masked, ResponseLoss, Taught
from utils.settings.config import CHOICES

BODY = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]]
ANCHORS = [[10, 13, 33, 23], [30, 61, 62, 45]]
HEADS = {
    "Detect": ["nc", "anchors"],
    "DecoupledDetect": ["nc", "anchors", 8],
    "AnchorFreeDetect": ["nc", 16, 8],
    "AnchorFreeDetect, plain distances": ["nc", 0, 8],
}


def network(head: str) -> DetectionModel:
    """A network of two classes with maps of strides 4 and 8."""
    torch.manual_seed(0)
    row = [[1, 2], 1, head.partition(",")[0], HEADS[head]]
    return DetectionModel({"nc": 2, "depth_multiple": 1, "width_multiple": 1, "anchors": ANCHORS, "backbone": BODY,
                           "head": [row]})  # fmt: skip


def seen(images: int = 2, known: tuple[bool, bool] = (True, True), cells: int = 64 + 16) -> Taught:
    """A teacher that sees in cell 70 of each 32 px image, the third in the second row of stride 8, one object."""
    scores, boxes = torch.zeros(images, cells, 2), torch.zeros(images, cells, 4)
    scores[:, 70] = torch.tensor([0.9, 0.05])
    boxes[:, 70] = torch.tensor([6.0, 2.0, 30.0, 22.0])
    return Taught(scores, boxes, torch.tensor(known))


@pytest.mark.parametrize("head", HEADS)
def test_a_network_comes_to_agree_with_its_teacher(head: str) -> None:
    model, images, taught = network(head).train(), torch.rand(2, 3, 32, 32), seen()
    response, optimizer = ResponseLoss(model.model[-1]), torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        cls, box = response(model(images), taught)
        optimizer.zero_grad()
        (cls + box).backward()
        optimizer.step()
    model.model[-1].training = False  # it decodes, with the batch norms as in training
    found = model(images)[0]
    scores = found[..., 4:5] * found[..., 5:]
    best = scores[0, :, 0].argmax()
    assert scores[0, best].tolist() == pytest.approx([0.9, 0.05], abs=0.1)
    assert box_iou(xywh2xyxy(found[0, best, None, :4]), taught.boxes[0, 70:71]).item() > 0.8
    assert (scores[0, :, 0] > 0.3).sum() == 1


def test_terms_by_hand() -> None:
    """One image, whose raw values are all 0: every score is 1/2, and all distances are equally likely."""
    head = network("AnchorFreeDetect").model[-1]
    raw = [torch.zeros(1, 1, n, n, 66) for n in (8, 4)]
    taught = seen(1)
    cls, box = ResponseLoss(head)(raw, taught)
    # the quality focal loss is (t - 1/2)^2 log 2; the boxes end 7.5 strides from the centre (20, 12)
    expected = sum((t - 0.5) ** 2 * math.log(2) for t in [0.9, 0.05] + [0.0] * (2 * 80 - 2))
    assert cls.item() == pytest.approx(expected, rel=1e-4)  # divided by at least 1
    iou = 24 * 20 / 120**2
    centre = (18 - 20) ** 2 + (12 - 12) ** 2
    shape = 4 / math.pi**2 * (math.atan(24 / 20) - math.atan(1)) ** 2
    ciou = iou - centre / (2 * 120**2) - shape**2 / (1 - iou + shape)
    assert box.item() == pytest.approx(0.9 * (1 - ciou), rel=1e-4)


def test_distributions_of_an_anchor_free_teacher_are_learnt_too() -> None:
    head = network("AnchorFreeDetect").model[-1]
    raw = [torch.zeros(1, 1, n, n, 66) for n in (8, 4)]
    taught = seen(1)
    plain = ResponseLoss(head)(raw, taught)[1]
    with_them = ResponseLoss(head)(raw, taught._replace(distributions=torch.zeros(1, 80, 64)))[1]
    assert (with_them - plain).item() == pytest.approx(0.9 * math.log(16), rel=1e-4)
    others = ResponseLoss(head)(raw, taught._replace(distributions=torch.zeros(1, 80, 32)))[1]
    assert others == plain  # of another size


@pytest.mark.parametrize("head", HEADS)
def test_classes_that_the_teacher_does_not_know_are_left_alone(head: str) -> None:
    model = network(head).eval()
    raw = [r.detach().requires_grad_() for r in model(torch.rand(2, 3, 32, 32))[1]]
    sum(ResponseLoss(model.model[-1])(raw, seen(known=(True, False)))).backward()
    assert all((r.grad[..., -1] == 0).all() for r in raw)
    assert any((r.grad[..., -2] != 0).any() for r in raw)
    if head in ("Detect", "DecoupledDetect"):  # elsewhere there may be objects of the other class
        where = torch.cat([(r.grad[..., 4] != 0).flatten(2) for r in raw], 2).nonzero()
        assert where[:, 2].unique().tolist() == [70]


@pytest.mark.parametrize("head", HEADS)
def test_a_teacher_that_sees_nothing(head: str) -> None:
    model = network(head)
    empty = Taught(torch.zeros(2, 80, 2), torch.zeros(2, 80, 4), torch.tensor([True, True]))
    cls, box = ResponseLoss(model.model[-1])(model(torch.rand(2, 3, 32, 32)), empty)
    assert cls > 0 and box == 0
    (cls + box).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_channel_wise_by_hand() -> None:
    """One channel, two cells: the teacher's distribution is (3/4, 1/4), the network's (1/2, 1/2)."""
    term = ChannelWise(1, 1)
    with torch.no_grad():
        term.adapter.weight.fill_(1)
    theirs = torch.tensor([math.log(3), 0.0]).reshape(1, 1, 1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert term(torch.zeros(1, 1, 1, 2), theirs).item() == pytest.approx(expected, rel=1e-4)
    assert term(theirs, theirs).item() == pytest.approx(0, abs=1e-6)


def test_the_masked_term_hides_half_of_the_cells_the_same_for_the_same_seed() -> None:
    term, maps = Masked(4, 6), (torch.rand(2, 4, 16, 16), torch.rand(2, 6, 16, 16))
    values = [term(*maps, torch.Generator().manual_seed(s)).item() for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    shown = []
    term.adapter.register_forward_hook(lambda *_: torch.ones(2, 6, 16, 16))
    term.generate.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    term(*maps, torch.Generator().manual_seed(0))
    assert 0.4 < shown[0].mean().item() < 0.6
    assert (shown[0].amax(1) == shown[0].amin(1)).all()  # all channels of a cell


@pytest.mark.parametrize("name", FEATURE_TERMS)
def test_feature_terms_are_learnt(name: str) -> None:
    torch.manual_seed(0)
    term, own, theirs = FEATURE_TERMS[name](4, 3), torch.rand(2, 4, 8, 8), torch.rand(2, 3, 8, 8)
    own[:, :3] = theirs
    optimizer, values = torch.optim.Adam(term.parameters(), 0.02), []
    for k in range(80):
        more = (torch.Generator().manual_seed(k),) if name == "masked" else ()
        loss = term(own, theirs, *more)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-10:]) < 0.7 * sum(values[:10])


def test_a_hyp_file_can_name_all_of_them() -> None:
    assert CHOICES["feature_loss"] == ("", *FEATURE_TERMS)
