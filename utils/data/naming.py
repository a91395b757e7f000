"""Names of output files: no two images or video frames share one, so that no file overwrites another."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Hashable, Iterable
from pathlib import Path


def folded(name: str) -> str:
    """Return a name as Windows and macOS compare it: without regard to case and to the form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


class Names:
    """Gives each owner a name of its own: the one it wants, or if that is taken name_2, name_3, ...

    An owner that asks again gets the same name. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self.changed: list[str] = []  # the first few changes, as text
        self.changes = 0
        self._lock = threading.RLock()
        self._wanted: set[str] = set()
        self._taken: set[str] = set()
        self._given: dict[tuple[str, Hashable], str] = {}
        self._next: dict[str, int] = {}  # by wanted name, the first number that may be free

    def reserve(self, names: Iterable[str]) -> None:
        """Keep names that later owners will want; nobody else gets them by adding a number."""
        self._wanted.update(map(folded, names))

    def take(self, wanted: str, owner: Hashable) -> str:
        """Return the name of `owner`, which is `wanted` if no other owner has it."""
        with self._lock:
            plain = folded(wanted)
            if (plain, owner) in self._given:
                return self._given[plain, owner]
            name, number = wanted, self._next.get(plain, 1)
            while not self._free(wanted, number) or (number > 1 and folded(f"{wanted}_{number}") in self._wanted):
                number += 1
            if number > 1:
                name = f"{wanted}_{number}"
                self.changes += 1
                self.changed += [f"{owner} -> {name}"] if len(self.changed) < 3 else []
            self._next[plain] = number + 1
            self._taken.add(folded(name))
            self._given[plain, owner] = name
            return name

    def _free(self, wanted: str, number: int) -> bool:
        return folded(wanted if number == 1 else f"{wanted}_{number}") not in self._taken

    def summary(self) -> str:
        """Return one line about the names that were changed, or an empty string."""
        if not self.changes:
            return ""
        more = f" and {self.changes - len(self.changed)} more" if self.changes > len(self.changed) else ""
        return f"names already taken and therefore numbered: {', '.join(self.changed)}{more}"


class Stems(Names):
    """The stems of images, and those of video frames: `clip_7` is frame 7 of `clip`.

    Only frames whose stem was taken are stored one by one: a stream may never end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frames: dict[str, int] = {}  # folded name of a video -> its largest frame number so far

    def frame(self, video: str, number: int) -> str:
        """Return the stem of a frame. video: a name that only this video has; number: from 1, never decreasing."""
        with self._lock:
            wanted, plain = f"{video}_{number}", folded(video)
            if folded(wanted) in self._taken:
                return self.take(wanted, f"frame {number} of {video}")
            self._frames[plain] = max(number, self._frames.get(plain, 0))
            return wanted

    def _free(self, wanted: str, number: int) -> bool:
        name = folded(wanted if number == 1 else f"{wanted}_{number}")
        video, _, frame = name.rpartition("_")
        seen = self._frames.get(video, 0)
        is_frame = seen and frame.isascii() and frame.isdigit() and not frame.startswith("0") and len(frame) < 19
        return name not in self._taken and not (is_frame and int(frame) <= seen)


def stems_of(paths: Iterable[str]) -> tuple[dict[str, str], str]:
    """Return a distinct stem for each path, and one line about those that are not the path's own.

    The result does not depend on the order of the paths.
    """
    names, ordered = Names(), sorted(set(paths))
    names.reserve(Path(path).stem for path in ordered)
    return {path: names.take(Path(path).stem, path) for path in ordered}, names.summary()
