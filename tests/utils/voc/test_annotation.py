"""One VOC annotation: what is read, what is refused, and where its boxes end up."""

from __future__ import annotations

from pathlib import Path

import pytest

from my_tools.voc2yolo import run
from utils.errors import UserError
from utils.voc.annotation import (
    VOC_NAMES,
    VocError,
    doubt,
    guess_encoding,
    pixel_box,
    read_voc_xml,
    yolo_line,
)

OBJECT = (
    "<object><name>{name}</name>{extra}<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>60</ymax>"
    "</bndbox></object>"
)
SIZE = "<size><width>100</width><height>80</height><depth>3</depth></size>"


def xml(inside: str, head: str = "") -> bytes:
    return f"{head}<annotation><filename>a.jpg</filename>{inside}</annotation>".encode()


def test_reads_size_objects_and_difficult() -> None:
    text = SIZE + OBJECT.format(name=" dog ", extra="") + OBJECT.format(name="cat", extra="<difficult>1</difficult>")
    voc = read_voc_xml(xml(text))
    assert (voc.filename, voc.width, voc.height, voc.problems) == ("a.jpg", 100, 80, [])
    assert [(o.name, o.box, o.difficult) for o in voc.objects] == [
        ("dog", (10, 20, 30, 60), False),
        ("cat", (10, 20, 30, 60), True),
    ]


def test_parts_of_an_object_are_not_the_object() -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    (thing,) = read_voc_xml(xml(OBJECT.format(name="person", extra=part))).objects
    assert (thing.name, thing.box) == ("person", (10, 20, 30, 60))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("", (0, 0)),
        ("<size><width>0</width><height>80</height></size>", (0, 80)),
        ("<size><width>-5</width><height>abc</height></size>", (0, 0)),
        ("<size><width>1e30</width><height>nan</height></size>", (0, 0)),
        ("<size><width>640.0</width><height>480</height></size>", (640, 480)),
    ],
)
def test_size_that_is_no_size_is_zero(size: str, expected: tuple[int, int]) -> None:
    voc = read_voc_xml(xml(size))
    assert (voc.width, voc.height) == expected


def test_a_name_is_one_line() -> None:
    text = OBJECT.format(name="traffic\n light", extra="")
    read = read_voc_xml(f"<annotation>{text}</annotation>".encode())
    assert [thing.name for thing in read.objects] == ["traffic light"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (OBJECT.format(name="", extra=""), "object without a <name>"),
        (OBJECT.format(name="dog\x7f", extra=""), "holds a control character"),
        ("<object><name>dog</name></object>", "no <xmin>"),
        (OBJECT.format(name="dog", extra="").replace("<ymax>60</ymax>", ""), "no <ymax>"),
        (OBJECT.format(name="dog", extra="").replace(">30<", ">nan<"), "not a number: xmax 'nan'"),
        (OBJECT.format(name="dog", extra="").replace(">30<", ">1e999<"), "not a number"),
        (OBJECT.format(name="dog", extra="").replace(">30<", ">thirty<"), "not a number"),
    ],
)
def test_unusable_object_is_named_and_spares_the_others(text: str, reason: str) -> None:
    voc = read_voc_xml(xml(text + OBJECT.format(name="cat", extra="")))
    assert [o.name for o in voc.objects] == ["cat"]
    assert len(voc.problems) == 1 and reason in voc.problems[0]


BOMB = "<!DOCTYPE a [<!ENTITY b 'xx'><!ENTITY c '&b;&b;'>]>"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be parsed"),
        (b"\x00\x01\x02", "cannot be parsed"),
        (b"<annotation><object>", "cannot be parsed"),
        (b"<html></html>", "not a VOC annotation"),
        (xml("&c;", BOMB), "entities"),
        (xml("&e;", "<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/hostname'>]>"), "entities"),
        (b"<annotation>" + b"<a>" * 500, "nested too deep"),
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "unknown encoding"),
        (b"<?xml version='1.0' encoding='zlib'?><annotation/>", "unknown encoding"),
        (b"<?xml version='1.0' encoding='utf-8'?><annotation>\xe9</annotation>", "cannot be parsed"),
        (b"<?xml version='1.0' encoding='gbk'?><annotation>\xff\xff</annotation>", "not in the encoding it declares"),
    ],
)
def test_unreadable_file_is_one_clear_error(data: bytes, reason: str) -> None:
    with pytest.raises(VocError, match=reason):
        read_voc_xml(data)


def test_entities_are_refused_in_a_multi_byte_encoding_too() -> None:
    text = "<?xml version='1.0' encoding='gbk'?>" + BOMB + "<annotation><filename>图&c;</filename></annotation>"
    with pytest.raises(VocError, match="entities"):
        read_voc_xml(text.encode("gbk"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc-kr"])
def test_declared_encoding_is_respected(encoding: str) -> None:
    text = f"<?xml version='1.0' encoding='{encoding}'?><annotation><filename>山.jpg</filename></annotation>"
    text = text if encoding != "euc-kr" else text.replace("山", "산")
    assert read_voc_xml(text.encode(encoding)).filename in ("山.jpg", "산.jpg")


def test_blank_line_and_byte_order_mark_before_the_declaration() -> None:
    text = b"<?xml version='1.0' encoding='utf-8'?><annotation><filename>a</filename></annotation>"
    assert read_voc_xml(b"\n" + text).filename == read_voc_xml(b"\xef\xbb\xbf" + text).filename == "a"


NAMES: dict[str, tuple[dict[str, str], str | None]] = {  # names of classes by encoding, the encoding read
    "gbk": ({"gbk": "猫 狗 汽车"}, "gbk"),
    "gbk, valid UTF-8 by chance": ({"gbk": "猫"}, "gbk"),
    "gbk, some valid UTF-8": ({"gbk": "猫 狗 牛"}, "gbk"),
    "Shift-JIS": ({"shift_jis": "猫 犬 ソファ 自転車 くるま"}, "shift_jis"),
    "Big5": ({"big5": "貓 腳踏車 飛機"}, "big5"),
    "UTF-8": ({"utf-8": "猫 狗 汽车 くるま"}, None),
    "UTF-8, French": ({"utf-8": "chèvre à été café"}, None),
    "UTF-8, Italian": ({"utf-8": "è chèvre"}, None),
    "UTF-8, Russian": ({"utf-8": "кино но машина"}, None),
    "UTF-8, Greek": ({"utf-8": "γάτα"}, None),
    "UTF-8 and one file in gbk": ({"utf-8": "狗 猫", "gbk": "汽车"}, "gbk"),
    "both, and one that is valid in both": ({"utf-8": "狗 è"}, None),
}


@pytest.mark.parametrize("case", NAMES)
def test_encoding_that_is_not_declared(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts, encoding = NAMES[case]
    names = [(word, code) for code, words in texts.items() for word in words.split()]
    for k, (word, code) in enumerate(names):
        (tmp_path / f"set/{k}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / f"set/{k}.jpg").write_bytes(b"x")
        text = xml(SIZE + OBJECT.format(name=word, extra="")).decode()
        (tmp_path / f"set/{k}.xml").write_bytes(text.encode(code))
    done = run(source=tmp_path / "set", out=tmp_path / "out", split=[0.5, 0.5])
    assert done.names == sorted(word for word, _ in names)
    told = capsys.readouterr().out
    assert ("declare no other encoding are read in" in told) == bool(encoding)
    assert encoding is None or f"are read in {encoding} (classes" in told and "--encoding" in told


def test_encoding_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.jpg").write_bytes(b"x")
    text = xml(SIZE + OBJECT.format(name="고양이", extra=""), "<?xml version='1.0' encoding='utf-8'?>").decode()
    (tmp_path / "set/a.xml").write_bytes(text.encode("euc_kr"))
    assert run(source=tmp_path / "set", out=tmp_path / "out", encoding="euc_kr").names == ["고양이"]
    with pytest.raises(UserError, match="nothing was converted"):
        run(source=tmp_path / "set", out=tmp_path / "out2", encoding="utf-8")


@pytest.mark.parametrize("encoding", ["zlib_codec", "base64", "klingon", "utf-16", "rot13", "hex", ""])
def test_encoding_that_is_none_of_texts(encoding: str) -> None:
    with pytest.raises(UserError, match="--encoding"):
        run(source=".", encoding=encoding)
    with pytest.raises(UserError, match=r"'gbl' \(did you mean 'gbk'\?\): one of Python's names"):
        run(source=".", encoding="gbl")


@pytest.mark.parametrize("word", ["chèvre", "Straße", "über", "машина", "ÿÿÿ"])
def test_encoding_of_few_bytes_is_not_guessed(word: str) -> None:
    data = xml(OBJECT.format(name=word, extra="")).decode().encode("cp1251" if word == "машина" else "cp1252")
    assert doubt(data) == "not utf-8" and guess_encoding([data]) is None
    with pytest.raises(VocError, match="cannot be parsed: .*; if it is not in UTF-8, give its encoding"):
        read_voc_xml(data)
    assert read_voc_xml(data, "cp1251" if word == "машина" else "cp1252").objects[0].name == word


def test_encoding_given_is_not_used_for_marked_files() -> None:
    text = "<annotation><filename>山.jpg</filename></annotation>"
    for code in ("utf-8-sig", "utf-16"):
        assert read_voc_xml(text.encode(code), "gbk").filename == "山.jpg"
    with pytest.raises(VocError, match="xml is not in the encoding given: gbk"):
        read_voc_xml(b"<annotation>\xff\xff</annotation>", "gbk")
    with pytest.raises(VocError, match="entities"):
        read_voc_xml((BOMB + "<annotation>图&c;</annotation>").encode("gbk"), "gbk")


@pytest.mark.parametrize(
    ("box", "formula", "corners", "cut"),
    [
        ((1, 1, 100, 80), "exact", (0, 0, 100, 80), False),  # the whole image
        ((10, 20, 30, 60), "exact", (9, 19, 30, 60), False),
        ((5, 5, 5, 5), "exact", (4, 4, 5, 5), False),  # one pixel
        ((10, 20, 30, 60), "legacy", (9, 19, 29, 59), False),
        ((0, 0, 100, 80), "exact", (0, 0, 100, 80), True),
        ((0, 0, 100, 80), "zero", (0, 0, 100, 80), False),
        ((9.5, 20, 30, 60.25), "zero", (9.5, 20, 30, 60.25), False),
        ((-50, 20, 300, 60), "exact", (0, 19, 100, 60), True),
        ((10.5, 20.25, 30.5, 60.75), "exact", (9.5, 19.25, 30.5, 60.75), False),
    ],
)
def test_pixel_box(box: tuple, formula: str, corners: tuple, cut: bool) -> None:
    assert pixel_box(box, 100, 80, formula) == (corners, cut)


@pytest.mark.parametrize(
    ("box", "formula", "reason"),
    [
        ((30, 20, 10, 60), "exact", "reversed"),
        ((10, 60, 30, 20), "exact", "reversed"),
        ((101, 20, 130, 60), "exact", "outside"),
        ((10, -60, 30, 0), "exact", "outside"),
        ((5, 5, 5, 9), "legacy", "without area"),
        ((5, 5, 5, 9), "zero", "without area"),
    ],
)
def test_impossible_box(box: tuple, formula: str, reason: str) -> None:
    with pytest.raises(VocError, match=reason):
        pixel_box(box, 100, 80, formula)


def test_exact_and_legacy_lines_follow_their_formulas() -> None:
    xmin, ymin, xmax, ymax, w, h = 139, 200, 207, 301, 335, 500
    for formula, expected in (
        ("exact", ((xmin - 1 + xmax) / 2 / w, (ymin - 1 + ymax) / 2 / h, (xmax - xmin + 1) / w, (ymax - ymin + 1) / h)),
        (
            "legacy",
            (((xmin + xmax) / 2 - 1) / w, ((ymin + ymax) / 2 - 1) / h, (xmax - xmin) / w, (ymax - ymin) / h),
        ),
    ):
        line = yolo_line(18, pixel_box((xmin, ymin, xmax, ymax), w, h, formula)[0], w, h)
        assert line.split()[0] == "18"
        assert [float(v) for v in line.split()[1:]] == pytest.approx(expected, rel=1e-6)


def test_names_are_in_yolov5s_order() -> None:
    assert len(VOC_NAMES) == 20 and VOC_NAMES[0] == "aeroplane" and VOC_NAMES[14] == "person"
    assert VOC_NAMES == sorted(VOC_NAMES)
