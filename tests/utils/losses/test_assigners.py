"""Which cells learn which labels."""

from __future__ import annotations

import pytest
import torch

from utils.losses import assigners
from utils.losses.assigners import ASSIGNERS, Assigned, Predicted, SimOTA, TaskAligned
from utils.settings.config import CHOICES


def grid(images: int = 1, side: int = 4, stride: float = 8.0, nc: int = 2) -> Predicted:
    """A map of side x side cells; each predicts a box of one stride around its centre, with equal scores."""
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = (torch.stack((xs, ys), -1).reshape(-1, 2) + 0.5) * stride
    boxes = torch.cat((centres - stride / 2, centres + stride / 2), 1).repeat(images, 1, 1)
    return Predicted(torch.full((images, side**2, nc), 0.5), boxes, centres, torch.full((side**2,), stride))


def pairs(found: Assigned) -> dict[tuple[int, int], int]:
    """{(image, cell): label}."""
    return {(i, c): k for i, c, k in zip(found.image.tolist(), found.cell.tolist(), found.label.tolist(), strict=True)}


def labels(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


@pytest.mark.parametrize("name", ASSIGNERS)
def test_a_label_takes_the_cell_that_predicts_it(name: str) -> None:
    found = ASSIGNERS[name]()(grid(2), labels([1, 0, 8, 8, 16, 16]))
    assert pairs(found)[1, 5] == 0
    assert found.score[found.cell == 5].item() == pytest.approx(1, abs=1e-4)
    assert set(found.image.tolist()) == {1}


def test_task_aligned_by_hand() -> None:
    """A label over cells 5 and 6, which predict it with IoU 1/2 each: the one with the higher score aligns better."""
    predicted = grid()
    predicted.scores[0, 5, 1], predicted.scores[0, 6, 1] = 0.64, 0.16
    found = TaskAligned(alpha=0.5, beta=1)(predicted, labels([0, 1, 8, 8, 24, 16]))
    order = found.cell.argsort()
    assert found.cell[order].tolist() == [5, 6]
    # the best cell's target is the highest IoU; the other one's is in proportion to sqrt(.64) : sqrt(.16)
    assert found.score[order].tolist() == pytest.approx([0.5, 0.25], abs=1e-4)


def test_topk_limits_the_cells() -> None:
    big = labels([0, 0, 0, 0, 32, 32])
    assert len(TaskAligned(topk=3)(grid(), big).cell) == 3
    assert len(TaskAligned(topk=100)(grid(), big).cell) == 16


def test_a_cell_learns_one_label_that_with_the_highest_iou() -> None:
    both = labels([0, 0, 8, 8, 16, 16], [0, 1, 7, 7, 18, 18])
    for assigner in (TaskAligned(), SimOTA()):
        found = assigner(grid(), both)
        assert len(set(found.cell.tolist())) == len(found.cell)
        assert pairs(found)[0, 5] == 0


@pytest.mark.parametrize("name", ASSIGNERS)
def test_a_label_smaller_than_a_cell_is_learnt(name: str) -> None:
    tiny = labels([0, 0, 9.0, 9.0, 10.5, 10.5])  # contains no centre of a cell
    found = ASSIGNERS[name]()(grid(), tiny)
    assert 5 in found.cell.tolist()


@pytest.mark.parametrize("name", ASSIGNERS)
@pytest.mark.parametrize("centre", [(16.0, 16.0), (16.0, 12.0), (12.0, 16.0)])
def test_a_small_label_on_the_edge_of_cells_is_learnt(name: str, centre: tuple[float, float]) -> None:
    x, y = centre
    found = ASSIGNERS[name]()(grid(), labels([0, 0, x - 2, y - 2, x + 2, y + 2]))
    assert len(found.cell) and found.score.max() > 0


@pytest.mark.parametrize("name", ASSIGNERS)
def test_no_labels(name: str) -> None:
    found = ASSIGNERS[name]()(grid(), labels())
    assert [len(t) for t in found] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ASSIGNERS)
def test_labels_are_compared_in_pieces_with_the_same_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=generator) * 20
    boxes = torch.cat((corner, corner + torch.rand(60, 2, generator=generator) * 10 + 1), 1)
    image, own = (torch.randint(0, 2, (60, 1), generator=generator) for _ in range(2))
    many = torch.cat((image, own, boxes), 1)
    predicted = grid(2)
    predicted.scores.copy_(torch.rand(predicted.scores.shape, generator=generator))
    whole = ASSIGNERS[name]()(predicted, many)
    monkeypatch.setattr(assigners, "PAIRS", 40)  # two labels at a time
    assert all(torch.equal(a, b) for a, b in zip(whole, ASSIGNERS[name]()(predicted, many), strict=True))


def test_simota_takes_as_many_cells_as_the_ious_add_up_to() -> None:
    predicted = grid()
    predicted.boxes[0] = torch.tensor([0.0, 0.0, 32.0, 32.0])  # all cells predict the label
    assert len(SimOTA()(predicted, labels([0, 0, 0, 0, 32, 32])).cell) == 10
    predicted.boxes[0] = torch.tensor([0.0, 0.0, 16.0, 16.0])  # a quarter of it
    assert len(SimOTA()(predicted, labels([0, 0, 0, 0, 32, 32])).cell) == 2


def test_a_hyp_file_can_name_all_of_them() -> None:
    assert CHOICES["assigner"] == ("", "anchor_ratio", *ASSIGNERS)
