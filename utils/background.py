"""Work beside the main thread: reading ahead, and finishing what has been started, both in order."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def give_way() -> None:
    """Let this thread run only where others leave a core idle, where the system can do that for a single thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


@contextlib.contextmanager
def one_core_free() -> Iterator[None]:
    """Let torch calculate on all cores but one inside: its threads wait for each other if one has to share its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads - 1, 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_ahead(items: Iterable[T], count: int = 4) -> Iterator[T]:
    """The same items, up to `count` of which are made in a thread before they are asked for.

    What making them raises is raised here, in its place.
    """
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "read-ahead", give_way)
    try:
        waiting = deque(pool.submit(next, source, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, source, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


class InOrder:
    """Runs calls one after the other in a thread, of which up to `count` wait; as a context, waits for all at its end.

    What a call raises is raised by one of the next `add`, or at the end.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(1, "in-order", give_way)
        self._waiting: deque[Future] = deque()

    def add(self, call: Callable[..., object], *args: object) -> None:
        """Have `call(*args)` run; waits first if too many wait already."""
        while self._waiting and (len(self._waiting) >= self.count or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(call, *args))

    def __enter__(self) -> InOrder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            # after an error what has been found so far is still written
            self._pool.shutdown(cancel_futures=False)
