"""Background threads: parallel calls, prefetching and queued writes, all of which keep their order."""

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
    """Yield `call(item)` for each item, in order; `count` calls run in parallel, each on a share of torch's threads.

    On a CPU this is faster than one call on all threads, which wait for each other at the end of each small operation.
    Items are taken from `items` in the calling thread, at most one more than are being processed. An exception raised
    by `call` or by `items` is raised here, in place of the result.
    total: number of items, if known; the last `total % count` items are then processed one by one on all threads.
    stop: set when no more results are wanted; long calls should check it, because running calls are waited for.
    """
    if count < 2:
        yield from map(call, items)
        return
    threads, waiting = torch.get_num_threads(), deque()
    shares = [threads // count + (k < threads % count) for k in range(count)]

    def begin() -> None:
        torch.get_num_threads()  # the first call in a new thread adopts the number set last by any thread
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
        torch.set_num_threads(threads)  # threads started later adopt the number set last by any thread


def _until_error(items: Iterable[T], waiting: deque[Future]) -> Iterator[T]:
    """Yield the items; an exception raised by `items` is appended to `waiting` as a failed future."""
    try:
        yield from items
    except Exception as e:
        failed: Future = Future()
        failed.set_exception(e)
        waiting.append(failed)


def share_of(threads: int) -> float:
    """Return this thread's share of `threads` torch threads: 1, or less inside a call run by `side_by_side`."""
    return min(torch.get_num_threads() / threads, 1)


def calls_at_a_time(device: torch.device) -> int:
    """Return how many forward passes to run in parallel; there are few, because each needs its own memory."""
    return min(torch.get_num_threads(), MOST_AT_A_TIME) if device.type == "cpu" else 1


@contextlib.contextmanager
def one_torch_thread(wanted: bool = True) -> Iterator[None]:
    """Limit torch's operations to one thread inside the context, if `wanted`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Limit OpenCV to one thread inside the context, for code that already keeps all cores busy."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def read_ahead(items: Iterable[T], count: int = 4) -> Iterator[T]:
    """Yield the same items, up to `count` of which are prefetched in a background thread.

    An exception raised by `items` is raised here, in place of the item.
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
    """Runs queued calls in order in one background thread; on leaving the context, waits for all of them.

    count: length of the queue. An exception raised by a call is raised again by a later `add`, or on leaving the
    context.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(1, "in-order")
        self._waiting: deque[Future] = deque()

    def add(self, call: Callable[..., object], *args: object) -> None:
        """Queue `call(*args)`; blocks while the queue is full."""
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
            # after an error the queued calls still run, so that the results so far are written
            self._pool.shutdown(cancel_futures=False)
