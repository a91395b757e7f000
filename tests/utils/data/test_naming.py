"""Names of output files: nobody's is taken by another, and nobody's is changed without need."""

from __future__ import annotations

import pytest

from utils.data.naming import Names, Stems, stems_of


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a_2", "a_3"]),
        (["A", "a"], ["A", "a_2"]),
        (["e\u0301", "\u00e9"], ["e\u0301", "\u00e9_2"]),  # two spellings that macOS takes for one
        (["a", "a", "a_2"], ["a", "a_2", "a_2_2"]),
        (["a_2", "a", "a"], ["a_2", "a", "a_3"]),
        (["\udcff", "\udcff"], ["\udcff", "\udcff_2"]),
    ],
)
def test_names(wanted: list[str], given: list[str]) -> None:
    names = Names()
    assert [names.take(name, k) for k, name in enumerate(wanted)] == given
    assert [names.take(name, k) for k, name in enumerate(wanted)] == given  # who asks again gets the same
    changed = sum(a != b for a, b in zip(wanted, given, strict=True))
    assert names.changes == changed and bool(names.summary()) == bool(changed)


def test_reserved_names_are_their_owners() -> None:
    names = Names()
    names.reserve(["a", "a", "A_2"])
    assert [names.take(name, k) for k, name in enumerate(["a", "a", "A_2"])] == ["a", "a_3", "A_2"]


def test_many_equal_names_take_no_longer_than_others() -> None:
    names = Names()
    assert [names.take("a", k) for k in range(100_000)][-1] == "a_100000"
    assert len(names.summary()) < 200


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        # (video, frame) or the stem of an image
        ([("clip", 1), ("clip", 2), "clip_2", "clip_3"], ["clip_1", "clip_2", "clip_2_2", "clip_3"]),
        (["clip_2", ("clip", 1), ("clip", 2)], ["clip_2", "clip_1", "clip_2_2"]),
        (["CLIP_2", ("clip", 2)], ["CLIP_2", "clip_2_2"]),
        ([("clip", 2), "clip_02", "clip"], ["clip_2", "clip_02", "clip"]),
        (["clip_2", ("clip", 2), ("clip_2", 1), ("clip_2", 2)], ["clip_2", "clip_2_2", "clip_2_1", "clip_2_2_2"]),
        ([("clip_2", 1), ("clip_2", 2), "clip_2", ("clip", 2)], ["clip_2_1", "clip_2_2", "clip_2", "clip_2_3"]),
        ([("a", 5), "a_" + "9" * 200], ["a_5", "a_" + "9" * 200]),
    ],
)
def test_stems_of_frames_and_images(asked: list, given: list[str]) -> None:
    stems = Stems()

    def take(what: str | tuple[str, int]) -> str:
        return stems.take(what, f"{what}.jpg") if isinstance(what, str) else stems.frame(*what)

    assert [take(what) for what in asked] == given
    assert [take(what) for what in asked] == given


def test_frames_of_an_endless_stream_need_no_memory() -> None:
    stems = Stems()
    assert [stems.frame("camera", n) for n in range(1, 1000)] == [f"camera_{n}" for n in range(1, 1000)]
    assert not stems._taken and not stems._given and len(stems._frames) == 1


def test_stems_of_a_split() -> None:
    paths = ["y/a.jpg", "x/a.jpg", "x/b.png", "z/A_2.jpg"]
    stems, summary = stems_of(paths)
    assert stems == {"x/a.jpg": "a", "y/a.jpg": "a_3", "x/b.png": "b", "z/A_2.jpg": "A_2"}
    assert stems == stems_of(reversed(paths))[0] and "y/a.jpg -> a_3" in summary
    assert stems_of(paths[1:]) == ({p: s for p, s in zip(paths[1:], ("a", "b", "A_2"), strict=True)}, "")
