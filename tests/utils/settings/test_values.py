"""Values given from code are converted to the annotated types of the flags, or named with their flag."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.settings.values import converted, converted_flags, from_code, hints_of, plain_value


class Word(str, Enum):
    A = "a"


ONE_OR_MORE = int | Sequence[int] | None


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (np.int64(3), int, 3),
        (torch.tensor(3), int, 3),
        (np.array(3), int, 3),
        (3, int, 3),
        (np.float32(0.5), float, 0.5),
        (torch.tensor(0.5), float, 0.5),
        (2, float, 2),  # stays as it was given
        (np.uint8(2), float, 2),
        (np.bool_(True), bool, True),
        (torch.tensor(False), bool, False),
        (1, bool, True),
        (0, bool, False),
        ("a", str, "a"),
        (np.str_("a"), str, "a"),
        (Path("a/b"), str, str(Path("a/b"))),
        (0, str, "0"),
        (np.int32(7), str, "7"),
        (Path("a"), str | Path, Path("a")),
        ("a", str | Path, "a"),
        ("a", bool | str, "a"),
        (True, bool | str, True),
        (Path("a"), bool | str, "a"),
        (True, bool | str | Path, True),
        (False, bool | str | Path, False),
        (Word.A, str, "a"),
        (None, ONE_OR_MORE, None),
        (np.int64(64), ONE_OR_MORE, 64),
        ((64, 96), ONE_OR_MORE, [64, 96]),
        (np.array([64, 96]), ONE_OR_MORE, [64, 96]),
        (torch.tensor([64, 96]), ONE_OR_MORE, [64, 96]),
        ([np.int64(64), 96], ONE_OR_MORE, [64, 96]),
        (range(3), list[int] | None, [0, 1, 2]),
        (2, list[int] | None, [2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        (5, tuple[int, ...], (5,)),
        ((), Sequence[int], []),
        ("onnx", Sequence[str], ["onnx"]),
        ((Path("a"), "b"), Sequence[str], ["a", "b"]),
        ([1, 2], Sequence[str], ["1", "2"]),
        (Path("a"), Sequence[str | Path] | str | Path | None, Path("a")),
        ((Path("a"), "b"), Sequence[str | Path] | str | Path | None, [Path("a"), "b"]),
        ((0.7, np.float64(0.3)), Sequence[float], [0.7, 0.3]),
        (torch.device("cpu"), str | int | torch.device | None, torch.device("cpu")),
    ],
)
def test_taken(value: object, hint: Any, expected: object) -> None:
    result = converted(value, hint, "--flag")
    assert result == expected and type(result) is type(expected)
    if isinstance(result, (list, tuple)):
        assert [type(v) for v in result] == [type(v) for v in expected]


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("3", int, "--flag is '3', it must be a whole number"),
        (3.5, int, "--flag is 3.5, it must be a whole number"),
        (True, int, "--flag is True, it must be a whole number"),
        (np.array([1, 2]), int, r"--flag is array\(\[1, 2\]\), it must be a whole number"),
        (10**30, int, "--flag 1000.* is too large"),
        ("0.5", float, "--flag is '0.5', it must be a number"),
        (float("nan"), float, "--flag nan must be a number"),
        (np.float32("nan"), float, "--flag nan must be a number"),
        (1j, float, "it must be a number"),
        ("yes", bool, "--flag is 'yes', it must be True or False"),
        (2, bool, "--flag is 2, it must be True or False"),
        (0.5, str, "--flag is 0.5, it must be a text"),
        (True, str, "--flag is True, it must be a text"),
        (b"a", str, "--flag is b'a', it must be a text"),
        (["a"], str, r"--flag is \['a'\], it must be a text"),
        (5, str | Path, "--flag is 5, it must be a text or a path"),
        ("a\0b", str, "null character"),
        ("\ud800", str, "cannot be encoded"),
        ([64, "a"], ONE_OR_MORE, r"--flag is \[64, 'a'\], it must be a whole number or a list of whole numbers"),
        ({64: 96}, ONE_OR_MORE, "it must be a whole number or a list"),
        ([[64]], ONE_OR_MORE, "it must be a whole number or a list"),
        (b"ab", Sequence[int], "it must be a list of whole numbers"),
        ({"a": "b"}, Sequence[str], "it must be a list of texts"),
        (object(), tuple[int, ...], "it must be a list of whole numbers"),
        (None, int, "it must be a whole number"),
        ({}, str | int | torch.device | None, "it must be a text or a whole number or a torch.device"),
        (np.int64, int, "it must be a whole number"),
    ],
)
def test_refused(value: object, hint: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        converted(value, hint, "--flag")
    assert "\n" not in str(e.value) and len(str(e.value)) < 200


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError

    def __iter__(self) -> None:
        raise RuntimeError


def test_an_object_that_cannot_be_printed() -> None:
    with pytest.raises(UserError, match="--flag is of type Unprintable, it must be a text"):
        converted(Unprintable(), str, "--flag")
    with pytest.raises(UserError, match="--flag is of type Unprintable, it must be a list of numbers"):
        converted(Unprintable(), Sequence[float], "--flag")


@pytest.mark.parametrize(
    ("device", "expected"),
    [(0, "0"), ("cpu", "cpu"), (torch.device("cpu"), "cpu"), (torch.device("cuda", 1), "cuda:1"), ([0, 1], "0,1"),
     ((np.int64(2),), "2"), (np.int64(0), "0")],
)  # fmt: skip
def test_devices(device: object, expected: str) -> None:
    assert converted_flags({"device": device}, {"device": str}, "x.run") == {"device": expected}


@from_code("tool.run")
def run(weights: str | Path, image_size: int = 640, names: Sequence[str] = ("a",), out: str | None = None) -> tuple:
    """Return the arguments."""
    return weights, image_size, names, out


def test_a_function_whose_parameters_are_flags() -> None:
    assert run("a.pt", np.int64(320)) == ("a.pt", 320, ("a",), None)
    assert run(weights=Path("a.pt"), image_size=None, names=None, out=Path("b")) == (Path("a.pt"), 640, ("a",), "b")
    assert run.__doc__ == "Return the arguments." and list(hints_of(run)) == ["weights", "image_size", "names", "out"]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "tool.run: missing a required argument: 'weights'"),
        ((), {"weights": None}, "tool.run: missing a required argument: 'weights'"),
        (("a", 1, "b", "c", "d"), {}, "tool.run: too many positional arguments"),
        (("a",), {"weights": "b"}, "tool.run: multiple values for argument 'weights'"),
        (("a",), {"image_sise": 3}, r"tool.run: unknown key 'image_sise' \(did you mean 'image_size'\?\)"),
        (("a", "big"), {}, "--image-size is 'big', it must be a whole number"),
    ],
)
def test_wrong_calls(args: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(*args, **kwargs)


def test_plain_values() -> None:
    for value, expected in ((np.float32(0.5), 0.5), ((np.int64(1), 2), (1, 2)), (np.array([1, 2]), [1, 2]), ("a", "a")):
        assert plain_value(value) == expected and type(plain_value(value)) is type(expected)
