"""What the user sees in a terminal: the logger, colours, progress bars, and how a script ends."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from utils.distributed import is_connected, is_main, rank
from utils.errors import UserError, did_you_mean

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

LOGGER = logging.getLogger("yolov5")

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "bold": 1}


class _ConsoleHandler(logging.Handler):
    """Writes through tqdm, so that a message does not tear a progress bar apart; looks stdout up at each line."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = printable(record.getMessage(), keep="\n\t").encode(encoding, "backslashreplace").decode(encoding)
        if record.levelno >= logging.ERROR:
            text = colorstr("red", "error: ") + text
        elif record.levelno >= logging.WARNING:
            text = colorstr("yellow", "WARNING: ") + text
        tqdm.write(text, file=stream)


if not LOGGER.handlers:
    LOGGER.addHandler(_ConsoleHandler())
    LOGGER.setLevel(logging.INFO if is_main() else logging.ERROR)  # of several processes one speaks


def printable(text: str, keep: str = "") -> str:
    """`text` with everything a terminal might obey, except the characters of `keep`, written as an escape."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def colorstr(colour: str, text: str) -> str:
    """Wrap `text` in an ANSI colour where the terminal shows it (not into files, not with NO_COLOR set)."""
    if "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def shown(path: Path) -> str:
    """A path as the user would type it from the project's folder."""
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()


def quoted(word: str) -> str:
    """A word of a command that every shell takes, Windows' too."""
    return f'"{word}"' if " " in word else word


def progress(iterable: Iterable | None = None, desc: str = "", **kwargs: Any) -> tqdm:
    """A progress bar in YOLOv5's style: description, ten-character bar, count, time left."""
    kwargs.setdefault("bar_format", "{l_bar}{bar:10}{r_bar}{bar:-10b}")
    return tqdm(iterable, desc=desc, disable=not is_main(), **kwargs)


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are told in one line, with exit code 1."""

    def error(self, message: str) -> NoReturn:
        rest = message.removeprefix("unrecognized arguments: ")
        if rest != message:
            flag = rest.split()[0]
            message = f"unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}; --help lists all"
        if is_main():
            LOGGER.error(message)
        sys.exit(1)


def run_script(main: Callable[[Any], Any], opt: Any) -> None:
    """Run `main(opt)`; a `UserError` becomes one line on stderr and exit code 1, Ctrl-C exit code 130."""
    try:
        main(opt)
    except UserError as e:
        if is_main() or is_connected():  # before they connect all processes stumble over the same
            LOGGER.error(str(e) if is_main() else f"process {rank()}: {e}")
        sys.exit(1)
    except BrokenPipeError:  # what reads our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as e:
        if e.errno not in DISK_TROUBLE:
            raise
        LOGGER.error(f"{e.filename or 'a file'}: cannot be written ({e.strerror})")
        sys.exit(1)
    except KeyboardInterrupt as e:
        if is_main():
            LOGGER.error(str(e) or "interrupted")
        sys.exit(130)
