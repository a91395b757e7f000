"""How a yaml row `[from, repeats, module, args]` reaches a block: the declaration that stands beside each class.

To add a block, write the class and put `@register(...)` over it; nothing else needs to know.
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
USUAL = 2**24  # parameters that a layer may have without being measured first

Channels = Literal["out", "same", "sum", "head"]
T = TypeVar("T", bound=type[nn.Module])


@dataclass(frozen=True)
class Block:
    """What `parse_model` knows of a block.

    channels: "out": the first yaml argument is the output width (scaled by `width_multiple`), and the class is called
              `cls(c_in, c_out, *rest)`; "same": the width is kept, `cls(*args)`; "sum": the widths of all inputs add
              up, `cls(*args)`; "head": `cls(*args, [c_in, ...])`, the last layer.
    repeats:  the class takes the repeat count itself, `cls(c_in, c_out, n, *rest)`; otherwise it is stacked n times.
    example:  yaml arguments with which the tests build the block on an input 32 channels wide.
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
    """Class decorator: make a block known to model yaml files under its class name (or `name`)."""

    def decorate(cls: T) -> T:
        key = name or cls.__name__
        if key in _BLOCKS:
            raise ValueError(f"two blocks are called '{key}'")
        _BLOCKS[key] = Block(cls, channels, repeats, example)
        return cls

    return decorate


def find_block(name: str) -> Block:
    """Return the block a yaml calls `name`. Raises ValueError, listing the known ones, if there is none."""
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
    """Raise ValueError for a layer too large to be built: `cls` called with each row of `stack`, widths as given.

    Most are seen to be small without building them.
    """
    side = max((abs(a) for a in stack[0][2:] if is_whole(a)), default=1)
    expands = any(isinstance(a, float) and not a <= 1 for a in stack[0])  # a share of the width, of blocks like C3
    if not expands and width * max(c_in, width) * max(side, 1) ** 2 * len(stack) <= USUAL:
        return
    with torch.device("meta"):  # without memory
        first, last = (sum(p.numel() for p in cls(*args).parameters()) for args in (stack[0], stack[-1]))
    if (numbers := first + last * (len(stack) - 1)) > MOST_PARAMETERS:
        raise ValueError(f"it asks for {numbers:,} parameters, at most {MOST_PARAMETERS:,} are built")


for _cls, _example in ((nn.Upsample, (None, 2, "nearest")), (nn.MaxPool2d, (2,)), (nn.Identity, ())):
    register(channels="same", example=_example, name=f"nn.{_cls.__name__}")(_cls)
