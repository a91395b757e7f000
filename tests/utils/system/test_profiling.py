"""Timing in turns: who is called how often and when, by a clock that the test turns."""

from __future__ import annotations

import numpy as np
import pytest

from utils.system import profiling
from utils.system.profiling import time_in_turns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [0.0]
    monkeypatch.setattr(profiling, "seconds", lambda: now[0])
    return now


def work(clock: list[float], name: str, cost: float, called: list[str]):
    def call() -> None:
        called.append(name)
        clock[0] += cost

    return call


def test_each_call_is_timed_by_itself_after_a_warm_up(clock: list[float]) -> None:
    called: list[str] = []
    times = time_in_turns([work(clock, "a", 1.0, called), work(clock, "b", 3.0, called)], rounds=6, budget=1000)
    assert times.shape == (6, 2) and (times == [1.0, 3.0]).all()
    assert len(called) == 2 * (6 + 2)


def test_the_models_take_turns_in_changing_order(clock: list[float]) -> None:
    called: list[str] = []
    time_in_turns([work(clock, name, 0.1, called) for name in "abc"], rounds=30, budget=1000)
    rounds = ["".join(called[k : k + 3]) for k in range(0, len(called), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) == 6  # nobody always comes after the same one


@pytest.mark.parametrize(("cost", "budget", "expected"), [(1.0, 20.0, 21), (100.0, 20.0, 5), (0.0, 20.0, 50)])
def test_the_budget_ends_it_but_not_before_the_least_rounds(
    clock: list[float], cost: float, budget: float, expected: int
) -> None:
    times = time_in_turns([work(clock, "a", cost, [])], rounds=50, budget=budget, least=5)
    assert len(times) == expected and np.isfinite(times).all()


def test_after_a_rest_only_the_second_call_counts(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, slow as nothing is in the caches any more, is not timed; nor is the rest."""
    rests, last = [], []
    monkeypatch.setattr(profiling.time, "sleep", lambda s: (rests.append(s), last.clear()))

    def call() -> None:
        clock[0] += 0.5 if last else 7.0
        last.append(1)

    times = time_in_turns([call, call], rounds=3, budget=1000, before=1, rest=0.03)
    assert (times == 0.5).all() and times.shape == (3, 2)
    assert rests == [0.03] * 8
