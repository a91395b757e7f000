"""A reader for PyTorch's zipped pickles (`torch.save`) that runs no code from them.

A pickle is a small program for a stack machine. This module interprets its instructions itself and never imports or
calls anything that the file names: an object becomes an `Inert` that holds the name of its class and its attributes.
Tensors, plain values and containers are returned as they are. Names that are not listed here are refused.

Reading a file of n bytes takes memory and time proportional to n, whatever its content: no value is copied, compared or
converted to text before its type is known.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# packages in which YOLOv5, its forks and its pip package define the classes of a network
INERT_PACKAGES = ("models.", "utils.", "torch.nn.", "yolov5.")
INERT_NAMES = frozenset(
    """torch.Size torch.device torch.torch_version.TorchVersion torch.float16 torch.bfloat16 torch.float32 torch.float64
    torch.uint8 torch.int32 torch.int64 torch.bool argparse.Namespace collections.defaultdict datetime.datetime
    _codecs.encode numpy.ndarray numpy.dtype numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar
    pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath""".split()
)
STORAGES = {
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16, "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}  # fmt: skip
LARGEST_PICKLE = 8 * 2**20  # bytes, without the tensors; a yolov5x has 0.2 MB, its last.pt 0.3 MB
MOST_DIMENSIONS, MOST_NUMBERS = 8, 2**40  # of a tensor
LONGEST_NAME = 200  # characters of a class name, including its packages
Key = str | int | float | bool | None  # keys allowed in a dict or set; hashing a nested tuple could take forever


class RefusedPickle(Exception):
    """The pickle uses the name or instruction `args[0]`, which no tensor, plain value or class of a network needs."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names. It is never imported."""

    path: str


@dataclass(eq=False)
class Inert:
    """Placeholder for an object: the name of its class, and its attributes."""

    path: str
    state: dict[str, Any] = field(default_factory=dict)


def read_torch_zip(path: str | Path) -> Any:
    """Read a file written by `torch.save` of PyTorch 1.6 or newer.

    Returns tensors, plain values, containers and `Inert` objects. Raises RefusedPickle for a name or instruction that
    is not allowed, ValueError for a damaged file, OSError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(i.file_size for i in archive.infolist()) > Path(path).stat().st_size:
                raise ValueError("its records are compressed or overlap, unlike those of a checkpoint")
            record = _pickle_record(archive)
            storages = _Storages(archive, record.filename.removesuffix("data.pkl"))
            return _Machine(storages).run(_read(archive, record, LARGEST_PICKLE))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as e:
        raise ValueError(f"invalid zip archive: {e}") from e
    except (IndexError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError) as e:
        raise ValueError(f"the pickle is invalid ({type(e).__name__})") from e


def _pickle_record(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    records = [i for i in archive.infolist() if i.filename.endswith("data.pkl") and i.filename.count("/") <= 1]
    if len(records) != 1:
        raise ValueError("it does not contain exactly one data.pkl")
    return records[0]


def _read(archive: zipfile.ZipFile, record: zipfile.ZipInfo, most: int) -> bytes:
    """Return the bytes of a record. Raises ValueError if it is compressed (a zip bomb) or larger than `most` bytes."""
    if record.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its record {record.filename!r} is compressed, unlike those of a checkpoint")
    if record.file_size > most:
        raise ValueError(f"its record {record.filename!r} has {record.file_size} bytes, at most {most} were expected")
    return archive.read(record)


class _Storages:
    """The storages of the tensors, read on first use; root: the folder in the archive, with a trailing slash."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self.archive, self.root = archive, root
        self.records = {i.filename: i for i in archive.infolist()}
        order = self.records.get(f"{self.root}byteorder")
        if order is not None and _read(archive, order, 16) != b"little":
            raise ValueError("it was written on a big-endian machine")
        self.loaded: dict[str, Tensor] = {}

    def get(self, persistent_id: Any) -> Tensor:
        """Return the storage of a persistent id ("storage", type, key, location, elements) as a 1-D tensor."""
        kind, storage, key, _, elements = persistent_id
        if not isinstance(kind, str) or kind != "storage" or not isinstance(storage, Name):
            raise ValueError("it refers to something that is not a storage of a tensor")
        if storage.path not in STORAGES:
            raise RefusedPickle(storage.path)
        if not isinstance(key, str) or not isinstance(elements, int) or not 0 <= elements <= MOST_NUMBERS:
            raise ValueError("it refers to an invalid storage")
        dtype = STORAGES[storage.path]
        if key not in self.loaded:
            record = self.records[f"{self.root}data/{key}"]
            size = elements * dtype.itemsize
            data = _read(self.archive, record, size)
            if len(data) != size:
                raise ValueError(f"its record {record.filename!r} has {len(data)} bytes, {size} were expected")
            self.loaded[key] = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        found = self.loaded[key]
        if found.dtype != dtype:
            raise ValueError(f"one of its records is used both as {dtype} and as {found.dtype}")
        return found


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    """Return a view of a storage as a tensor. Raises ValueError if it does not fit into the storage."""
    if not isinstance(storage, Tensor) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor's shape is invalid")
    if len(size) > MOST_DIMENSIONS or len(size) != len(stride):
        raise ValueError("a tensor's shape is invalid")
    if not all(isinstance(v, int) and 0 <= v <= MOST_NUMBERS for v in (offset, *size, *stride)):
        raise ValueError("a tensor's shape is invalid")
    elements, last = 1, offset
    for n, step in zip(size, stride, strict=True):
        elements *= n
        last += (n - 1) * step
    if elements > len(storage) or (elements and last >= len(storage)):
        raise ValueError(f"a tensor of {elements} elements does not fit its storage of {len(storage)} elements")
    return storage.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _ordered() -> OrderedDict[Key, Any]:
    return OrderedDict()  # later instructions set its items


def _set(items: Any = ()) -> set[Key]:
    return set(map(_key, items))


def _key(value: Any) -> Key:
    if not isinstance(value, Key):
        raise ValueError("a key of a dict or set is not a plain value")
    return value


# the only names that are called; none of these functions runs code from the file
BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


class _Mark:
    pass


class _Machine:
    """Pickle's stack machine, protocols 0 to 5, without the instructions INST, OBJ, EXT* and PERSID among others."""

    def __init__(self, storages: _Storages) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.size = self.copied = 0  # size of the pickle in bytes, number of items copied into sets

    def run(self, pickle: bytes) -> Any:
        """Interpret a pickle and return its value. Raises RefusedPickle, or ValueError and others if it is damaged."""
        self.size = len(pickle)
        for opcode, arg, _ in pickletools.genops(pickle):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _VALUES:
                self.stack.append(arg)
            elif name in _MEMO_WRITES:
                self.memo[len(self.memo) if arg is None else arg] = self.stack[-1]
            elif name in _MEMO_READS:
                self.stack.append(self.memo[arg])
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise RefusedPickle(f"the instruction {name}")
                step(arg) if name == "GLOBAL" else step()
        raise ValueError("the pickle has no end")

    def _items(self) -> list[Any]:
        """Pop and return the items above the last mark."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _Mark:
            items.append(item)
        return items[::-1]

    def _mark(self) -> None:
        self.stack.append(_Mark)

    def _pop(self) -> None:
        self.stack.pop()

    def _pop_mark(self) -> None:
        self._items()

    def _dup(self) -> None:
        self.stack.append(self.stack[-1])

    # names and objects

    def _global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        path = f"{module}.{name}"
        if len(path) > LONGEST_NAME:
            raise ValueError(f"the name of a class has more than {LONGEST_NAME} characters")
        proper = name.isidentifier() and all(part.isidentifier() for part in module.split("."))
        network = proper and module.startswith(INERT_PACKAGES)
        if not (network or path in INERT_NAMES or path in STORAGES or path in BUILDERS):
            raise RefusedPickle(path)
        self.stack.append(Name(path))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("the name of a class is not a string")
        self._global(f"{module} {name}")

    def _reduce(self) -> None:
        args, made = self.stack.pop(), self.stack.pop()
        if not isinstance(made, Name) or made.path in STORAGES or not isinstance(args, tuple):
            raise ValueError("it calls something that is not a class")
        build = BUILDERS.get(made.path)
        if build is _set and args:  # the only instruction that copies items; a file could copy one list many times
            self.copied += len(args[0])
            if not isinstance(args[0], list) or self.copied > self.size:
                raise ValueError("its sets have more items than the pickle can contain")
        self.stack.append(build(*args) if build else Inert(made.path))

    def _newobj(self) -> None:
        self._reduce()

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Inert) and isinstance(state, dict) and not made.state:
            made.state = state
        elif not isinstance(made, (Inert, OrderedDict)):  # other attributes of these two are ignored
            raise ValueError("it sets attributes of something that is not an object")

    def _binpersid(self) -> None:
        self.stack.append(self.storages.get(self.stack.pop()))

    # containers

    def _empty_list(self) -> None:
        self.stack.append([])

    def _list(self) -> None:
        self.stack.append(self._items())

    def _append(self) -> None:
        item = self.stack.pop()
        self._listed().append(item)

    def _appends(self) -> None:
        items = self._items()
        self._listed().extend(items)

    def _listed(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to something that is not a list")
        return self.stack[-1]

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _dict(self) -> None:
        items = self._items()
        self.stack.append(dict(zip(map(_key, items[::2]), items[1::2], strict=True)))

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._keyed()[_key(key)] = value

    def _setitems(self) -> None:
        items = self._items()
        self._keyed().update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _keyed(self) -> dict[Any, Any]:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("it sets items of something that is not a dict")
        return self.stack[-1]

    def _tuple(self) -> None:
        self.stack.append(tuple(self._items()))

    def _tuple1(self) -> None:
        self._last(1)

    def _tuple2(self) -> None:
        self._last(2)

    def _tuple3(self) -> None:
        self._last(3)

    def _last(self, n: int) -> None:
        if len(self.stack) < n:
            raise ValueError("the stack is too short")
        self.stack[-n:] = [tuple(self.stack[-n:])]

    def _empty_tuple(self) -> None:
        self.stack.append(())

    def _empty_set(self) -> None:
        self.stack.append(set())

    def _additems(self) -> None:
        items = self._items()
        if not isinstance(self.stack[-1], set):
            raise ValueError("it adds to something that is not a set")
        self.stack[-1].update(map(_key, items))

    def _frozenset(self) -> None:
        self.stack.append(frozenset(map(_key, self._items())))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MEMO_WRITES = frozenset("PUT BINPUT LONG_BINPUT MEMOIZE".split())
_MEMO_READS = frozenset("GET BINGET LONG_BINGET".split())
_VALUES = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8""".split()
)
