"""Arguments of a model yaml's rows: activations and kernel sizes as people write them, and errors that name one.

YOLOv5 runs the texts in a row as Python code; here they are only looked up.
"""

from __future__ import annotations

import inspect
import re
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import nn

from utils.errors import did_you_mean, shorten
from utils.settings.config import is_whole

_KNOWN = (nn.SiLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Mish, nn.ELU, nn.GELU, nn.Identity)
ACTIVATIONS = {cls.__name__: cls for cls in _KNOWN}
SLOPES = {nn.LeakyReLU: "negative_slope", nn.ELU: "alpha"}  # activations with a number as their argument
LONGEST_TEXT = 100  # characters of an activation
PADDINGS = ("same", "valid")  # texts that nn.Conv2d takes as its padding


def parse_activation(text: str | None) -> nn.Module | None:
    """Build an activation from its text in a yaml, such as `nn.LeakyReLU(0.1)`, `nn.ReLU(inplace=True)` or `SiLU`.

    Activations work in place where they can; the text's `inplace` is ignored. Raises ValueError if it is unknown.
    """
    if text is None:
        return None
    short = shorten(text, LONGEST_TEXT)
    match = re.fullmatch(r"\s*(?:torch\.)?(?:nn\.)?(\w+)\s*(?:\(([^()]*)\))?\s*", short)
    name = match.group(1) if match else short
    if not match or name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ValueError(f"unknown activation '{short}'{did_you_mean(name, ACTIVATIONS)}; known: {known}")
    cls = ACTIVATIONS[name]
    given = [part.strip() for part in (match.group(2) or "").split(",") if part.strip()]
    given = [part for part in given if not re.fullmatch(r"(inplace\s*=\s*)?(True|False)", part)]
    number = rf"(?:{SLOPES.get(cls)}\s*=\s*)?(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    numbers = [re.fullmatch(number, part) for part in given]
    if numbers and (cls not in SLOPES or len(numbers) > 1 or not numbers[0]):
        takes = f"one number, {SLOPES[cls]}" if cls in SLOPES else "no argument but inplace"
        raise ValueError(f"activation '{short}': {name} takes {takes}")
    options = {} if cls in (nn.GELU, nn.Identity) else {"inplace": True}
    return cls(float(numbers[0][1]), **options) if numbers else cls(**options)


def checked_arguments(cls: type[nn.Module], args: list[Any], first: int) -> list[Any]:
    """Return the arguments for `cls`, with an activation's text replaced by its module and [3, 3] by 3.

    first: number of leading arguments that do not come from the yaml row. Raises ValueError, naming the argument, for
    a text or a list where a number is expected.
    """
    names = list(inspect.signature(cls).parameters)
    hints = get_type_hints(cls.__init__) if cls.__module__.startswith("models.") else {}
    expected = ", ".join(name for name in names[first:] if name != "ch")  # a head's ch is not in the row
    taken = args[:first]
    for name, value in list(zip(names, args, strict=False))[first:]:
        try:
            taken.append(_argument(name, value, hints.get(name)))
        except ValueError as e:
            raise ValueError(f"argument '{name}' {e}; the arguments of {cls.__name__} are: {expected}") from None
    return taken


def named(cls: type[nn.Module], args: list[Any], first: int) -> str:
    """Return the arguments from the yaml row with their names, for a message."""
    names = list(inspect.signature(cls).parameters)
    return ", ".join(f"{name} {shorten(value, 40)}" for name, value in list(zip(names, args, strict=False))[first:])


def _argument(name: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if name == "act":
        if value is None or isinstance(value, (bool, int, nn.Module)):
            return value
        if not isinstance(value, str):
            raise ValueError(f"is {shorten(value, 60)}, it must be an activation such as nn.ReLU()")
        try:
            return parse_activation(value)
        except ValueError as e:
            raise ValueError(f"is wrong: {e}") from None
    if hint is None or value is None or isinstance(value, bool):  # without a hint: an argument of torch's own module
        return value
    if isinstance(value, str) and {int, float, bool} & set(kinds) and not (name == "p" and value in PADDINGS):
        raise ValueError(f"is the text '{shorten(value, 60)}', it must be {_wanted(kinds)}")
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and int in kinds:
        return _pair(value, tuple[int, int] in kinds)
    if isinstance(value, (list, tuple, dict)) and {int, float, bool} & set(kinds):
        raise ValueError(f"is {shorten(value, 60)}, it must be {_wanted(kinds)}")
    if int in kinds and not is_whole(value):
        raise ValueError(f"is {shorten(value, 60)}, it must be a whole number")
    return value


def _pair(value: list[Any] | tuple[Any, ...], allowed: bool) -> int | tuple[int, int]:
    """Return a height and a width as one number if they are equal, otherwise as a tuple if that is allowed."""
    if len(value) != 2 or not all(is_whole(v) for v in value):
        wanted = "a whole number or two, the height and the width" if allowed else "a whole number"
        raise ValueError(f"is {shorten(value, 60)}, it must be {wanted}")
    if value[0] == value[1]:
        return value[0]
    if not allowed:
        raise ValueError(f"is {shorten(value, 60)}, it must be one whole number")
    return value[0], value[1]


def _wanted(kinds: tuple[Any, ...]) -> str:
    if bool in kinds:
        return "True or False"
    return "a whole number" if int in kinds else "a number"
