"""The command line: flags in groups, each with its default in the help, and mistakes told in one line.

A script defines its flags before it imports anything heavy, so that `--help` and a misspelt flag are answered at once:

    parser = Parser(description="Train a detector")
    data = parser.group("data")
    data("--imgsz", type=int, default=640, help="image size in pixels")  # the help ends in (640)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from utils.errors import did_you_mean
from utils.system.console import fail

GROUPS = ("data", "model", "optimisation", "output", "speed", "more")  # in the order in which --help shows them


class Parser(argparse.ArgumentParser):
    """An argument parser with groups, whose mistakes are told in one line, with exit code 1.

    options: a class whose attributes are the defaults to show. The parsed value of a flag that was not given is then
    None, so that the caller can tell which flags were given.
    """

    def __init__(self, description: str, options: type | None = None) -> None:
        doc, _, examples = description.partition("\n")
        super().__init__(usage=f"python {sys.argv[0]} [flags]", description=doc, epilog=examples.strip("\n") or None,
                         add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        self._options = options
        self._groups = {name: self.add_argument_group(name) for name in GROUPS}
        self._groups["more"].add_argument("-h", "--help", action="help", help="show this message and exit")

    def group(self, name: str) -> Callable[..., argparse.Action]:
        """Return the function that adds flags to a group: `add_argument` with `shown`, the default that help shows."""

        def add(*names: str, shown: object = None, help: str, **kwargs: Any) -> argparse.Action:
            dest = names[0].lstrip("-").replace("-", "_")
            default = kwargs.get("default", False if "action" in kwargs else None)
            if self._options:
                default, kwargs["default"] = getattr(self._options, dest), None
            text = _shown(default) if shown is None else str(shown)
            return self._groups[name].add_argument(*names, help=f"{help} ({text})".replace("%", "%%"), **kwargs)

        return add

    def error(self, message: str) -> NoReturn:
        """Print one line and end the process with exit code 1."""
        rest = message.removeprefix("unrecognized arguments: ")
        if rest != message:
            flag = rest.split()[0].partition("=")[0]
            known = did_you_mean(flag, self._option_string_actions)
            message = f"unknown flag {flag}{known}" if flag.startswith("-") else f"'{flag}' belongs to no flag"
            message += "; --help lists all"
        fail(message)


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default)) or "none"
    return "none" if default in (None, "") else f"{default}"
