"""The type of an attack: what it feeds to which part of the program, and the result that is expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFUSED, LEFT_OUT, MADE_ANEW = "refused with a one-line error", "skipped and reported", "ignored and rebuilt"


@dataclass(frozen=True)
class Attack:
    """One attack.

    surface: the kind of input, such as "model yaml"
    what: the trick; unique within its surface
    run: performs the attack in the given empty folder
    answer: regular expression that the error message or the output must match
    outcome: what the program must do with the input
    """

    surface: str
    what: str
    run: Callable[[Path], Any]
    answer: str
    outcome: str = REFUSED

    def __str__(self) -> str:
        return f"{self.surface}: {self.what}"
