"""Fuzzing with hypothesis: valid files with changed, cut, repeated or replaced bytes must not crash a reader."""

from __future__ import annotations

import functools
import random

import pytest
from fuzz.feeds import FEEDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# number of files for each feed: 20,000 in total
CASES = {"labels": 5200, "xml": 5000, "model_yaml": 700, "small_model": 100, "data_yaml": 1700, "checkpoint": 1500,
         "pickle": 2500, "image": 2500, "voc_names": 400, "image_header": 400,
         "engine_record": 150}  # fmt: skip
WORDS = ["nan", "-1", "1e999", "0", "9" * 20, "0x7f", "[]", "{}", "*a", "&a ", "!!python/name:os.system ", "null", "\0",
         "-0.0", "1e-300", "<!ENTITY a 'b'>", "&a;", "</object>", "os.system", "\u202e", "'", '"', ": ", "\n- ",
         "<<: "]  # fmt: skip


@functools.cache
def seeds(name: str) -> list[bytes]:
    return FEEDS[name][1]()


def damaged(good: bytes, changes: int, seed: int) -> bytes:
    """Damage a valid file at random: change a byte, cut or repeat a piece, replace a word by a hostile one.

    All random choices come from one seed; if hypothesis drew each of them, that would take most of the test's time.
    """
    rng, data = random.Random(seed), bytearray(good)
    for _ in range(changes):
        at, size = rng.randrange(len(data) + 1), rng.randint(1, 40)
        kind = rng.choice(["flip", "cut", "drop", "twice", "word", "insert"])
        if kind == "flip" and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + size]
        elif kind == "twice":
            data[at:at] = data[at : at + size]
        elif kind == "word":
            end = at
            while end < len(data) and end < at + 30 and chr(data[end]).isalnum():
                end += 1
            data[at:end] = rng.choice(WORDS).encode()
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pickletools")
@pytest.mark.parametrize("name", FEEDS)
def test_hostile_files(name: str) -> None:
    feed, given_files = FEEDS[name][0], 0

    @settings(max_examples=CASES[name], deadline=20_000, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.one_of(st.builds(damaged, st.sampled_from(seeds(name)), st.integers(0, 6), st.integers(0, 2**32)),
                     st.binary(max_size=100)))  # fmt: skip
    def run(data: bytes) -> None:
        nonlocal given_files
        given_files += 1
        feed(data)

    run()
    assert given_files >= CASES[name]


@pytest.mark.parametrize("name", FEEDS)
def test_good_files_are_accepted(name: str) -> None:
    """A reader that rejected every file would pass all the tests above."""
    for data in seeds(name):
        FEEDS[name][0](data)


def test_at_least_twenty_thousand() -> None:
    assert sum(CASES.values()) >= 20_000 and CASES.keys() == FEEDS.keys()
