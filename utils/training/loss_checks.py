"""Check that losses are finite, without waiting for the GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class BadLoss(NamedTuple):
    """A loss that is not finite, and the data kept of its batch."""

    value: float
    batch: tuple[Any, ...]


class LossChecks:
    """Finds losses that are not finite: at once on a CPU, one batch later on a GPU, to avoid waiting for it.

    late: whether losses are on a GPU.
    """

    def __init__(self, late: bool) -> None:
        self.late = late
        self._waiting: tuple[Tensor, torch.cuda.Event, tuple[Any, ...]] | None = None
        self._copied: tuple[Tensor, torch.cuda.Event] | None = None  # pinned memory is slow to allocate

    def add(self, loss: Tensor, batch: tuple[Any, ...]) -> BadLoss | None:
        """Check a loss, shape (1,), with data to keep of its batch; return this or the previous loss if it is bad."""
        if not self.late:
            return _bad(loss.detach(), batch)
        known = self.last()
        if self._copied is None:
            self._copied = torch.empty(1, pin_memory=True), torch.cuda.Event()
        copy, event = self._copied  # free again, as the previous loss has been read
        copy.copy_(loss.detach(), non_blocking=True)
        event.record()
        self._waiting = copy, event, batch
        return known

    def last(self) -> BadLoss | None:
        """Return the loss added last if it is bad and has not been returned yet."""
        if self._waiting is None:
            return None
        (copy, event, batch), self._waiting = self._waiting, None
        event.synchronize()
        return _bad(copy, batch)


def _bad(loss: Tensor, batch: tuple[Any, ...]) -> BadLoss | None:
    return None if torch.isfinite(loss) else BadLoss(loss.item(), batch)
