"""Values given from code: Path, NumPy and torch scalars, tuples and lists, converted to the types of the flags.

Scripts and notebooks call `run(**flags)` with values of many types. `converted` turns a value into the annotated type
of its flag, and raises UserError naming the flag if that is impossible. NumPy and torch are not imported here, so that
`--help` stays fast; their values are recognised by their methods.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from utils.errors import UserError, shorten
from utils.settings.config import check_keys

R = TypeVar("R")
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}
SEVERAL = {int: "whole numbers", float: "numbers", str: "texts", bool: "True or False", Path: "paths"}
LARGEST = 2**63 - 1  # of a whole number; libraries cannot take larger ones
_MISSING = object()


def converted(value: Any, hint: Any, flag: str) -> Any:
    """Return `value` as the annotated type `hint`. Raises UserError naming `flag`, such as --imgsz, if it does not fit.

    hint: int, float, bool, str, Path, a Sequence, list or tuple of one of them, None, another class, or a union of
    these. A bool may also be 0 or 1, a text a whole number or a Path, and a sequence a single value. NaN is refused.
    """
    kinds, plain = _members(hint), _plain(value)
    if plain is None and NoneType in kinds:
        return None
    result = _as_one_of(plain, value, kinds)
    if result is not _MISSING:
        return _checked(result, flag)
    raise UserError(f"{flag} is {_shown(value)}, it must be {_described(kinds)}")


def converted_flags(flags: Mapping[str, Any], hints: Mapping[str, Any], where: str, label: str = "") -> dict[str, Any]:
    """Return the flags that were given, each converted to its annotated type. None means not given.

    None is kept where the annotation allows it. where: the name of the called function, for messages. label: how
    messages name a flag, with {} for its name (default: as on the command line). Raises UserError for a flag that is
    not in `hints`.
    """
    check_keys(flags, hints, where)
    taken = {}
    for name, value in flags.items():
        if value is None and NoneType not in _members(hints[name]):
            continue
        if name == "device":
            value = _device(value, hints[name])
        taken[name] = converted(value, hints[name], label.format(name) if label else f"--{name.replace('_', '-')}")
    return taken


def hints_of(what: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotated types of a dataclass's fields or of a function's parameters, by name."""
    return {name: hint for name, hint in get_type_hints(what).items() if name != "return"}


def arguments_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], where: str, label: str = ""
) -> dict[str, Any]:
    """Return the arguments of a call of `function` by name, converted; see `converted_flags` for the errors."""
    hints, signature = hints_of(function), inspect.signature(function)
    check_keys(kwargs, hints, where)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
        taken = converted_flags(given, hints, where, label)
        signature.bind(**taken)  # raises TypeError if a required argument is missing
    except TypeError as e:
        raise UserError(f"{where}: {e}") from None
    return taken


def from_code(where: str, label: str = "") -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorator for a public function whose parameters are the flags: it converts the arguments of each call.

    where: the function's name in messages, such as detect.run. label: as for `converted_flags`.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            return function(**arguments_of(function, args, kwargs, where, label))

        return call

    return decorate


def _members(hint: Any) -> list[Any]:
    """Return the members of a union of types, or a single type as a list."""
    return list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]


def plain_value(value: Any) -> Any:
    """Return a value of NumPy or torch, or a list or tuple of such scalars, as Python's own numbers and lists."""
    plain = _plain(value)
    return type(plain)(map(_plain, plain)) if type(plain) in (list, tuple) else plain


def _plain(value: Any) -> Any:
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not hasattr(value, "tolist"):
        return str.__str__(value) if isinstance(value, str) else value  # of a subclass, such as numpy.str_
    try:
        return value.tolist()
    except Exception:  # a class rather than an object, or a tensor without values
        return value


def _as_one_of(plain: Any, value: Any, kinds: Iterable[Any]) -> Any:
    """Return `plain` as the first of `kinds` that fits, its own type before the others, or _MISSING."""
    own = sorted(kinds, key=lambda kind: not (kind is type(plain) or kind is Path and isinstance(plain, Path)))
    if Path in own and isinstance(plain, Integral):
        own = [kind for kind in own if kind is not str]  # a number may name a device or a webcam, but not a path
    results = (_as(plain, value, kind) for kind in own)
    return next((result for result in results if result is not _MISSING), _MISSING)


def _as(plain: Any, value: Any, kind: Any) -> Any:
    """Return `plain` as `kind`, or _MISSING if it is not of that kind. value: as it was given."""
    if get_origin(kind) in (Sequence, list, tuple):
        return _as_sequence(plain, kind)
    if kind is bool:
        return bool(plain) if isinstance(plain, Integral) and plain in (0, 1) else _MISSING
    if isinstance(plain, bool):
        return _MISSING
    if kind is int:
        whole = isinstance(plain, Integral) or isinstance(plain, Real) and math.isfinite(plain) and plain == int(plain)
        return int(plain) if whole else _MISSING
    if kind is float and isinstance(plain, Real):
        return plain if type(plain) in (int, float) else float(plain)
    if kind is str and isinstance(plain, (str, os.PathLike, Integral)):  # whole numbers: --device 0, --source 0
        return os.fsdecode(plain) if isinstance(plain, os.PathLike) else f"{plain}"
    if kind is Path and isinstance(plain, os.PathLike):
        return plain if isinstance(plain, Path) else Path(os.fsdecode(plain))
    other = isinstance(kind, type) and kind not in WORDS and kind is not NoneType
    return value if other and isinstance(value, kind) else _MISSING


def _as_sequence(plain: Any, kind: Any) -> Any:
    """Return a tuple or list whose elements are of the kind that `kind` names, or _MISSING. One value becomes one."""
    if isinstance(plain, (bytes, bytearray, Mapping)):
        return _MISSING
    several = isinstance(plain, Iterable) and not isinstance(plain, (str, os.PathLike))
    kinds = _members(get_args(kind)[0])
    try:
        given = list(plain) if several else [plain]
    except Exception:  # an object of somebody's own
        return _MISSING
    items = [_as_one_of(_plain(item), item, kinds) for item in given]
    return _MISSING if any(i is _MISSING for i in items) else tuple(items) if get_origin(kind) is tuple else items


def _checked(result: Any, flag: str) -> Any:
    """Raise UserError for NaN and for a text that cannot be part of a path; otherwise return `result`."""
    for item in result if isinstance(result, (list, tuple)) else [result]:
        if isinstance(item, float) and math.isnan(item):
            raise UserError(f"{flag} nan must be a number")
        if isinstance(item, int) and not -LARGEST <= item <= LARGEST:
            raise UserError(f"{flag} {_shown(item)} is too large, the largest is {LARGEST}")
        if not isinstance(item, (str, Path)):
            continue
        try:
            encoded = os.fsencode(item)
        except UnicodeEncodeError:
            raise UserError(f"{flag} is {_shown(item)}: it contains a character that cannot be encoded") from None
        if b"\0" in encoded:
            raise UserError(f"{flag} is {_shown(item)}: it contains a null character")
    return result


def _device(value: Any, hint: Any) -> Any:
    """Return a device as the text of `--device`, if the flag is a text: torch.device, and a list of GPUs as "0,1"."""
    if hint is not str:
        return value
    torch = sys.modules.get("torch")  # a torch.device cannot come from anywhere else
    if torch and isinstance(value, torch.device):
        return str(value)
    plain = _plain(value)
    listed = isinstance(plain, (list, tuple)) and plain and all(isinstance(v, (str, Integral)) for v in plain)
    return ",".join(map(str, plain)) if listed else value


def _described(kinds: Iterable[Any]) -> str:
    """Return the kinds in words: a whole number, a list of texts, ..."""
    words = []
    for kind in kinds:
        if get_origin(kind) in (Sequence, list, tuple):
            words.append(f"a list of {' or '.join(SEVERAL[e] for e in _members(get_args(kind)[0]))}")
        elif kind is not NoneType:
            words.append(WORDS.get(kind) or f"a {kind.__module__.partition('.')[0]}.{kind.__qualname__}")
    return " or ".join(sorted(words, key=lambda w: w.startswith("a list")))


def _shown(value: Any) -> str:
    try:
        return shorten(repr(value), 80)
    except Exception:  # an object of somebody's own
        return f"of type {type(value).__name__}"
