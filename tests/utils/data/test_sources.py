"""What detect.py can look at."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.data import sources
from utils.data.sources import LoadImages, LoadStreams, frame_rate, list_media, open_source
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


def damaged(file: Path, frames: set[int]) -> Path:
    """Overwrite the pixel data of these frames of an MJPG .avi, counted from 1."""
    content = bytearray(file.read_bytes())
    at = content.index(b"movi")
    for number in range(1, 7):
        at = content.index(b"00dc", at) + 8
        if number in frames:
            size = struct.unpack_from("<I", content, at - 4)[0]
            content[at : at + size] = bytes(size)
    file.write_bytes(content)
    return file


def counted(file: Path, count: int) -> Path:
    """Write another number of frames into the header of an .avi."""
    content = bytearray(file.read_bytes())
    struct.pack_into("<I", content, content.index(b"avih") + 24, count)
    struct.pack_into("<I", content, content.index(b"strh") + 40, count)
    file.write_bytes(content)
    return file


def cut(file: Path, share: float) -> Path:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    return file


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


@pytest.mark.parametrize(
    ("change", "stride", "expected", "said"),
    [
        (lambda f: f, 1, [1, 2, 3, 4, 5, 6], "v.avi: 6 of 6 frames"),
        (lambda f: damaged(f, {3}), 1, [1, 2, 4, 5, 6], "5 of 6 frames could be read"),
        (lambda f: damaged(f, {1}), 1, [2, 3, 4, 5, 6], "5 of 6 frames could be read"),
        (lambda f: damaged(f, {2, 3, 4}), 1, [1, 5, 6], "3 of 6 frames could be read"),
        (lambda f: damaged(f, {6}), 1, [1, 2, 3, 4, 5], "5 of 6 frames could be read; the file ends after frame 5"),
        (lambda f: damaged(f, {2}), 2, [1, 3, 5], "5 of 6 frames could be read, 3 of them used (--vid-stride 2)"),
        (lambda f: damaged(f, {3}), 2, [1, 5], "5 of 6 frames could be read, 2 of them used (--vid-stride 2)"),
        (lambda f: counted(f, 10**9), 1, [1, 2, 3, 4, 5, 6], "6 of 1000000000 frames could be read; the file ends"),
        (lambda f: counted(f, 0), 1, [1, 2, 3, 4, 5, 6], "v.avi: 6 of 6 frames"),
        (lambda f: counted(damaged(f, {3}), 0), 1, [1, 2, 4, 5, 6], "5 of 6 frames could be read"),
        (lambda f: counted(f, 3), 1, [1, 2, 3, 4, 5, 6], "v.avi: 6 of 6 frames"),
        (lambda f: damaged(f, {1, 2, 3, 4, 5, 6}), 1, [], "no frame could be read from this video; the file is cut"),
        (lambda f: cut(f, 0), 1, [], "no frame could be read from this video; the file is empty"),
    ],
)
def test_damaged_video(change, stride: int, expected: list[int], said: str, tmp_path: Path, caplog) -> None:
    """Frames keep their numbers, the video ends, and it is said how many frames were read."""
    caplog.set_level("INFO", "yolov5")
    loader = LoadImages(str(change(video(tmp_path / "v.avi"))), 64, vid_stride=stride)
    seen = [(loader.frame, round(im0.mean() / 20) + 1) for _, _, im0, _, _ in loader]
    assert seen == [(n, n) for n in expected]  # the grey value of a frame is its number
    assert said in caplog.text and caplog.text.count("v.avi") == 1
    incomplete = "could be read" in said and bool(expected)
    assert (said.partition(" could")[0] in loader.left_out()) == incomplete


def test_a_video_that_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = LoadImages(str(cut(video(tmp_path / "v.avi", 12), 0.85)), 64)
    numbers = [loader.frame for _ in loader]
    assert numbers == list(range(1, len(numbers) + 1)) and 1 < len(numbers) < 12
    assert f"{len(numbers)} of 12 frames could be read; the file ends after frame {len(numbers)}" in caplog.text


def test_a_gif_and_a_video_of_one_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yolov5")
    frames = [Image.new("RGB", (32, 32), (60 * k, 0, 0)) for k in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40)
    video(tmp_path / "one.avi", 1)
    loader = LoadImages(str(tmp_path), 64)
    assert [(Path(p).name, loader.frame) for p, *_ in loader] == [*(("a.gif", n) for n in (1, 2, 3)), ("one.avi", 1)]
    assert "a.gif: 3 of 3 frames" in caplog.text and "one.avi: 1 of 1 frames" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [(25.0, 25.0), (0.5, 0.5), (0.0, 30.0), (-1.0, 30.0), (90000.0, 30.0), (float("nan"), 30.0), (float("inf"), 30.0)],
)
def test_frame_rate(given: float, expected: float) -> None:
    """OpenCV writes no video at 90000 frames per second, and would never end at infinitely many."""
    assert frame_rate(SimpleNamespace(get=lambda _: given)) == expected


def test_a_video_file_listed_as_a_stream_continues_after_a_damaged_frame(tmp_path: Path, caplog) -> None:
    (tmp_path / "a.streams").write_text(str(damaged(video(tmp_path / "v.avi"), {1, 3})))
    loader = open_source(str(tmp_path / "a.streams"), imgsz=64)
    assert [round(frames[0].mean() / 20) + 1 for _, _, frames, _, _ in loader] == [2, 4, 5, 6]
    assert "v.avi: 4 of 6 frames could be read" in caplog.text


def test_a_stream_that_changes_its_size(tmp_path: Path) -> None:
    """As a camera may after a reconnect, here while another stream keeps its size."""
    (tmp_path / "a.streams").write_text(f"{video(tmp_path / 'a.avi', 2)}\n{video(tmp_path / 'b.avi', 2)}\n")
    loader = open_source(str(tmp_path / "a.streams"), imgsz=64)
    loader._frames[1] = np.zeros((80, 60, 3), np.uint8)
    assert next(iter(loader))[1].shape == (2, 3, 64, 64)
    loader.close()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("rtsp://cam/1\nrtmp://cam/2\n", "not files .line 1: rtsp://cam/1.; name it .streams, as in .*x.streams"),
        ("\nHTTP://cam/video.mjpg", "line 2: HTTP://cam/video.mjpg.; name it .streams"),
        ("https://cam/a.mp4\n0", "name it .streams"),
        ("https://x.org/a.jpg", "contains no image or video"),
        ("http://[\nrtsp://[x", "contains no image or video"),
        (f"rtsp://{'x' * 5000}", "name it .streams"),
    ],
)
def test_a_list_of_streams_without_its_suffix(lines: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(lines)
    with pytest.raises(UserError, match=message) as e:
        open_source(str(tmp_path / "x.txt"))
    assert len(str(e.value)) < 1000 and "\n" not in str(e.value)


def test_a_list_of_images_and_others(media: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line for each kind of what is left out."""
    (media / "x.txt").write_text("a.jpg\nrtsp://cam/1\nhttps://x.org/a.jpg\nmissing.jpg\nb.PNG\nrtsp://cam/2\n")
    assert [Path(f).name for f in list_media(str(media / "x.txt"))] == ["a.jpg", "b.PNG"]
    assert [r.getMessage().partition("x.txt: ")[2][:36] for r in caplog.records] == [
        "2 of 6 lines are streams and skipped", "skipped 2 of 6 lines: https://x.org/"]  # fmt: skip


def test_what_a_folder_holds_besides(media: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(media / "c.jpg").rename(media / "._c.jpg")
    (media / "d.HEIC").write_bytes(b"x")
    assert [Path(f).name for f in list_media(str(media))] == ["a.jpg", "b.PNG", "broken.jpg"]
    assert "formats that cannot be read: 1, such as d.HEIC" in caplog.text and len(caplog.records) == 1


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


def test_16_bit_images_are_scaled_and_counted(tmp_path: Path) -> None:
    for k in range(2):
        cv2.imwrite(str(tmp_path / f"deep{k}.png"), np.full((40, 60), 4095 >> k, np.uint16))
    cv2.imwrite(str(tmp_path / "plain.png"), np.full((40, 60), 90, np.uint8))
    source = LoadImages(str(tmp_path), img_size=64, stride=32)
    assert [int(im0.max()) for _, _, im0, _, _ in source] == [255, 127, 90]
    assert "; 2 images of 16 bits per channel were scaled" in source.left_out()
