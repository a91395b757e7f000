"""Label files: what is accepted, what is refused with file and line, and the cache."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import write_yolo_set

from utils.data import labels as module
from utils.data.label_rows import parse_labels
from utils.data.labels import label_path, list_images, load_labels
from utils.errors import UserError
from utils.settings.dataset import load_data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n\n", []),
        ("0 0.5 0.5 0.2 0.4\n", [[0, 0.5, 0.5, 0.2, 0.4]]),
        ("0 .5 .5 .2 .4 \r\n", [[0, 0.5, 0.5, 0.2, 0.4]]),
        ("1 .5 .5 .2 .4\n1 .5 .5 .2 .4\n", [[1, 0.5, 0.5, 0.2, 0.4]]),  # a repeated row counts once
        ("0 0.9 0.5 0.4 0.2", [[0, 0.85, 0.5, 0.3, 0.2]]),  # clipped at the right border
        ("1 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3", [[1, 0.3, 0.2, 0.4, 0.2]]),  # a polygon
    ],
)
def test_accepted(text: str, expected: list) -> None:
    np.testing.assert_allclose(parse_labels(text, 2), np.array(expected, np.float32).reshape(-1, 5), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.2", "line 1: 4 columns"),
        ("0 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.2 0.2", "line 2: class 2 is not one of 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "line 1: class -1"),
        ("0.5 0.5 0.5 0.2 0.2", "line 1: class 0.5"),
        ("0 320 240 50 50", "line 1: coordinates"),
        ("0 -0.1 0.5 0.2 0.2", "line 1: coordinates"),
        ("0 0.5 0.5 0 0.2", "line 1: coordinates"),
        ("0 nan 0.5 0.2 0.2", "line 1: a value is not finite"),
        ("inf 0.5 0.5 0.2 0.2", "line 1: a value is not finite"),
        ("cat 0.5 0.5 0.2 0.2", "line 1: not a number"),
        ("0 0.5 0.5 0.2 0.2 0.9", "line 1: 6 columns"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_labels(text, 2)


def test_label_path_changes_the_last_images_folder() -> None:
    assert label_path("/images/a/images/train/x.y.jpg") == Path("/images/a/labels/train/x.y.txt")


def test_bad_files_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_yolo_set(tmp_path, 8)
    images, labels = tmp_path / "images/train", tmp_path / "labels/train"
    (images / "000.png").write_bytes(b"")
    content = (images / "001.png").read_bytes()
    (images / "001.png").write_bytes(content[: len(content) // 3] if len(content) > 300 else b"no picture")
    (labels / "002.txt").write_text("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n")
    (labels / "003.txt").write_bytes(b"\xff\xfe\x00")
    (labels / "004.txt").unlink()
    with caplog.at_level(logging.INFO, logger="yolov5"):
        index = load_labels((images,), 2)
    names = [Path(index.file(i)).name for i in range(len(index))]
    assert {"002.png", "003.png", "000.png"}.isdisjoint(names) and "004.png" in names
    assert "002.txt: line 2: class 7" in caplog.text and "000.png: the file is empty" in caplog.text
    assert len(index.labels(names.index("004.png"))) == 0
    assert f"{len(index.problems)} left out" in caplog.text


def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = module._scan
    monkeypatch.setattr(module, "_scan", lambda *a: (calls.append(1), real(*a))[1])
    return calls


def test_cache_is_used_and_any_change_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo_set(tmp_path, 4)
    images, calls = tmp_path / "images/train", scans(monkeypatch)
    first, second = load_labels((images,), 2), load_labels((images,), 2)
    assert len(calls) == 1 and np.array_equal(first.values, second.values)
    (tmp_path / "labels/train/000.txt").write_text("1 0.25 0.25 0.5 0.5\n")
    assert load_labels((images,), 2).labels(0).tolist() == [[1, 0.25, 0.25, 0.5, 0.5]] and len(calls) == 2
    (images / "003.png").unlink()
    assert len(load_labels((images,), 2)) == 3 and len(calls) == 3
    stat = (tmp_path / "labels/train/001.txt").stat()
    os.utime(tmp_path / "labels/train/001.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    load_labels((images,), 2)
    assert len(calls) == 4
    load_labels((images,), 3)  # another number of classes
    assert len(calls) == 5


def test_lists_of_one_folder_do_not_push_each_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo_set(tmp_path, 4)
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for k, file in enumerate(lists):
        file.write_text(f"images/train/00{k}.png\n")
    calls = scans(monkeypatch)
    for file in lists * 2:
        load_labels((file,), 2)
    assert len(calls) == 2


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\x03\x04 cut off"])
def test_damaged_cache_is_made_anew(tmp_path: Path, junk: bytes) -> None:
    write_yolo_set(tmp_path, 3)
    load_labels((tmp_path / "images/train",), 2)
    (cache,) = tmp_path.rglob("*.cache.npz")
    cache.write_bytes(junk)
    assert len(load_labels((tmp_path / "images/train",), 2)) == 3
    assert cache.read_bytes() != junk


def test_list_of_images(tmp_path: Path) -> None:
    write_yolo_set(tmp_path, 3)
    listed = tmp_path / "train.txt"
    listed.write_text("\ufeffimages/train/001.png\n./images/train/000.png\n\n")
    assert [Path(p).name for p in list_images((listed,))] == ["000.png", "001.png"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list_images((tmp_path / "nowhere",))
    with pytest.raises(UserError, match="no images"):
        list_images((tmp_path,))


@pytest.mark.parametrize("chosen", [[0, 1, 2, 0, 1, 2, 0], [2], [1, 0], []])
def test_some_images_of_an_index(chosen: list[int], tmp_path: Path) -> None:
    write_yolo_set(tmp_path, 3)
    index = load_labels((tmp_path / "images/train",), 2)
    some = index.take(np.array(chosen, int))
    assert len(some) == len(chosen)
    for k, i in enumerate(chosen):
        assert some.file(k) == index.file(i) and np.array_equal(some.labels(k), index.labels(i))


def test_all_that_is_left_out_is_in_a_file_where_it_is_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load_data(write_yolo_set(tmp_path / "set", 9))
    for k in range(7):
        (tmp_path / f"set/labels/train/{k:03d}.txt").write_text("0 9 9 9 9\n")
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        file = tmp_path / "set/labels/train.left_out.txt"
        file.unlink(missing_ok=True)
        with caplog.at_level(logging.WARNING, logger="yolov5"):
            assert len(load_labels(data.train, data.nc)) == 2
        assert [line.split("/")[-1][:15] for line in file.read_text().splitlines()] == [
            f"{k:03d}.txt: line 1" for k in range(7)]  # fmt: skip
        assert f"... and 2 more, all in {file}" in caplog.text
    for k in range(7):
        (tmp_path / f"set/labels/train/{k:03d}.txt").unlink()
    load_labels(data.train, data.nc)
    assert not file.exists()


def test_a_linked_label_is_told_of_but_not_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_data(write_yolo_set(tmp_path / "set", 4))
    for k, (text, link) in enumerate((("a password", True), ("0 .5 .5 .1 .1\n7 .5 .5 .1 .1", True), ("a word", False))):
        file = tmp_path / f"set/labels/train/{k:03d}.txt"
        file.unlink()
        (tmp_path / f"{k}.txt" if link else file).write_text(text)
        if link:
            file.symlink_to(tmp_path / f"{k}.txt")
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        load_labels(data.train, data.nc)
    assert "000.txt: line 1: not a number" in caplog.text and "password" not in caplog.text
    assert "001.txt: line 2: class 7 is not one" in caplog.text
    assert "002.txt: line 1: not a number in 'a word'" in caplog.text


def test_memory_can_be_a_disk() -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        data = load_data(write_yolo_set(Path(folder) / "set", 2))
        assert len(list_images(data.train)) == 2


def test_folders_of_the_system_are_no_data_set() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    with pytest.raises(UserError, match="no images"):
        list_images((Path("/proc/self"),))


@pytest.mark.parametrize(
    ("kept", "hidden"),
    [
        (["a.png"], [".ipynb_checkpoints/a-checkpoint.png", ".Trash-0/files/old.png"]),
        (["a.png", "sub/b.png"], ["._a.png", "sub/._b.png", "__MACOSX/a.png", "sub/.hidden/c.png"]),
        (["a.png"], ["@eaDir/a.png/thumb.png", ".DS_Store.png"]),
    ],
)
def test_hidden_files_are_not_data(
    kept: list[str], hidden: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [*kept, *hidden]:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    with caplog.at_level(logging.INFO, logger="yolov5"):
        assert list_images((tmp_path / "set",)) == sorted(str(tmp_path / "set" / name) for name in kept)
    assert len(caplog.messages) == 1 and "hidden, not used" in caplog.messages[0]
    nested = tmp_path / ".cache"  # a set may lie below a hidden folder
    (tmp_path / "set").rename(nested)
    assert len(list_images((nested,))) == len(kept)


def test_images_that_cannot_be_read_here_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.heic", "b.HEIC", "c.nef", "d.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert len(list_images((tmp_path,))) == 1
    assert len(caplog.messages) == 1 and "not used: 2 .heic, 1 .nef images, which cannot be read" in caplog.messages[0]


def test_labels_beside_the_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_yolo_set(tmp_path, 4)
    images, labels = tmp_path / "images/train", tmp_path / "labels/train"
    whole = load_labels((images,), 2)
    for name in ("000.txt", "001.txt"):
        (labels / name).rename(images / name)
    (images / "002.txt").write_text("a caption, as labels/ has the labels")
    index = load_labels((images,), 2)
    assert np.array_equal(index.values, whole.values)
    assert index.notes == ("2 images have their label file beside them, none in labels/",)
    assert sum("beside them" in m for m in caplog.messages) == 1
    (images / "000.txt").write_text("0 0.5 0.5 0.1 0.1\n")  # noticed
    assert load_labels((images,), 2).labels(0).tolist() == [[0, 0.5, 0.5, np.float32(0.1), np.float32(0.1)]]


def test_the_cache_of_a_read_only_set_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_yolo_set(tmp_path / "set", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = module.atomic_write

    def write(path: Path, *args: object):
        if Path(path).is_relative_to(tmp_path / "set"):
            raise OSError(30, "Read-only file system")
        return real(path, *args)

    monkeypatch.setattr(module, "atomic_write", write)
    calls = scans(monkeypatch)
    for _ in range(2):
        assert len(load_labels((tmp_path / "set/images/train",), 2)) == 3
    assert len(calls) == 1 and len(list((tmp_path / "cache/yolov5-light").glob("*.cache.npz"))) == 1
    assert not list((tmp_path / "set").rglob("*.cache.npz"))
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "set"))
    load_labels((tmp_path / "set/images/val",), 2)
    assert any("cannot be written (Read-only file system)" in m for m in caplog.messages)
