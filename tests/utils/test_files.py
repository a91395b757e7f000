"""Files: run folders, whole-or-nothing writes, finding a named file, reading pictures."""

from __future__ import annotations

import os
import stat
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils import files
from utils.data.images import ImageError, decode_image, read_image, shrink, write_image
from utils.draw.boxes import Annotator, color_of, crop_box
from utils.errors import UserError, did_you_mean
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
from utils.system.console import LOGGER


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


@pytest.mark.parametrize(("word", "hint"), [("batchsize", "batch_size"), ("CONV", "Conv"), ("qqq", "")])
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["batch_size", "Conv"]) == (f" (did you mean '{hint}'?)" if hint else "")


def test_pictures_with_odd_names_round_trip(tmp_path: Path) -> None:
    im = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    file = tmp_path / "Bild ü 图片.png"
    write_image(file, im)
    assert np.array_equal(read_image(file), im)


def jpeg(noise: int = 200) -> bytes:
    im = np.random.default_rng(0).integers(0, noise, (64, 64, 3), np.uint8)
    return cv2.imencode(".jpg", im)[1].tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"GIF", "not an image"), (jpeg()[: len(jpeg()) // 2], "cut off"), (jpeg()[:2], "cut off")],
)
def test_unusable_pictures(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(content)


def test_whole_jpeg_with_a_tail_is_fine() -> None:
    assert decode_image(jpeg() + b"\0" * 10_000).shape == (64, 64, 3)  # phones append films of megabytes


def chunked_png(extra: bytes) -> bytes:
    """A PNG with a chunk behind its header."""
    whole = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    return whole[:33] + len(extra[4:]).to_bytes(4, "big") + extra + zlib.crc32(extra).to_bytes(4, "big") + whole[33:]


@pytest.mark.parametrize(
    "content",
    [
        jpeg(),
        jpeg()[:2] + b"\xff\xff" + jpeg()[2:],  # bytes that fill a gap
        jpeg()[:2] + b"\xff\x01" + jpeg()[2:],  # a marker without a segment
        chunked_png(b"tEXta\0b"),
        chunked_png(b"zTXta\0\0" + zlib.compress(bytes(2**22))),  # Pillow refuses to unpack it
        *(cv2.imencode(s, np.zeros((64, 64, 3), np.uint8))[1].tobytes() for s in (".bmp", ".webp", ".tiff")),
    ],
)
def test_the_size_is_known_before_a_picture_is_unpacked(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode_image(content).shape == (64, 64, 3)
    monkeypatch.setattr("utils.data.images.MOST_PIXELS", 4000)
    with pytest.raises(ImageError, match="more than 4,000 pixels"):
        decode_image(content)


def test_cut_off_jpeg_with_a_whole_thumbnail() -> None:
    thumbnail = b"\xff\xe1" + (len(jpeg()) + 2).to_bytes(2, "big") + jpeg()
    whole = jpeg()[:2] + thumbnail + jpeg()[2:]
    assert decode_image(whole).shape == (64, 64, 3)
    with pytest.raises(ImageError, match="cut off"):
        decode_image(whole[: -len(jpeg()) // 2])


def test_messages_cannot_steer_the_terminal(capsys: pytest.CaptureFixture) -> None:
    LOGGER.warning("file \x1b]0;title\x07 \x1b[2J\nnext")
    assert capsys.readouterr().out == "WARNING: file \\x1b]0;title\\x07 \\x1b[2J\\nnext\n"


def test_annotator_draws_where_it_should() -> None:
    painter = Annotator(np.zeros((100, 100, 3), np.uint8), line_width=1)
    painter.box_label((20, 40, 60, 80), "", (0, 0, 255))
    ys, xs = np.nonzero(painter.result()[..., 2] > 128)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (20, 40, 60, 80)


@pytest.mark.parametrize("label", ["person 0.87", "人 0.87", "é"])
@pytest.mark.parametrize("box", [(0, 0, 5, 5), (90, 90, 100, 100), (-10, -10, 200, 200)])
def test_labels_of_any_alphabet_fit_into_the_picture(label: str, box: tuple) -> None:
    painter = Annotator(np.zeros((100, 160, 3), np.uint8))
    painter.box_label(box, label, color_of(3))
    assert painter.result().shape == (100, 160, 3) and painter.result().any()


def test_crop_is_the_box_with_a_margin() -> None:
    im = np.arange(100 * 100, dtype=np.int32).reshape(100, 100)
    crop = crop_box(np.stack((im,) * 3, -1), (40, 40, 60, 60), gain=1.0, pad=10)
    assert crop.shape[:2] == (31, 31) and crop[0, 0, 0] == 35 * 100 + 35
    assert crop_box(np.zeros((10, 10, 3)), (-5, -5, 3, 3)).size > 0


@pytest.mark.parametrize("size", [(320, 240), (320, 213), (250, 188), (499, 374), (100, 75), (33, 375), (1, 1)])
def test_shrinking_gives_opencvs_pixels(size: tuple[int, int]) -> None:
    im = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    np.testing.assert_array_equal(shrink(im, size), cv2.resize(im, size, interpolation=cv2.INTER_AREA))


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
