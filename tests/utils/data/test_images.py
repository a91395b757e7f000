"""Image files: what is read, what is refused, and shrinking."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.data.images import ImageError, decode_image, is_deep, read_image, shrink, write_image
from utils.data.labels import list_images


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


@pytest.mark.parametrize("size", [(320, 240), (320, 213), (250, 188), (499, 374), (100, 75), (33, 375), (1, 1)])
def test_shrinking_gives_opencvs_pixels(size: tuple[int, int]) -> None:
    im = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    np.testing.assert_array_equal(shrink(im, size), cv2.resize(im, size, interpolation=cv2.INTER_AREA))


def encoded(suffix: str, values: np.ndarray) -> bytes:
    done, content = cv2.imencode(suffix, values)
    assert done
    return content.tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("largest", "brightest"), [(255, 255), (1023, 255), (4095, 255), (2047, 127), (65535, 255)])
@pytest.mark.parametrize("channels", [1, 3])
def test_data_of_fewer_bits_in_16_bit_files(suffix: str, largest: int, brightest: int, channels: int) -> None:
    ramp = np.tile(np.linspace(0, largest, 96).astype(np.uint16)[None, :, None], (64, 1, channels))
    image = decode_image(encoded(suffix, ramp))
    assert image.dtype == np.uint8 and image.shape == (64, 96, 3) and image.max() == brightest
    assert (np.diff(image[0, :, 0].astype(int)) >= 0).all() and image.min() == 0
    assert is_deep(encoded(suffix, ramp)) and not is_deep(encoded(suffix, ramp.astype(np.uint8)))
    assert decode_image(encoded(suffix, ramp), 2).shape == (32, 48, 3)


def test_float_images_are_told(tmp_path: Path) -> None:
    file = tmp_path / "f.tif"
    Image.fromarray(np.ones((20, 30), np.float32)).save(file)
    with pytest.raises(ImageError, match="floating-point"):
        read_image(file)


@pytest.mark.parametrize("cut", [4, 8, 9, 20, 60])
def test_a_cut_off_tiff_is_refused(cut: int) -> None:
    content = encoded(".tif", np.full((20, 30), 4095, np.uint16))
    with pytest.raises(ImageError):
        decode_image(content[:cut])


@pytest.mark.parametrize("suffix", [".jfif", ".jp2", ".avif"])
def test_rarer_suffixes_are_images(suffix: str, tmp_path: Path) -> None:
    im = np.full((40, 60, 3), 90, np.uint8)
    content = encoded(".jpg", im) if suffix == ".jfif" else b""
    if not content:
        try:
            Image.fromarray(im).save(tmp_path / f"x{suffix}")
        except (KeyError, OSError, ValueError) as e:
            pytest.skip(f"this Pillow cannot write {suffix}: {e}")
        content = (tmp_path / f"x{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(content)
    try:
        assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - 90).max() < 5
    except ImageError:
        assert suffix != ".jfif"  # OpenCV may be built without the others
    assert [Path(f).name for f in list_images((tmp_path,)) if Path(f).stem == "a"] == [f"a{suffix}"]
