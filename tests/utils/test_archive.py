"""Members of hostile and broken zips."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from utils.archive import Archive, ArchiveError


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as z:
        for name, data in members.items():
            z.writestr(name, data)
    return path


def test_reads_plain_members(tmp_path: Path) -> None:
    with Archive(make_zip(tmp_path / "a.zip", {"d/": b"", "d/a.xml": b"abc", "ümlaut.xml": b"d"})) as archive:
        assert archive.members == ["d/a.xml", "ümlaut.xml"] and archive.refused == []
        assert archive.size("d/a.xml") == 3 and archive.read("d/a.xml", 3) == b"abc"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil.xml", "leaves its folder"),
        ("VOC/../../evil.xml", "leaves its folder"),
        ("/etc/evil.xml", "absolute"),
        ("C:/evil.xml", "absolute"),
        ("..\\evil.xml", "backslash"),
        ("\\\\host\\share\\evil.xml", "backslash"),
    ],
)
def test_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    archive = Archive(make_zip(tmp_path / "a.zip", {name: b"x", "good.xml": b"y"}))
    assert archive.members == ["good.xml"]
    ((refused, why),) = archive.refused
    assert refused == name and reason in why


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(stat.S_IFLNK | 0o777, "symbolic link"), (stat.S_IFIFO | 0o644, "not a regular file"), (stat.S_IFREG | 0o644, "")],
)
def test_links_and_pipes_are_refused(tmp_path: Path, mode: int, reason: str) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr(info, "/etc/passwd")
    archive = Archive(tmp_path / "a.zip")
    assert archive.members == ([] if reason else ["link"])
    assert all(reason in why for _, why in archive.refused)


def test_bombs_are_not_unpacked(tmp_path: Path) -> None:
    archive = Archive(make_zip(tmp_path / "a.zip", {"b.xml": bytes(3_000_000)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(ArchiveError, match="too large"):
        archive.read("b.xml", 1_000_000)
    with pytest.raises(ArchiveError, match="bomb"):
        archive.read("b.xml", 100_000_000)


def test_size_that_lies_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"b.xml": bytes(500_000)}, zipfile.ZIP_DEFLATED)
    true, told = (500_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    data = path.read_bytes()
    assert data.count(true) == 2  # in the local header and in the directory
    path.write_bytes(data.replace(true, told))
    with pytest.raises(ArchiveError, match="damaged"):
        Archive(path).read("b.xml", 1_000_000)


def test_bad_crc_spoils_only_its_member(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"AAAAAAAA", "b": b"BBBBBBBB"})
    path.write_bytes(path.read_bytes().replace(b"AAAAAAAA", b"AAAAxAAA"))
    archive = Archive(path)
    with pytest.raises(ArchiveError, match="damaged"):
        archive.read("a", 100)
    assert archive.read("b", 100) == b"BBBBBBBB"


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_zip_is_one_clear_error(tmp_path: Path, keep: float) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{i}.xml": os.urandom(100) for i in range(20)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else len(data) * keep)])
    with pytest.raises(ArchiveError, match="not a complete zip"):
        Archive(path)


def test_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    archive = Archive(path)
    assert archive.members == [] and "encrypted" in archive.refused[0][1]


def test_member_named_twice_is_reported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z, pytest.warns(UserWarning, match="Duplicate"):
        z.writestr("a", b"first")
        z.writestr("a", b"second")
    archive = Archive(tmp_path / "a.zip")
    assert archive.read("a", 100) == b"first" and "twice" in archive.refused[0][1]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such file"):
        Archive(tmp_path / "none.zip")
