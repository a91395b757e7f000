"""Work beside the main thread: several calls at a time, reading ahead, finishing what has been started; in order."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from utils.system.opencv import cv2

T, R = TypeVar("T"), TypeVar("R")
MOST_AT_A_TIME = 4


def side_by_side(
    call: Callable[[T], R], items: Iterable[T], count: int, total: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[R]:  # fmt: skip
    """What `call` makes of each item, in their order; `count` calls run at a time, on a share of torch's threads each.

    On a CPU that is faster than one call on all threads, which wait for each other at the end of each small operation.
    Items are asked for in this thread, one more than are worked on. What a call raises, or making an item, is raised
    here, in its place.
    total: how many items there are, if that is known: those left over at the end then have all threads one by one.
    stop: is set when no more results are wanted; long calls should look at it, as they are waited for.
    """
    if count < 2:
        yield from map(call, items)
        return
    threads, waiting = torch.get_num_threads(), deque()
    shares = [threads // count + (k < threads % count) for k in range(count)]

    def begin() -> None:
        torch.get_num_threads()  # a thread's first call takes over the number set last, in whatever thread
        torch.set_num_threads(max(shares.pop(), 1))

    pool = ThreadPoolExecutor(count, "side-by-side", begin)
    try:
        for number, item in enumerate(_until_error(items, waiting)):
            if total is not None and number >= total - total % count:
                while waiting:
                    yield waiting.popleft().result()
                yield call(item)
                continue
            waiting.append(pool.submit(call, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if stop:
            stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that start later take the number set last, in whatever thread


def _until_error(items: Iterable[T], waiting: deque[Future]) -> Iterator[T]:
    """The items; if making one raises, that is put behind what is waited for."""
    try:
        yield from items
    except Exception as e:
        failed: Future = Future()
        failed.set_exception(e)
        waiting.append(failed)


def share_of(threads: int) -> float:
    """Which part of so many threads this thread's calls of torch have: 1, or less in calls that run side by side."""
    return min(torch.get_num_threads() / threads, 1)


def calls_at_a_time(device: torch.device) -> int:
    """How many calls of a network to run side by side; each takes memory of its own, so they are few."""
    return min(torch.get_num_threads(), MOST_AT_A_TIME) if device.type == "cpu" else 1


@contextlib.contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own inside, where all cores have something to do already."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def read_ahead(items: Iterable[T], count: int = 4) -> Iterator[T]:
    """The same items, up to `count` of which are made in a thread before they are asked for.

    What making them raises is raised here, in its place.
    """
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "read-ahead")
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
        self._pool = ThreadPoolExecutor(1, "in-order")
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
