"""What detect.py can look at."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from utils.data import sources
from utils.data.sources import LoadImages, LoadStreams, open_source
from utils.errors import UserError


def picture(path: Path, value: int = 100) -> Path:
    cv2.imwrite(str(path), np.full((60, 80, 3), value, np.uint8))
    return path


def video(path: Path, frames: int = 6) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 60))
    assert writer.isOpened()
    for k in range(frames):
        writer.write(np.full((60, 80, 3), 20 * k, np.uint8))
    writer.release()
    return path


@pytest.fixture
def media(tmp_path: Path) -> Path:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.PNG")
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("a.jpg\nmissing.jpg\nb.PNG\n")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a.jpg", ["a.jpg"]),
        ("", ["a.jpg", "b.PNG"]),
        ("*.jpg", ["a.jpg"]),
        ("**/*.PNG", ["b.PNG"]),
        ("list.txt", ["a.jpg", "b.PNG"]),
    ],
)
def test_pictures(media: Path, source: str, names: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        loaded = list(open_source(str(media / source), imgsz=64, stride=32))
    assert [Path(p).name for p, *_ in loaded] == names
    for _, im, im0, capture, text in loaded:
        assert im.shape == (3, 64, 64) and im0.shape == (60, 80, 3) and capture is None and text.startswith("image ")
    if source in ("", "*.jpg"):
        assert "skipped" in caplog.text and "broken.jpg" in caplog.text
    if source == "list.txt":
        assert "missing.jpg does not exist" in caplog.text


@pytest.mark.parametrize(("stride", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (10, [1])])
def test_video(tmp_path: Path, stride: int, expected: list[int]) -> None:
    loader = LoadImages(str(video(tmp_path / "v.avi")), 64, vid_stride=stride)
    seen = [(loader.frame, loader.mode, im0.shape, capture is not None) for _, _, im0, capture, _ in loader]
    assert seen == [(n, "video", (60, 80, 3), True) for n in expected]


def test_streams_end_with_their_sources(tmp_path: Path) -> None:
    listed = tmp_path / "cameras.streams"
    listed.write_text(f"{video(tmp_path / 'a.avi')}\n{video(tmp_path / 'b.avi', 4)}\n")
    loader = open_source(str(listed), imgsz=64)
    assert isinstance(loader, LoadStreams) and len(loader) == 2
    rounds = [(paths, batch.shape, len(frames)) for paths, batch, frames, _, _ in loader]
    assert 4 <= len(rounds) <= 12
    assert all(shape == (2, 3, 64, 64) and n == 2 for _, shape, n in rounds)
    assert not any(t.is_alive() for t in loader._threads)


@pytest.mark.parametrize("line", ["/dev/null", "rtsps://127.0.0.1:9/x", "srt://127.0.0.1:9", "x" * 5000])
def test_lines_of_a_list_of_streams(line: str, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices and all schemes go to OpenCV, which here opens nothing; a line of any length is one error."""
    monkeypatch.setattr(sources.cv2, "VideoCapture", lambda source: SimpleNamespace(isOpened=lambda: False))
    (media / "a.streams").write_text(line)
    message = "not a stream" if line.startswith("xx") else "this stream cannot be opened"
    with pytest.raises(UserError, match=message) as e:
        open_source(str(media / "a.streams"))
    assert len(str(e.value)) < 600


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jpg", "no such file"),
        ("notes.md", "not a known image or video format"),
        ("empty", "contains no image or video"),
        ("screen 0", "screenshots are not supported"),
        ("bad.streams", "not a stream"),
    ],
)
def test_nothing_to_look_at(media: Path, source: str, message: str) -> None:
    (media / "empty").mkdir()
    (media / "bad.streams").write_text(str(media / "missing.avi"))
    with pytest.raises(UserError, match=message):
        open_source(source if source.startswith("screen") else str(media / source))
