"""Whether losses are numbers, asked without waiting for a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class BadLoss(NamedTuple):
    """A loss that is no finite number, and what was kept of its batch."""

    value: float
    batch: tuple[Any, ...]


class LossChecks:
    """Tells of a loss that is no finite number: at once, or one batch late on a GPU, to spare a wait.

    late: whether losses come from a GPU.
    """

    def __init__(self, late: bool) -> None:
        self.late = late
        self._waiting: tuple[Tensor, torch.cuda.Event, tuple[Any, ...]] | None = None

    def add(self, loss: Tensor, batch: tuple[Any, ...]) -> BadLoss | None:
        """Take a loss, shape (1,), and what to keep of its batch; returns the bad one that is known by now."""
        if not self.late:
            return _bad(loss.detach(), batch)
        known = self.last()
        copy, event = torch.empty(1, pin_memory=True), torch.cuda.Event()
        copy.copy_(loss.detach(), non_blocking=True)
        event.record()
        self._waiting = copy, event, batch
        return known

    def last(self) -> BadLoss | None:
        """The loss taken last, if it is bad and has not been told of."""
        if self._waiting is None:
            return None
        (copy, event, batch), self._waiting = self._waiting, None
        event.synchronize()
        return _bad(copy, batch)


def _bad(loss: Tensor, batch: tuple[Any, ...]) -> BadLoss | None:
    return None if torch.isfinite(loss) else BadLoss(loss.item(), batch)
