"""Registry of blocks: how a yaml row `[from, repeats, module, args]` is turned into a call of the block's class.

To add a block, write the class and decorate it with `@register(...)`; nothing else has to change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from utils.errors import did_you_mean
from utils.settings.config import is_whole

MOST_PARAMETERS = 2**30  # of a network; YOLOv5's largest has 2**27
USUAL = 2**24  # a layer estimated to have at most this many parameters is built without counting them first

Channels = Literal["out", "same", "sum", "head"]
T = TypeVar("T", bound=type[nn.Module])


@dataclass(frozen=True)
class Block:
    """The information that `parse_model` needs about a block.

    channels: "out": the first yaml argument is the output width (scaled by `width_multiple`), and the class is called
              as `cls(c_in, c_out, *rest)`; "same": the output is as wide as the input, `cls(*args)`; "sum": the output
              width is the sum of the input widths, `cls(*args)`; "head": the last layer, `cls(*args, [c_in, ...])`,
              where arguments that are missing in the row have their defaults.
    repeats:  True: the class takes the repeat count n itself, `cls(c_in, c_out, n, *rest)`; False: n copies of the
              block are stacked.
    example:  yaml arguments with which the tests build the block for an input of 32 channels.
    """

    cls: type[nn.Module]
    channels: Channels
    repeats: bool
    example: tuple[Any, ...]


_BLOCKS: dict[str, Block] = {}
BLOCKS: Mapping[str, Block] = MappingProxyType(_BLOCKS)


def register(
    channels: Channels = "out", repeats: bool = False, example: tuple[Any, ...] = (32,), name: str = ""
) -> Callable[[T], T]:
    """Class decorator that makes a block available in model yaml files under its class name (or `name`)."""

    def decorate(cls: T) -> T:
        key = name or cls.__name__
        if key in _BLOCKS:
            raise ValueError(f"two blocks are named '{key}'")
        _BLOCKS[key] = Block(cls, channels, repeats, example)
        return cls

    return decorate


def find_block(name: str) -> Block:
    """Return the block registered as `name`. Raises ValueError, listing the known names, if there is none."""
    if name not in BLOCKS:
        raise ValueError(f"unknown module '{name}'{did_you_mean(name, BLOCKS)}; known: {', '.join(sorted(BLOCKS))}")
    return BLOCKS[name]


def check_arguments(cls: type[nn.Module], args: list[Any]) -> None:
    """Raise ValueError, naming the signature, if `cls` cannot be called with this many positional arguments."""
    signature = inspect.signature(cls)
    try:
        signature.bind(*args)
    except TypeError as e:
        raise ValueError(f"{e}: {cls.__name__}{signature} was given {tuple(args)}") from None


def check_size(cls: type[nn.Module], stack: list[list[Any]], width: int, c_in: int) -> None:
    """Raise ValueError if a layer has more than MOST_PARAMETERS parameters.

    stack: the arguments of `cls`, one list per stacked copy; width: output channels (classes for a head); c_in: input
    channels. Most layers pass by an estimate; the others are built on the meta device and counted.
    """
    sides = [v for a in stack[0][2:] for v in (a if isinstance(a, tuple) else (a,))]  # a kernel may be (3, 5)
    side = max((abs(v) for v in sides if is_whole(v)), default=1)
    expands = any(isinstance(a, float) and not a <= 1 for a in stack[0])  # an expansion factor (e) above 1, as in C3
    if not expands and width * max(c_in, width) * max(side, 1) ** 2 * len(stack) <= USUAL:
        return
    with torch.device("meta"):  # allocates no memory
        first, last = (sum(p.numel() for p in cls(*args).parameters()) for args in (stack[0], stack[-1]))
    if (numbers := first + last * (len(stack) - 1)) > MOST_PARAMETERS:
        raise ValueError(f"it needs {numbers:,} parameters, the limit is {MOST_PARAMETERS:,}")


for _cls, _example in ((nn.Upsample, (None, 2, "nearest")), (nn.MaxPool2d, (2,)), (nn.Identity, ())):
    register(channels="same", example=_example, name=f"nn.{_cls.__name__}")(_cls)
