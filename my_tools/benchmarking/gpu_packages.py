"""Stand-ins for packages that the case `gpu` of benchmark.py can do without, on a machine that has little but PyTorch.

Imported before everything else of the project, and imports nothing of it by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

NEEDED = MappingProxyType({"torch": "torch", "numpy": "numpy", "yaml": "pyyaml"})  # module -> package
# package that can be missing -> a module of it that is imported to find out; utils.system.opencv sets OpenCV's limits
OPTIONAL = MappingProxyType({"tqdm": "tqdm", "PIL": "PIL.Image", "cv2": "utils.system.opencv",
                             "matplotlib": "matplotlib.figure", "defusedxml": "defusedxml.ElementTree"})  # fmt: skip
MISSING: dict[str, str] = {}  # package that has a stand-in -> why it cannot be imported


def stand_in(needed: Iterable[str] = NEEDED, optional: Iterable[str] = OPTIONAL) -> dict[str, str]:
    """Give a stand-in to each optional package that cannot be imported; returns these, with the reasons.

    Ends the program with one line if a needed package is missing.
    """
    absent = [NEEDED.get(name, name) for name in needed if not _found(name)]
    if absent:
        sys.exit(f"error: benchmark.py --cases gpu cannot run without {' and '.join(absent)}: pip install "
                 f"{' '.join(absent)}")  # fmt: skip
    for package in optional:
        if package not in MISSING and (reason := _why_not(OPTIONAL.get(package, package))):
            for name in [n for n in sys.modules if n.partition(".")[0] == package]:
                del sys.modules[name]
            MISSING[package] = reason
    if MISSING and not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StandIns())
    return dict(MISSING)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _why_not(module: str) -> str:
    """Return why a module cannot be imported, or an empty string if it can."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as e:  # a damaged installation raises errors of many types
        return " ".join(str(e).split()).removeprefix("error: ")[:200] or type(e).__name__
    return ""


class NotInstalled(Exception):
    """Something of a missing package was used."""


class _Absent(type):
    """The type of all names in a stand-in: classes, so that one can be inherited from, caught, or given as a type."""

    def __call__(cls, *_args: Any, **_kwargs: Any) -> Any:
        raise NotInstalled(f"{cls.__module__} is not installed, and {cls.__name__} of it is needed")

    def __getattr__(cls, name: str) -> Any:
        return _absent(cls.__module__, name)

    def __or__(cls, _other: Any) -> Any:  # flags that are combined
        return cls

    __ror__ = __or__


def _absent(package: str, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Absent(name, (Warning,), {"__module__": package})


class _StandIns(MetaPathFinder, Loader):
    """Finds the missing packages and their modules: each is an empty one, of which any name can be imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in MISSING else None

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        if package == "tqdm":
            module.tqdm = PlainBar
        module.__getattr__ = lambda name: _absent(package, name)


class PlainBar:
    """As much of tqdm's progress bar as the project uses, without showing anything."""

    def __init__(self, iterable: Iterable | None = None, *_args: Any, **_kwargs: Any) -> None:
        self.iterable = iterable

    def __iter__(self) -> Iterator:
        return iter(self.iterable)

    def __enter__(self) -> PlainBar:
        return self

    def __exit__(self, *_error: object) -> None:
        """Do nothing, as the other methods."""

    @staticmethod
    def write(text: str, file: Any = None) -> None:
        """Write a line."""
        print(text, file=file)

    def update(self, *_args: Any) -> None:
        """Do nothing, as the other methods."""

    close = set_description = set_postfix = refresh = update
