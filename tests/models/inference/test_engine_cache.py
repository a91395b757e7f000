"""The cache of converted checkpoints: what is kept, what is removed, and what counts as missing."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.inference import engine_cache
from models.inference.engine_cache import Record, digest_of, read_model, read_record, write_model, write_record

WEIGHTS, GRAPH = "a" * 64, b"graph"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/yolov5-light/engines"


def kept(weights: str = WEIGHTS, graph: bytes = GRAPH) -> Record:
    record = Record(weights, speeds={"here": {"pytorch": 2.0, "onnx": 1.0}})
    write_model(record, graph, "facts", "torch 1")
    record.checked["onnx"] = True
    write_record(record)
    return record


def test_what_is_written_is_read() -> None:
    assert read_record(WEIGHTS) == Record(WEIGHTS)
    record = kept()
    assert read_record(WEIGHTS) == record
    assert read_model(read_record(WEIGHTS)) == GRAPH
    assert read_record("b" * 64) == Record("b" * 64) and read_model(Record("b" * 64)) is None


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(3_000_000))
    assert digest_of(tmp_path / "x") == hashlib.sha256(bytes(3_000_000)).hexdigest()


def changed(key: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), key: value}).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"", lambda content: content[:-9], lambda content: b"[" * 100_000, lambda content: b"\xff\xfe",
        lambda content: b"null", lambda content: b'{"version": ' + b"9" * 10_000 + b"}",
        lambda content: content + b" " * engine_cache.LARGEST_RECORD,
        changed("format", "x"), changed("version", 3), changed("weights", "b" * 64), changed("model", "../x"),
        changed("model", 5), changed("facts", None), changed("maker", 1),
        changed("trained", None), changed("trained", [64]), changed("trained", [64, True]), changed("trained", [-1, 8]),
        changed("checked", ["a"]), changed("checked", {"a": "yes"}),
        changed("checked", {str(k): True for k in range(51)}), changed("speeds", {"a": {"onnx": float("nan")}}),
        changed("speeds", {"a": {"onnx": -1.0}}), changed("speeds", {"a": {"onnx": True}}),
        changed("speeds", {"a": []}), changed("speeds", {"a" * 2000: {}}),
    ],
)  # fmt: skip
def test_damaged_records_are_ignored_and_rewritten(change: Callable[[bytes], bytes], folder: Path) -> None:
    kept()
    file = folder / f"{WEIGHTS}.json"
    file.write_bytes(change(file.read_bytes()))
    assert read_record(WEIGHTS) == Record(WEIGHTS)
    assert read_model(read_record(WEIGHTS)) is None
    record = kept()
    assert read_record(WEIGHTS) == record


def replaced_by_a_link(file: Path) -> None:
    content = file.with_name("elsewhere")
    file.rename(content)
    file.symlink_to(content)


@pytest.mark.parametrize(
    "change",
    [lambda f: f.write_bytes(b"graph2"), lambda f: f.write_bytes(b""), lambda f: f.unlink(), replaced_by_a_link,
     lambda f: f.chmod(0o666), lambda f: (f.unlink(), os.mkfifo(f)), lambda f: (f.unlink(), f.mkdir()),
     lambda f: f.parent.chmod(0o777), lambda f: os.truncate(f, engine_cache.LARGEST_MODEL + 1)],
)  # fmt: skip
def test_a_converted_file_that_may_be_another_is_not_used(change: Callable[[Path], Any], folder: Path) -> None:
    record = kept()
    change(folder / f"{record.model}.onnx")
    assert read_model(record) is None


def test_the_files_used_longest_ago_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cache, "MOST_MODELS", 3)
    monkeypatch.setattr(engine_cache, "MOST_BYTES", 35)
    folder.mkdir(parents=True)
    (folder / ".x.part").write_bytes(b"")
    (folder / ".y.part").write_bytes(b"")
    os.utime(folder / ".x.part", (0, 0))
    (folder / "of someone else").mkdir()
    records = []
    for k in range(4):
        records.append(kept(f"{k}" * 64, b"%010d" % k))
        os.utime(folder / f"{records[-1].model}.onnx", (time.time() - 100 + k,) * 2)
    assert read_model(records[1]) and not read_model(records[0])  # now number 1 is the newest
    kept("9" * 64, b"%010d" % 9)
    assert [read_model(r) is not None for r in records] == [False, True, False, True]
    assert sorted(f.name for f in folder.iterdir() if f.suffix not in (".onnx", ".json")) == [
        ".y.part", "of someone else"]  # fmt: skip


def test_one_file_is_kept_even_if_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cache, "MOST_BYTES", 1)
    assert read_model(kept()) == GRAPH


def test_only_the_newest_entries_are_kept() -> None:
    record = Record(WEIGHTS, speeds={str(k): {"pytorch": 1.0} for k in range(60)})
    write_record(record)
    assert list(read_record(WEIGHTS).speeds) == [str(k) for k in range(10, 60)]


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="has no modes of files")
@pytest.mark.parametrize("mask", [0, 0o002, 0o022, 0o077])
def test_what_is_kept_can_be_written_by_this_user_only(mask: int, folder: Path) -> None:
    before = os.umask(mask)
    try:
        record = kept()
    finally:
        os.umask(before)
    assert read_record(WEIGHTS) == record and read_model(record) == GRAPH
    assert not any(path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir()))


@pytest.mark.parametrize("where", ["file/below", "relative", "/proc/none"])
def test_nothing_is_kept_where_nothing_can_be_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", where if where[0] in "r/" else str(tmp_path / where))
    record = kept()
    assert read_model(record) is None and read_record(WEIGHTS) == Record(WEIGHTS)
    assert capfd.readouterr() == ("", "")


def test_several_writers_at_once() -> None:
    """Each reader finds a whole record, with the converted file that belongs to it."""
    kept()
    wrong, stop = [], threading.Event()

    def write(k: int) -> None:
        while not stop.is_set():
            kept(WEIGHTS, b"%d" % k)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for _ in range(100):
        record = read_record(WEIGHTS)
        if read_model(record) is None or record.speeds != {"here": {"pytorch": 2.0, "onnx": 1.0}}:
            wrong.append(record)
    stop.set()
    for t in threads:
        t.join()
    assert not wrong
