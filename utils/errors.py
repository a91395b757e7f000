"""What goes wrong because of the user's input: one exception, and the did-you-mean for misspelt words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, told in one line: what, which file, which line or key, what to do.

    Scripts print it and exit with code 1 (see `utils.system.console.run_script`); code that calls `run()` catches it.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known word nearest to `word`, or an empty string if none is near.

    What all of a kind have in common does not count: the dashes of flags, the suffix of yaml files.
    """
    by_core = {_core(k): str(k) for k in known}
    near = difflib.get_close_matches(_core(word), by_core, n=1, cutoff=0.65)
    return f" (did you mean '{by_core[near[0]]}'?)" if near else ""


def _core(word: object) -> str:
    return re.sub(r"^-+|\.ya?ml$", "", str(word).lower())


def shorten(value: object, most: int = 300) -> str:
    """A value or an error as one line of not too many letters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]} ..."


def no_memory(e: Exception) -> str:
    """What to tell if an error says that memory has run out, or an empty string."""
    words = ("allocate memory", "out of memory", "bad_alloc", "insufficient memory")
    if isinstance(e, UserError) or not isinstance(e, MemoryError) and not any(word in str(e).lower() for word in words):
        return ""
    return f"there is not enough memory ({shorten(e)}): smaller images or smaller batches need less"
