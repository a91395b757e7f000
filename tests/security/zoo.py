"""The register of attacks. Each says what it feeds to which part of the program, and what the program answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFUSED, LEFT_OUT, MADE_ANEW = "refused in one line", "left out, and named", "made anew"


@dataclass(frozen=True)
class Attack:
    """surface: what is fed; what: with which trick; run: does it in an empty folder; answer: what is told (regex)."""

    surface: str
    what: str
    run: Callable[[Path], Any]
    answer: str
    outcome: str = REFUSED

    def __str__(self) -> str:
        return f"{self.surface}: {self.what}"
