"""Reading ahead and finishing in order, in threads."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from utils.background import InOrder, one_core_free, read_ahead


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


@pytest.mark.parametrize(("before", "inside"), [(1, 1), (2, 1), (8, 7)])
def test_one_core_is_left_free_for_as_long_as_needed(before: int, inside: int) -> None:
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        with pytest.raises(KeyError), one_core_free():
            assert torch.get_num_threads() == inside
            raise KeyError
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(usual)
