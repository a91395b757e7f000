"""Terminal output: the logger, colours, progress bars, and the exit codes of scripts."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from utils.errors import UserError, no_memory
from utils.system.processes import is_connected, is_main, rank

if TYPE_CHECKING:
    from tqdm import tqdm

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

PATIENCE = 30.0  # seconds within which the main process has logged an error that all processes have

LOGGER = logging.getLogger("yolov5")

_HUES = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_COLOURS = {
    **{hue: 30 + k for k, hue in enumerate(_HUES)},
    **{f"bright_{hue}": 90 + k for k, hue in enumerate(_HUES)},
    "end": 0, "bold": 1, "underline": 4,
}  # fmt: skip


class _ConsoleHandler(logging.Handler):
    """Writes through tqdm, if it is in use, so that messages do not break progress bars.

    Reads sys.stdout anew for each line.
    """

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        keep = "\t" if record.levelno >= logging.WARNING else "\n\t"  # a line break in a warning comes from a file name
        text = printable(record.getMessage(), keep).encode(encoding, "backslashreplace").decode(encoding)
        if record.levelno >= logging.ERROR:
            text = colorstr("red", "error: ") + text
        elif record.levelno >= logging.WARNING:
            text = colorstr("yellow", "WARNING: ") + text
        if bars := getattr(sys.modules.get("tqdm"), "tqdm", None):
            bars.write(text, file=stream)
        else:
            stream.write(text + "\n")


def set_logging(name: str | None = None, verbose: bool = True) -> None:
    """Set the log level to INFO, or with `verbose` False to ERROR.

    name is accepted for compatibility with YOLOv5's scripts and has no effect.
    """
    LOGGER.setLevel(logging.INFO if verbose and is_main() else logging.ERROR)  # the others log errors only


if not LOGGER.handlers:
    LOGGER.addHandler(_ConsoleHandler())
    set_logging()


def printable(text: str, keep: str = "") -> str:
    """Return `text` with non-printable characters, except those in `keep`, replaced by escape sequences."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def has_control(text: str) -> bool:
    """Whether a name contains a line break or a control character."""
    return re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text) is not None


def colorstr(*words: object) -> str:
    """Return the last argument in the ANSI colours named by the others, or in bold blue if it is the only one.

    Without colours if stdout is not a terminal or NO_COLOR is set.
    """
    *colours, text = words if len(words) > 1 else ("blue", "bold", *words)
    if "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return str(text)
    return "".join(f"\033[{_COLOURS[str(c)]}m" for c in colours) + f"{text}\033[0m"


def print_args(args: Mapping[str, Any], show_file: bool = True) -> None:
    """Log options as `script: a=1, b=2`; without the script's name if `show_file` is False."""
    script = colorstr(f"{Path(sys.argv[0]).stem}: ") if show_file else ""
    LOGGER.info(script + ", ".join(f"{k}={v}" for k, v in args.items()))


def shown(path: Path) -> str:
    """Return a path relative to the current folder if it lies below it, else unchanged, with forward slashes."""
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()


def quoted(word: str) -> str:
    """Return a command-line argument, in double quotes if it contains a space; valid in Windows' shells too."""
    return f'"{word}"' if " " in word else word


def progress(iterable: Iterable | None = None, desc: str = "", **kwargs: Any) -> tqdm:
    """Return a progress bar in YOLOv5's style: description, ten-character bar, count, time left."""
    from tqdm import tqdm  # not at the top of the file: --help does not need it

    kwargs.setdefault("bar_format", "{l_bar}{bar:10}{r_bar}{bar:-10b}")
    return tqdm(iterable, desc=desc, disable=not is_main(), **kwargs)


def fail(message: str) -> NoReturn:
    """Log an error and end the process with exit code 1.

    Before the processes of a distributed training are connected, all of them meet the same error and only the main one
    logs it. The others wait first, because torchrun stops all processes as soon as one has exited.
    """
    if not is_main() and not is_connected():
        time.sleep(PATIENCE)
    LOGGER.error(message if is_main() else f"process {rank()}: {message}")
    sys.exit(1)


def run_script(main: Callable[[Any], Any], opt: Any) -> None:
    """Run `main(opt)`; a `UserError` is printed as one line on stderr with exit code 1, Ctrl-C gives exit code 130."""
    if not gc.isenabled():  # turned off by `read_first`
        # What was imported stays until the process ends. Otherwise, looking through torch's objects takes a third of a
        # second at the end of the process, and at each full garbage collection before it.
        gc.freeze()
        gc.enable()
    try:
        main(opt)
    except UserError as e:
        fail(str(e))
    except BrokenPipeError:  # the reader of our output, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as e:
        if told := no_memory(e):
            fail(told)
        if e.errno not in DISK_TROUBLE:
            raise
        LOGGER.error(f"{e.filename or 'a file'}: cannot be written ({e.strerror})")
        sys.exit(1)
    except Exception as e:
        if not (told := no_memory(e)):
            raise
        fail(told)
    except KeyboardInterrupt as e:
        if is_main():
            sys.stderr.write(f"{str(e) or 'interrupted'}\n")  # the user asked for it: not logged as an error
        sys.exit(130)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Log only warnings and errors inside the context."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
