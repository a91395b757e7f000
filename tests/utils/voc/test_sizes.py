"""The size in an annotation and that of its image: which boxes are scaled, turned, kept or left out."""

from __future__ import annotations

import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from my_tools.voc2yolo import run
from utils.data.images import decode_image
from utils.voc.files import FolderFiles
from utils.voc.sizes import _similar, read_header, turn_box

PIXELS = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)


def encode(orientation: int | None = None, form: str = "JPEG", pixels: np.ndarray = PIXELS) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.fromarray(pixels).save(buffer, form, exif=exif)
    return buffer.getvalue()


def xml(size: tuple[int, int] | None, *boxes: tuple[float, ...]) -> str:
    side = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    things = "".join(
        "<object><name>cat</name><bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for box in boxes
    )
    return f"<annotation><filename>a.jpg</filename>{side}{things}</annotation>"


def convert(folder: Path, image: bytes, annotation: str | dict[str, str], suffix: str = ".jpg", **options):
    """Convert a dataset of one image and return its label rows (None if it is left out) and its problems."""
    for name, text in (annotation if isinstance(annotation, dict) else {"a": annotation}).items():
        for kind, data, end in (("JPEGImages", image, suffix), ("Annotations", text.encode(), ".xml")):
            (folder / "set" / kind).mkdir(parents=True, exist_ok=True)
            (folder / "set" / kind / f"{name}{end}").write_bytes(data)
    done = run(source=folder / "set", out=folder / "out", split=[1, 0], **options)
    rows = {p.stem: p.read_text().split("\n")[:-1] for p in (folder / "out/labels/train").glob("*.txt")}
    return rows.get("a") if isinstance(annotation, str) else rows, [reason for _, reason in done.problems]


BOX = (11, 21, 50, 60)  # in an image of 100 x 80: 0.3 0.5 0.4 0.5
CASES = {  # EXIF orientation, size in the xml, box, label, reason
    "equal": (None, (100, 80), BOX, "0.3 0.5 0.4 0.5", ""),
    "swapped": (None, (80, 100), BOX, "0.3 0.5 0.4 0.5", "<size> has width and height swapped"),
    "twice as large": (None, (200, 160), BOX, "0.15 0.25 0.2 0.25", "boxes scaled"),
    "half as large": (None, (50, 40), (11, 11, 30, 30), "0.4 0.5 0.4 0.5", "boxes scaled"),
    "scaled, with a rounded side": (None, (33, 26), (1, 1, 33, 13), "0.5 0.25 1 0.5", "boxes scaled"),
    "larger and swapped": (None, (160, 200), BOX, "0.15 0.25 0.2 0.25", "boxes scaled, .*swapped"),
    "zero": (None, (0, 0), BOX, "0.3 0.5 0.4 0.5", "no <size> in the xml"),
    "missing": (None, None, BOX, "0.3 0.5 0.4 0.5", "no <size> in the xml"),
    "one side": (None, (100, 0), BOX, "0.3 0.5 0.4 0.5", "no <size> in the xml"),
    "unfit, boxes inside": (None, (300, 90), BOX, "0.3 0.5 0.4 0.5", "<size> does not fit the image, but all boxes do"),
    "smaller than its boxes": (None, (50, 40), BOX[:2] + (90, 60), "0.5 0.5 0.8 0.5", "does not fit .*, but all boxes"),
    "a size of one pixel": (None, (1, 1), BOX, "0.3 0.5 0.4 0.5", "<size> does not fit the image, but all boxes do"),
    "EXIF 6, stored": (6, (100, 80), (61, 11, 90, 30), "0.75 0.75 0.25 0.3", "turned as the image: EXIF orientation 6"),
    "EXIF 8, stored": (8, (100, 80), (61, 11, 90, 30), "0.25 0.25 0.25 0.3", "turned as the image: EXIF orientation 8"),
    "EXIF 5, stored": (5, (100, 80), (61, 11, 90, 30), "0.25 0.75 0.25 0.3", "turned as the image: EXIF orientation 5"),
    "EXIF 7, stored": (7, (100, 80), (61, 11, 90, 30), "0.75 0.25 0.25 0.3", "turned as the image: EXIF orientation 7"),
    "EXIF 6, stored, twice": (6, (200, 160), (121, 21, 180, 60), "0.75 0.75 0.25 0.3", "boxes turned"),
    "EXIF 6, turned": (6, (80, 100), (51, 61, 70, 90), "0.75 0.75 0.25 0.3", ""),
    "EXIF 6, turned, twice": (6, (160, 200), (101, 121, 140, 180), "0.75 0.75 0.25 0.3", "boxes scaled"),
    "EXIF 6, no size": (6, None, (51, 61, 70, 90), "0.75 0.75 0.25 0.3", "no <size>"),
    "EXIF 6, no size, stored": (6, None, (61, 11, 90, 30), "0.75 0.75 0.25 0.3", "no <size> .*: boxes turned"),
    "EXIF 3": (3, (100, 80), BOX, "0.3 0.5 0.4 0.5", "boxes taken as those of the turned image: EXIF orientation 3"),
    "EXIF 1": (1, (100, 80), BOX, "0.3 0.5 0.4 0.5", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_size_in_the_xml_and_size_of_the_image(tmp_path: Path, case: str) -> None:
    orientation, size, box, label, reason = CASES[case]
    rows, problems = convert(tmp_path, encode(orientation), xml(size, box))
    assert rows == [f"0 {label}"]
    assert len(problems) == bool(reason)
    assert all(re.search(reason, problem) for problem in problems), problems


@pytest.mark.parametrize("size", [(300, 90), (80, 100), (81, 100)])
def test_boxes_outside_of_an_image_of_another_size_are_left_out(tmp_path: Path, size: tuple[int, int]) -> None:
    annotations = {"a": xml(size, (11, 21, 50, 95)), "good": xml((100, 80), BOX)}
    rows, problems = convert(tmp_path, encode(), annotations)
    assert set(rows) == {"good"}
    width, height = size
    assert problems == [
        f"<size> does not fit the image, and boxes lie outside of it: {width} x {height}, image 100 x 80"
    ]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_the_pixels_do_in_training(tmp_path: Path, orientation: int, form: str) -> None:
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[10:30, 60:90] = 255
    data = encode(orientation, form, pixels)
    (tmp_path / "a.jpg").write_bytes(data)
    image = decode_image(data)
    header = read_header(FolderFiles(tmp_path), "a.jpg")
    assert header.size == (image.shape[1], image.shape[0])
    if header.orientation > 1 or orientation == 1:  # whether other formats than JPEG are turned depends on OpenCV
        x0, y0, x1, y1 = turn_box((60, 10, 90, 30), header.stored, header.orientation)
        seen = np.argwhere(image[:, :, 0] > 127)
        assert [y0, x0, y1, x1] == [*seen.min(0), *(seen.max(0) + 1)]


def test_a_header_beyond_the_first_bytes_is_found(tmp_path: Path) -> None:
    jpeg = encode()
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + comment * 6 + jpeg[2:])
    assert read_header(FolderFiles(tmp_path), "a.jpg").stored == (100, 80)


def test_an_image_that_cannot_be_decoded_keeps_the_size_in_the_xml(tmp_path: Path) -> None:
    rows, problems = convert(tmp_path, b"no picture", xml((100, 80), BOX))
    assert rows == ["0 0.3 0.5 0.4 0.5"]
    assert problems[0].startswith("<size> cannot be compared with the image: image cannot be decoded")


@pytest.mark.parametrize(
    ("a", "b", "similar"),
    [
        ((200, 160), (100, 80), True),
        ((333, 250), (1333, 1000), True),
        ((1333, 1000), (333, 250), True),
        ((640, 480), (640, 483), False),
        ((1, 1), (500, 375), False),
        ((4000, 3000), (4000, 2250), False),
    ],
)
def test_proportions(a: tuple[int, int], b: tuple[int, int], similar: bool) -> None:
    assert _similar(a, b) == similar


# Where pixels are counted from

FORMULAS = {  # boxes by file, options, label of a, what is said
    "from 1": ({"a": (11, 21, 50, 60)}, {}, "0.3 0.5 0.4 0.5", ""),
    "CVAT": ({"a": (10.0, 20.0, 50.0, 60.0), "b": (1.5, 2, 30, 40)}, {}, "0.3 0.5 0.4 0.5",
             "1 of 2 xml files have a coordinate that is 0 or has a fraction: pixels are counted from 0; --box exact"),
    "a zero": ({"a": (0, 20, 50, 60)}, {}, "0.25 0.5 0.5 0.5", "pixels are counted from 0; --box exact counts from 1"),
    "exact is forced": ({"a": (10.5, 20, 50, 60)}, {"box": "exact"}, "0.2975 0.4938 0.405 0.5125", ""),
    "zero is forced": ({"a": (10, 20, 50, 60)}, {"box": "zero"}, "0.3 0.5 0.4 0.5", ""),
    "a fraction in VOC's own": ({"a": (11, 21, 50, 60), "b": (45.7, 2, 60, 40), "c": (1, 5, 9, 9), "d": (4, 1, 9, 9)},
                                {}, "0.3 0.5 0.4 0.5", "pixels are counted from 1; --box zero counts from 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMULAS)
def test_where_pixels_are_counted_from(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    boxes, options, label, told = FORMULAS[case]
    rows, _ = convert(tmp_path, encode(), {name: xml((100, 80), box) for name, box in boxes.items()}, **options)
    assert [float(v) for v in rows["a"][0].split()[1:]] == pytest.approx([float(v) for v in label.split()], abs=1e-4)
    output = capsys.readouterr().out
    assert told in output and ("pixels are counted" in output) == bool(told)


def test_official_voc_counts_from_1_in_spite_of_its_fractions(tmp_path: Path) -> None:
    for kind, data in (("JPEGImages/a.png", cv2.imencode(".png", PIXELS)[1].tobytes()),
                       ("Annotations/a.xml", xml((100, 80), (45.7, 1, 60, 40)).replace("cat<", "dog<").encode()),
                       ("ImageSets/Main/train.txt", b"a\n")):  # fmt: skip
        (tmp_path / "VOC2012" / kind).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "VOC2012" / kind).write_bytes(data)
    run(source=tmp_path / "VOC2012", out=tmp_path / "out")
    row = (tmp_path / "out/labels/train2012/a.txt").read_text().split()
    assert [float(v) for v in row] == pytest.approx([11, (44.7 + 60) / 200, 0.25, (60 - 44.7) / 100, 0.5])
