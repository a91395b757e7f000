"""The options of a conversion from VOC format. Importing this module does not import OpenCV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, did_you_mean

LINKS = ("hard", "copy", "symlink")
BOXES = ("auto", "exact", "zero", "legacy")
ZIPS = {  # the official files by year, with the splits that each contains
    2007: {"VOCtrainval_06-Nov-2007.zip": ("train", "val"), "VOCtest_06-Nov-2007.zip": ("test",)},
    2012: {"VOCtrainval_11-May-2012.zip": ("train", "val")},
}


@dataclass
class Options:
    """The options of a conversion, described in `parse_opt`; with `yaml=False` or None no data yaml is written."""

    source: Sequence[str | Path] | str | Path | None = None
    out: str | Path | None = None
    name: str | None = None
    names: Sequence[str] | None = None
    box: str = "auto"
    link: str = "hard"
    download: bool = False
    years: Sequence[int] = (2007, 2012)
    split: Sequence[float] = (0.8, 0.2)
    seed: int = 0
    yaml: bool | None = True
    encoding: str | None = None

    def __post_init__(self) -> None:
        self.source = [self.source] if isinstance(self.source, str | Path) else list(self.source or ())
        self.names = [str(name) for name in self.names or ()]
        if len(set(self.names)) < len(self.names) or not all(name.strip() for name in self.names):
            raise UserError("--names: give every class a unique, non-empty name")
        if self.name is not None and not re.fullmatch(r"[\w-][\w.-]*", self.name):
            raise UserError(f"--name {self.name!r}: use only letters, digits, '.', '_' and '-'")
        for option, value, known in (("box", self.box, BOXES), ("link", self.link, LINKS)):
            if value not in known:
                raise UserError(f"--{option} {value!r}{did_you_mean(value, known)}: one of {', '.join(known)}")
        if unknown := sorted(set(self.years) - set(ZIPS)):
            raise UserError(f"--years {unknown[0]}: choose from {' and '.join(map(str, ZIPS))}")
        fair = len(self.split) in (2, 3) and all(math.isfinite(p) and p >= 0 for p in self.split) and self.split[0] > 0
        if not fair or abs(sum(self.split) - 1) > 1e-3:
            raise UserError("--split: give two or three fractions (train val [test]) that sum to 1, as in 0.8 0.2")
        if self.encoding is not None and not _is_encoding(self.encoding):
            known = ("utf-8", "gbk", "gb18030", "shift_jis", "big5", "euc_kr", "cp1252", "latin-1")
            hint = did_you_mean(self.encoding, known)
            raise UserError(f"--encoding {self.encoding!r}{hint}: one of Python's names, such as {', '.join(known)}")
        if self.download and (self.source or self.names or self.name):
            raise UserError("--download is for the official VOC zips: leave out --source, --name and --names")


def _is_encoding(name: str) -> bool:
    """Return whether a name is that of an encoding of texts that contains ASCII."""
    try:
        return b"<a>".decode(name) == "<a>"
    except (LookupError, ValueError):
        return False
