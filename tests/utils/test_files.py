"""Files: run folders, atomic writes, finding a named file, walking folders."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from utils import files
from utils.errors import UserError
from utils.files import (
    MODEL_FOLDERS,
    ROOT,
    atomic_write,
    find_file,
    increment_path,
    model_yamls,
    newest,
    read_file,
    walk,
)


def test_run_folders_count_up(tmp_path: Path) -> None:
    names = [increment_path(tmp_path / "train/exp").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    assert increment_path(tmp_path / "train/exp", exist_ok=True).name == "exp"


def test_runs_started_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    got: list[Path] = []
    threads = [threading.Thread(target=lambda: got.append(increment_path(tmp_path / "exp"))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(got)) == 8


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        increment_path(tmp_path / "runs/train/exp")


def test_atomic_write_is_whole_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with atomic_write(file, "w") as f:
        f.write("old")
        assert not file.exists()
    with pytest.raises(ZeroDivisionError), atomic_write(file, "w") as f:
        f.write("new")
        raise ZeroDivisionError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n.yaml", "models/yolov5n.yaml"])
def test_find_file(name: str) -> None:
    assert find_file(name, ("models",), "--cfg").name == "yolov5n.yaml"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a", "models/a.yaml"),
        ("b.yaml", "models/hub/b.yaml"),
        ("c", "models/zoo/c.yaml"),
        ("models/c.yaml", "models/zoo/c.yaml"),  # where it was in older versions
        ("models/zoo/a.yaml", "models/a.yaml"),
        ("models/hub/twice.yaml", "models/hub/twice.yaml"),
        ("twice", "'twice' is ambiguous: there are models/hub/twice.yaml and models/zoo/twice.yaml"),
        ("models/twice.yaml", "is ambiguous"),
        ("other/a.yaml", "does not exist"),
        ("twic", "did you mean 'twice.yaml'"),
        ("nothing", "known: a.yaml, b.yaml, c.yaml, twice.yaml$"),
    ],
)
def test_model_yamls_are_found_in_all_their_folders(
    name: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ROOT", tmp_path)
    for file in ("a", "hub/b", "zoo/c", "hub/twice", "zoo/twice"):
        (tmp_path / f"models/{file}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"models/{file}.yaml").write_text("nc: 1\n")
    if found.startswith("models/"):
        assert find_file(name, MODEL_FOLDERS, "--cfg") == tmp_path / found
    else:
        with pytest.raises(UserError, match=found):
            find_file(name, MODEL_FOLDERS, "--cfg")


def test_no_two_model_yamls_share_a_name() -> None:
    assert len(model_yamls()) == sum(len(list((ROOT / folder).glob("*.yaml"))) for folder in MODEL_FOLDERS)


@pytest.mark.parametrize("name", [".", "/", "..", "a" * 300, "a/" * 3000 + "b"])
def test_names_that_are_no_file(name: str) -> None:
    with pytest.raises(UserError, match="is a folder|does not exist"):
        find_file(name, ("data",), "--data")


def test_a_folder_is_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give a yaml file"):
        find_file(tmp_path, ("data",), "--data")


def test_newest(tmp_path: Path) -> None:
    assert newest("*/best.pt", tmp_path) is None
    for k, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.pt").touch()
        os.utime(tmp_path / name / "best.pt", (1000 + k, 1000 + k))
    assert newest("*/best.pt", tmp_path) == tmp_path / "a/best.pt"


def test_only_plain_files_of_a_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_file(tmp_path / "a", 4)
    with pytest.raises(OSError):
        read_file(tmp_path, 5)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="is not a regular file"):
            read_file(tmp_path / "pipe", 5)
    if Path("/proc/version").exists():  # says that it has no size
        assert read_file("/proc/version", 10_000) == Path("/proc/version").read_bytes()


def test_a_folder_is_walked_once_by_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "set/images/deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("set/images/1.jpg", "set/images/deep/2.jpg", "elsewhere/3.jpg"):
        (tmp_path / name).write_text("")
    for link, target in (("a", "images"), ("images/up", "../.."), ("images/deep/out", "../../../elsewhere"),
                         ("b", "images/deep"), ("nowhere", "nothing")):  # fmt: skip
        (tmp_path / "set" / link).symlink_to(target, target_is_directory=True)
    found = {Path(f).relative_to(tmp_path).as_posix() for f in walk(tmp_path / "set") if f.endswith(".jpg")}
    assert {"set/images/1.jpg", "set/images/deep/2.jpg"} < found and len(found) == 3
    assert list(walk(tmp_path / "not there")) == []
