"""Parsing of the command line: flags in groups, defaults in the help, and one-line error messages.

A script defines its flags before its slow imports, so that `--help` and errors in flags appear at once:

    parser = Parser(description="Train a detector")
    data = parser.group("data")
    data("--imgsz", type=int, default=640, help="image size in pixels")  # the help text ends with (640)
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from utils.errors import did_you_mean
from utils.files import ROOT
from utils.settings.values import converted_flags, hints_of
from utils.system.console import fail

GROUPS = ("data", "model", "optimisation", "output", "speed", "more")  # in the order in which --help shows them

T = TypeVar("T")


def options_from(options: Callable[..., T], flags: Mapping[str, Any], where: str) -> T:
    """Build an options object, an instance of a dataclass, from flags by their names in code; None means not given.

    Raises UserError for a name that the dataclass does not have, and for a value that cannot be converted to the type
    of its flag; `where` is the name of the called function.
    """
    return options(**converted_flags(flags, hints_of(options), where))


def read_first(parse_opt: Callable[[], T]) -> T:
    """Return `parse_opt()`, and turn off garbage collection, without which the script's imports take a tenth less time.

    `run_script` turns it on again.
    """
    opt = parse_opt()
    gc.disable()
    return opt


class Parser(argparse.ArgumentParser):
    """An argument parser with groups of flags, which prints an error as one line and exits with code 1.

    description: its first line is shown above the flags, the rest, such as examples, below. options: a class whose
    attributes are the defaults. unset: set flags that were not given to None, so that the caller can detect them.
    """

    def __init__(self, description: str, options: type | None = None, unset: bool = False) -> None:
        doc, _, examples = description.partition("\n")
        super().__init__(usage=f"python {sys.argv[0]} [flags]", description=doc, epilog=examples.strip("\n") or None,
                         add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        self._options, self._unset = options, unset
        self._groups = {name: self.add_argument_group(name) for name in GROUPS}
        self._groups["more"].add_argument("-h", "--help", action="help", help="show this message and exit")

    def group(self, name: str) -> Callable[..., argparse.Action]:
        """Return a function that adds a flag to a group: `add_argument` plus `shown`, the default shown in the help."""

        def add(*names: str, shown: object = None, help: str, **kwargs: Any) -> argparse.Action:
            dest = names[0].lstrip("-").replace("-", "_")
            default = kwargs.get("default", False if "action" in kwargs else None)
            if self._options:
                default = getattr(self._options, dest)
                kwargs["default"] = None if self._unset else default
            text = _shown(default) if shown is None else str(shown)
            return self._groups[name].add_argument(*names, help=f"{help} ({text})".replace("%", "%%"), **kwargs)

        return add

    def add_output(self, project: str, name: str = "exp") -> None:
        """Add --project, --name and --exist-ok, with their defaults; `project` is relative to the repository root."""
        output = self.group("output")
        output("--project", default=str(ROOT / project), metavar="FOLDER", shown=project,
               help="write the results to FOLDER/NAME")  # fmt: skip
        output("--name", default=name, shown=name, help="name of the folder; NAME2, NAME3, ... if it exists")
        output("--exist-ok", action="store_true", help="write to FOLDER/NAME even if it exists")

    def add_device(self) -> None:
        """Add --device."""
        self.group("speed")("--device", default="", metavar="NAME", shown="a GPU if there is one",
                            help="cpu, mps, or the number of a GPU")  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 1."""
        rest = message.removeprefix("unrecognized arguments: ")
        if rest != message:
            flag = rest.split()[0].partition("=")[0]
            known = did_you_mean(flag, self._option_string_actions)
            message = f"unknown flag {flag}{known}" if flag.startswith("-") else f"'{flag}' does not belong to a flag"
            message += "; --help lists all flags"
        fail(message)


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default)) or "none"
    return "none" if default in (None, "") else f"{default}"
