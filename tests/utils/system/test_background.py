"""Reading ahead and finishing in order, in threads."""

import threading
import time
from collections.abc import Iterator

import cv2
import pytest
import torch

from utils.system.background import InOrder, calls_at_a_time, opencv_on_one_thread, read_ahead, share_of, side_by_side


def failing(good: int) -> Iterator[int]:
    yield from range(good)
    raise OSError("the disk is gone")


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 50])
@pytest.mark.parametrize("count", [1, 4])
def test_all_items_come_in_their_order(length: int, count: int) -> None:
    assert list(read_ahead(range(length), count)) == list(range(length))


def test_items_are_made_before_they_are_asked_for_but_not_all() -> None:
    made: list[int] = []
    items = read_ahead((made.append(k) or k for k in range(100)), 3)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]


@pytest.mark.parametrize("good", [0, 1, 7])
def test_an_error_comes_in_its_place(good: int) -> None:
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in read_ahead(failing(good)):
            seen.append(item)
    assert seen == list(range(good))


def test_no_thread_is_left_behind_when_the_reader_stops_early() -> None:
    before = threading.active_count()
    items = read_ahead(range(1000))
    next(items)
    items.close()
    assert threading.active_count() == before


def test_calls_run_in_order_and_all_are_done_at_the_end() -> None:
    done: list[int] = []
    with InOrder(2) as work:
        for k in range(30):
            work.add(done.append, k)
            assert k - len(done) < 5  # those that wait are few
    assert done == list(range(30))


@pytest.mark.parametrize("calls", [1, 20])
def test_an_error_of_a_call_is_raised(calls: int) -> None:
    def fail() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), InOrder(2) as work:
        work.add(fail)
        for _ in range(calls - 1):
            work.add(time.sleep, 0.001)


def test_what_was_found_before_an_error_is_still_written() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), InOrder(8) as work:
        for k in range(4):
            work.add(done.append, k)
        raise KeyboardInterrupt
    assert done == [0, 1, 2, 3]


@pytest.fixture
def threads() -> Iterator[int]:
    """Four threads for torch."""
    usual = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(usual)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("known", [False, True])
def test_results_come_in_the_order_of_the_items(length: int, count: int, known: bool) -> None:
    def call(k: int) -> int:
        time.sleep(0.002 * (k % 3 == 0))  # some take longer
        return k * k

    results = list(side_by_side(call, range(length), count, length if known else None))
    assert results == [k * k for k in range(length)]


def test_what_is_left_over_at_the_end_has_all_threads(threads: int) -> None:
    shares = list(side_by_side(lambda _: torch.get_num_threads(), range(5), 3, 5))
    assert set(shares[:3]) <= {1, 2} and shares[3:] == [threads, threads]


def test_calls_run_at_the_same_time_on_a_share_of_the_threads_each(threads: int) -> None:
    meeting = threading.Barrier(2, timeout=20)  # passed only by two at a time

    def call(k: int) -> int:
        meeting.wait()
        return torch.get_num_threads()

    assert list(side_by_side(call, range(6), 2)) == [2] * 6
    assert torch.get_num_threads() == threads
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [threads]


def test_few_items_are_taken_before_they_are_worked_on() -> None:
    taken: list[int] = []
    results = side_by_side(abs, (taken.append(k) or k for k in range(100)), 2)
    assert next(results) == 0 and len(taken) == 3
    results.close()
    assert len(taken) == 3


@pytest.mark.parametrize("count", [1, 2])
def test_errors_of_calls_and_of_items_come_in_their_place(count: int) -> None:
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        for result in side_by_side(lambda k: 6 // (3 - k), range(9), count):
            seen.append(result)
    assert seen == [2, 3, 6]
    seen.clear()
    with pytest.raises(OSError, match="the disk is gone"):
        for result in side_by_side(abs, failing(6), count):
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert not [t for t in threading.enumerate() if t.name.startswith("side-by-side")]


@pytest.mark.parametrize(("count", "shares"), [(2, {2}), (3, {1, 2}), (4, {1})])
def test_all_threads_are_shared_out(threads: int, count: int, shares: set[int]) -> None:
    meeting = threading.Barrier(count, timeout=20)

    def call(k: int) -> tuple[int, float]:
        meeting.wait()
        return torch.get_num_threads(), share_of(threads)

    met = list(side_by_side(call, range(count), count))
    assert {n for n, _ in met} == shares and sum(n for n, _ in met) == threads
    assert [share for _, share in met] == [n / threads for n, _ in met]
    assert share_of(threads) == 1


def test_long_calls_are_told_to_stop() -> None:
    stop, told = threading.Event(), []

    def interrupted() -> Iterator[int]:
        yield from (0, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(lambda _: told.append(stop.wait(20)), interrupted(), 2, stop=stop))
    assert told == [True, True]


@pytest.mark.parametrize(("kind", "expected"), [("cpu", 4), ("cuda", 1), ("mps", 1)])
def test_calls_at_a_time(threads: int, kind: str, expected: int) -> None:
    assert calls_at_a_time(torch.device(kind)) == expected
    torch.set_num_threads(64)
    assert calls_at_a_time(torch.device(kind)) == expected


def test_opencv_has_one_thread_for_as_long_as_needed() -> None:
    usual = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        with pytest.raises(KeyError), opencv_on_one_thread():
            assert cv2.getNumThreads() == 1
            raise KeyError
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(usual)
