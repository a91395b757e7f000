"""The exception for errors in the user's input, and helpers for its messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Invalid user input. The message is one line: what is wrong, in which file, at which line or key, what to do.

    Scripts print it and exit with code 1 (see `utils.system.console.run_script`); code that calls `run()` catches it.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known word most similar to `word`, or an empty string if none is similar.

    The dashes of flags and the suffix of yaml files are ignored in the comparison.
    """
    by_core = {_core(k): str(k) for k in known}
    near = difflib.get_close_matches(_core(word), by_core, n=1, cutoff=0.65)
    return f" (did you mean '{by_core[near[0]]}'?)" if near else ""


def _core(word: object) -> str:
    return re.sub(r"^-+|\.ya?ml$", "", str(word).lower())


def shorten(value: object, most: int = 300) -> str:
    """Return a value or an error as one line, cut after `most` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]} ..."


def no_memory(e: Exception) -> str:
    """Return a message for the user if an error means that memory ran out, otherwise an empty string."""
    words = ("allocate memory", "out of memory", "bad_alloc", "insufficient memory")
    if isinstance(e, UserError) or not isinstance(e, MemoryError) and not any(word in str(e).lower() for word in words):
        return ""
    return f"there is not enough memory ({shorten(e)}): use smaller images or smaller batches"
