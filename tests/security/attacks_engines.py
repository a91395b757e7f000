"""Attacks through the cache folder of converted checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from security.zoo import MADE_ANEW, Attack

from models.inference.engine_cache import (
    LARGEST_MODEL,
    Record,
    cache_folder,
    read_model,
    read_record,
    write_model,
    write_record,
)

WEIGHTS, GRAPH, OTHER = "a" * 64, b"the converted file", b"a hostile file"


def cached(change: Callable[[Path, Path], Any], folder: Path) -> None:
    """Change a record or its converted file; neither must be used, and both must be written anew."""
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder)}):
        write_both()
        record = read_record(WEIGHTS)
        assert read_model(record) == GRAPH
        change(cache_folder() / f"{WEIGHTS}.json", cache_folder() / f"{record.model}.onnx")
        record = read_record(WEIGHTS)
        assert read_model(record) is None or not record.facts
        write_both()
        assert read_model(read_record(WEIGHTS)) == GRAPH
    print("written anew")


def write_both() -> None:
    record = Record(WEIGHTS, speeds={"here": {"pytorch": 2.0, "onnx": 1.0}})
    write_model(record, GRAPH, "facts", "torch 1")
    write_record(record)


def tree_with(**values: Any) -> Callable[[Path, Path], Any]:
    def change(record: Path, model: Path) -> None:
        record.write_text(json.dumps({**json.loads(record.read_text()), **values}))

    return change


def text(content: bytes) -> Callable[[Path, Path], Any]:
    return lambda record, model: record.write_bytes(content)


def linked(record: Path, model: Path) -> None:
    model.unlink()
    model.symlink_to("/dev/zero")


def forged(record: Path, model: Path) -> None:
    """A record and a file that fit each other, in files that everyone may write."""
    other = model.with_name(f"{hashlib.sha256(OTHER).hexdigest()}.onnx")
    other.write_bytes(OTHER)
    other.chmod(0o666)
    tree_with(model=other.stem)(record, model)


def piped(record: Path, model: Path) -> None:
    model.unlink()
    os.mkfifo(model)


def outside(record: Path, model: Path) -> None:
    """A path in place of a digest, to a file that exists."""
    (record.parent.parent / "x.onnx").write_bytes(OTHER)
    tree_with(model="../x")(record, model)


_WHATS: dict[str, Callable[[Path, Path], Any]] = {
    "a pickle that calls os.system as the record": text(b"cposix\nsystem\n(S'touch ran'\ntR."),
    "a record nested 10^5 deep": text(b"[" * 10**5),
    "a record with a number of 10^6 digits": text(b'{"version": ' + b"9" * 10**6 + b"}"),
    "a record of another checkpoint": tree_with(weights="b" * 64),
    "a path outside the folder as the converted file": outside,
    "speeds that are not numbers": tree_with(speeds={"here": {"pytorch": "touch ran"}}),
    "10^4 measurements": tree_with(speeds={str(k): {} for k in range(10**4)}),
    "a converted file with other content": lambda record, model: model.write_bytes(OTHER),
    "a record and a fitting converted file that other users may write": forged,
    "a link to /dev/zero as the converted file": linked,
    "a named pipe as the converted file": piped,
    "a converted file of more than 1 GiB": lambda record, model: os.truncate(model, LARGEST_MODEL + 1),
}
ATTACKS = [
    Attack("engine cache", what, partial(cached, change), "written anew", MADE_ANEW) for what, change in _WHATS.items()
]
