"""Losses that are no numbers."""

import pytest
import torch

from utils.training import loss_checks
from utils.training.loss_checks import LossChecks


class Event:
    """Stands for a CUDA event: counts how often the GPU would have been waited for."""

    waited = 0

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        Event.waited += 1


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LossChecks:
    """Checks as on a GPU, with memory of the CPU."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    empty = torch.empty
    monkeypatch.setattr(loss_checks.torch, "empty", lambda *size, pin_memory: empty(*size))
    return LossChecks(late=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_loss_is_told_at_once_on_a_cpu(value: float) -> None:
    checks = LossChecks(late=False)
    assert checks.add(torch.tensor([1.0]), (0, "a")) is None
    bad = checks.add(torch.tensor([value], requires_grad=True), (1, "b"))
    assert bad is not None and bad.batch == (1, "b") and str(bad.value) == str(value)
    assert checks.last() is None


def test_a_bad_loss_is_told_one_batch_later_with_its_own_batch(late: LossChecks) -> None:
    nan = torch.tensor([float("nan")])
    assert late.add(torch.tensor([1.0]), (0,)) is None
    assert late.add(nan, (1,)) is None
    nan.fill_(0.0)  # the value is that of its own time
    bad = late.add(torch.tensor([1.0]), (2,))
    assert bad is not None and bad.batch == (1,)
    assert late.last() is None


def test_the_last_one_of_an_epoch_is_not_forgotten(late: LossChecks) -> None:
    assert late.add(torch.tensor([float("inf")]), (9,)) is None
    bad = late.last()
    assert bad is not None and bad.batch == (9,) and late.last() is None


def test_pinned_memory_is_allocated_once(late: LossChecks) -> None:
    sizes, empty = [], loss_checks.torch.empty
    loss_checks.torch.empty = lambda *size, **kinds: sizes.append(size) or empty(*size, **kinds)
    try:
        for value in (1.0, float("nan"), 2.0):
            late.add(torch.tensor([value]), ())
    finally:
        loss_checks.torch.empty = empty
    assert sizes == [(1,)]
