"""The VOC converter on sets drawn here: geometry, splits, links, repetition, interruption, hostile input."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from helpers import ROOT, shared

from my_tools.voc2yolo import main, parse_opt, run
from utils.errors import UserError
from utils.system.console import printable
from utils.voc import convert
from utils.voc import output as voc_output
from utils.voc.annotation import VOC_NAMES

W, H = 100, 80
PICTURE = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (H, W, 3), np.uint8))[1].tobytes()


def thing(name: str = "dog", box: tuple = (10, 20, 30, 60), extra: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


HARD = "<difficult>1</difficult>"


def xml(*things: str, size: str = f"<size><width>{W}</width><height>{H}</height></size>", filename: str = "x") -> bytes:
    return f"<annotation><filename>{filename}</filename>{size}{''.join(things)}</annotation>".encode()


def voc(images: dict[str, bytes], lists: dict[str, str] | None = None, root: str = "VOCdevkit/VOC2007") -> dict:
    """The files of a set by name: `images` maps stems to xml."""
    files = {f"{root}/ImageSets/Main/{name}.txt": text.encode() for name, text in (lists or {}).items()}
    for stem, data in images.items():
        files[f"{root}/Annotations/{stem}.xml"] = data
        files[f"{root}/JPEGImages/{stem}.png"] = PICTURE
    return files


def to_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return path


def to_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def mtimes(folder: Path) -> dict[str, int]:
    return {p.as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*")}


def label(out: Path, split: str, stem: str) -> list[list[float]]:
    return [[float(v) for v in line.split()] for line in (out / f"labels/{split}/{stem}.txt").read_text().splitlines()]


OFFICIAL = voc(
    {"000001": xml(thing(), thing("person", (1, 1, W, H), HARD)), "000002": xml(), "000003": xml(thing("tvmonitor"))},
    {"train": "000001\n", "val": "000002  -1\n", "trainval": "000001\n000002\n", "test": "000003 1\n"},
)
MAKERS = {"zip": lambda p, f: to_zip(p / "VOC.zip", f), "folder": lambda p, f: to_folder(p / "VOC", f)}


@pytest.mark.parametrize("kind", MAKERS)
def test_official_set_from_zip_and_folder(tmp_path: Path, kind: str) -> None:
    source = MAKERS[kind](tmp_path / "in", OFFICIAL)
    out = tmp_path / "out"
    summary = run(source=source, out=out)
    assert summary.images == {"train2007": 1, "val2007": 1, "test2007": 1} and summary.changed
    assert summary.names == VOC_NAMES and summary.problems == []
    assert summary.objects["train2007"] == {"dog": 1} and summary.difficult["train2007"] == {"person": 1}
    assert label(out, "train2007", "000001") == [
        pytest.approx([11, (9 + 30) / 2 / W, (19 + 60) / 2 / H, 21 / W, 41 / H])
    ]
    assert label(out, "val2007", "000002") == []  # an image without objects has an empty label file
    assert (out / "images/test2007/000003.png").read_bytes() == PICTURE
    assert summary.missing == [f"VOC2012 train/val: not found in {source}"]
    assert not (out / "voc2yolo_report.txt").exists()


def test_coco_json_keeps_difficult_objects_to_be_ignored(tmp_path: Path) -> None:
    run(source=to_folder(tmp_path / "in", OFFICIAL), out=tmp_path / "out", box="legacy")
    coco = json.loads((tmp_path / "out/annotations/instances_train2007.json").read_text())
    assert coco["images"] == [{"id": 1, "file_name": "000001.png", "width": W, "height": H}]
    dog, person = coco["annotations"]
    assert dog == {
        "id": 1, "image_id": 1, "category_id": 11, "bbox": [9, 19, 21, 41], "area": 861, "iscrowd": 0, "difficult": 0,
    }  # fmt: skip
    assert (person["bbox"], person["iscrowd"], person["difficult"]) == ([0, 0, W, H], 1, 1)
    assert coco["categories"] == [{"id": i, "name": name} for i, name in enumerate(VOC_NAMES)]


def test_legacy_formula(tmp_path: Path) -> None:
    run(source=to_folder(tmp_path / "in", OFFICIAL), out=tmp_path / "out", box="legacy")
    (row,) = label(tmp_path / "out", "train2007", "000001")
    assert row == pytest.approx([11, ((10 + 30) / 2 - 1) / W, ((20 + 60) / 2 - 1) / H, 20 / W, 40 / H])


@pytest.mark.parametrize("kind", MAKERS)
def test_second_run_changes_nothing_and_says_so(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = OFFICIAL | voc({"000009": b"broken"}, {"val": "000002\n000009\n"})
    source = MAKERS[kind](tmp_path / "in", files)
    before = mtimes(tmp_path / "in")
    assert run(source=source, out=tmp_path / "out").changed
    first = mtimes(tmp_path / "out")
    capsys.readouterr()
    assert not run(source=source, out=tmp_path / "out").changed
    assert "nothing changed" in capsys.readouterr().out
    assert mtimes(tmp_path / "out") == first and mtimes(tmp_path / "in") == before


@pytest.mark.parametrize("link", ["hard", "copy", "symlink"])
def test_link_modes_leave_the_source_as_it_is(tmp_path: Path, link: str) -> None:
    source = to_folder(tmp_path / "in", OFFICIAL)
    before = tree(source)
    run(source=source, out=tmp_path / "out", link=link)
    image = tmp_path / "out/images/train2007/000001.png"
    original = source / "VOCdevkit/VOC2007/JPEGImages/000001.png"
    assert image.is_symlink() == (link == "symlink")
    assert image.samefile(original) == (link != "copy")
    # a damaged image is replaced, not written through into the linked original
    image.unlink()
    image.write_bytes(b"half")
    assert run(source=source, out=tmp_path / "out", link=link).changed
    assert image.read_bytes() == PICTURE and tree(source) == before


def test_hard_link_falls_back_to_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    run(source=to_folder(tmp_path / "in", OFFICIAL), out=tmp_path / "out")
    image = tmp_path / "out/images/train2007/000001.png"
    assert image.read_bytes() == PICTURE and image.stat().st_nlink == 1


# Custom sets


def read_yaml(path: Path | None) -> dict:
    assert path is not None
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_custom_set_takes_its_names_from_the_xml_and_writes_its_yaml(tmp_path: Path) -> None:
    images = {"ä 1": xml(thing("yes")), "b": xml(thing("weißer: 'Hund'")), "c": xml(thing("1"))}
    files = voc(images, {"train": "ä 1\nb.png\n", "test": "JPEGImages/c.png\n"}, "Tiere")
    summary = run(source=to_zip(tmp_path / "t.zip", files), out=tmp_path / "out", name="shapes")
    assert summary.images == {"train": 2, "test": 1} and summary.problems == []
    assert summary.data_yaml == tmp_path / "out/shapes.yaml"
    assert read_yaml(summary.data_yaml) == {
        "path": str(tmp_path / "out"),
        "train": "images/train",
        "val": "images/test",
        "test": "images/test",
        "names": {0: "1", 1: "weißer: 'Hund'", 2: "yes"},
    }
    assert "no val split" in summary.missing[0]


def test_given_names_set_the_order_and_other_classes_are_reported(tmp_path: Path) -> None:
    files = voc({"a": xml(thing("cat"), thing("dogg"), thing("dog"))}, {"train": "a"}, "pets")
    summary = run(source=to_folder(tmp_path / "in", files), out=tmp_path / "out", names=["dog", "cat"])
    assert [row[0] for row in label(tmp_path / "out", "train", "a")] == [1, 0]
    assert summary.problems == [("pets/a.xml", "class not in the list: 'dogg' (did you mean 'dog'?)")]
    assert read_yaml(summary.data_yaml)["names"] == {0: "dog", 1: "cat"}


def test_own_set_in_folders_named_as_vocs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = to_folder(tmp_path / "in", voc({"a": xml(thing("bolt"))}, {"train": "a"}))
    run(source=source, out=tmp_path / "wrong")
    assert "needs --name or --names" in capsys.readouterr().out
    assert run(source=source, out=tmp_path / "out", name="parts").objects == {"train": {"bolt": 1}}


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"trainval": "a\nb", "test": "c"}, {"train": 2, "test": 1}),
        ({"trainval": "a\nb", "val": "c"}, {"val": 1}),
        ({"train": "a", "dog_train": "a 1\nb -1", "val": "b"}, {"train": 1, "val": 1}),
        ({"train": "\ufeffa\r\n\r\nb\r\n b \n"}, {"train": 2}),
    ],
)
def test_lists_of_images(tmp_path: Path, lists: dict, expected: dict) -> None:
    files = voc({stem: xml(thing()) for stem in "abc"}, lists, "set")
    assert run(source=to_folder(tmp_path / "in", files), out=tmp_path / "out").images == expected


def test_seeded_split_is_the_same_each_time_and_covers_all(tmp_path: Path) -> None:
    source = to_folder(tmp_path / "in", voc({f"{i:02}": xml(thing()) for i in range(20)}, None, "set"))

    def split(name: str, **kwargs: object) -> dict[str, list[str]]:
        summary = run(source=source, out=tmp_path / name, **kwargs)
        return {s: sorted(os.listdir(tmp_path / name / "images" / s)) for s in summary.images}

    first = split("a", split=[0.5, 0.3, 0.2])
    assert {s: len(v) for s, v in first.items()} == {"train": 10, "val": 6, "test": 4}
    assert len({name for v in first.values() for name in v}) == 20
    assert split("b", split=[0.5, 0.3, 0.2]) == first
    assert split("c", split=[0.5, 0.3, 0.2], seed=1) != first
    assert {s: len(v) for s, v in split("d").items()} == {"train": 16, "val": 4}


def test_another_split_into_the_same_folder_is_noticed(tmp_path: Path) -> None:
    source = to_folder(tmp_path / "in", voc({f"{i:02}": xml(thing()) for i in range(20)}, None, "set"))
    run(source=source, out=tmp_path / "out")
    summary = run(source=source, out=tmp_path / "out", seed=1)
    assert any(reason.startswith("not of this conversion") for _, reason in summary.problems)


# Hostile and broken input: (xml or None, image or None, what the report says, label rows or None if not converted)
ZOO = {
    "bomb": (b"<!DOCTYPE a [<!ENTITY b 'x'>]><annotation>&b;</annotation>", PICTURE, "entities", None),
    "cut": (xml(thing())[:60], PICTURE, "cannot be parsed", None),
    "large": (xml(" " * 5_100_000), PICTURE, "too large", None),
    "encoding": (b"<?xml version='1.0' encoding='utf-8'?><annotation>\xff", PICTURE, "cannot be parsed", None),
    "unknown": (b"<?xml version='1.0' encoding='x-none'?><annotation/>", PICTURE, "unknown encoding", None),
    "noxml": (None, PICTURE, "annotation missing", None),
    "noimage": (xml(thing()), None, "image missing", None),
    "emptyimage": (xml(thing()), b"", "image is an empty file", None),
    "nosize": (xml(thing(), size=""), PICTURE, "no <size>", 1),
    "zerosize": (xml(thing(), size="<size><width>0</width><height>0</height></size>"), PICTURE, "no <size>", 1),
    "notimage": (xml(thing(), size=""), b"no picture", "cannot be decoded", None),
    "reversed": (xml(thing(), thing(box=(30, 20, 10, 60))), PICTURE, "box reversed", 1),
    "outside": (xml(thing(), thing(box=(300, 20, 310, 60))), PICTURE, "box outside", 1),
    "cutbox": (xml(thing(box=(60, 40, 300, 300))), PICTURE, "box clipped to the image", 1),
    "nan": (xml(thing(), thing(box=("nan", 20, 30, 60))), PICTURE, "not a number", 1),
    "nobox": (xml(thing(), "<object><name>dog</name></object>"), PICTURE, "without a complete <bndbox>", 1),
    "noname": (xml(thing(), thing("")), PICTURE, "without a <name>", 1),
    "class": (xml(thing(), thing("unicorn")), PICTURE, "class not in the list", 1),
    "../../escape": (None, None, "annotation missing", None),
    "pathname": (xml(thing(), filename="../../../etc/hostname"), None, "image missing", None),
    "\x1b[31mred": (None, None, "annotation missing", None),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_zoo_each_is_reported_and_none_spoils_the_rest(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = voc({"good": xml(thing())}, {"train": "\n".join(["good", *ZOO])})
    for stem, (annotation, image, _, _) in ZOO.items():
        if annotation is not None:
            files[f"VOCdevkit/VOC2007/Annotations/{stem}.xml"] = annotation
        if image is not None:
            files[f"VOCdevkit/VOC2007/JPEGImages/{stem}.png"] = image
    out = tmp_path / "deep" / "er" / "out"
    summary = run(source=MAKERS[kind](tmp_path / "in", files), out=out)
    reported = {stem: [r for file, r in summary.problems if file == f"VOC2007/{stem}.xml"] for stem in ZOO}
    for stem, (_, _, reason, rows) in ZOO.items():
        assert len(reported[stem]) == 1 and reason in reported[stem][0], (stem, reported[stem])
        assert (out / f"images/train2007/{stem}.png").exists() == (rows is not None), stem
        assert (out / f"labels/train2007/{stem}.txt").exists() == (rows is not None), stem
        if rows is not None:
            assert len(label(out, "train2007", stem)) == rows, stem
    assert len(summary.problems) == len(ZOO)
    assert summary.images["train2007"] == 1 + sum(rows is not None for *_, rows in ZOO.values())
    assert {p.name for p in tmp_path.iterdir()} == {"in", "deep"}
    report = (out / "voc2yolo_report.txt").read_text()
    assert report.count("\n") == len(ZOO)
    assert "\x1b[31m" not in capsys.readouterr().out + report and "\\x1b[31mred" in report


def test_cut_box_ends_at_the_border(tmp_path: Path) -> None:
    files = voc({"a": xml(thing(box=(61, 41, 300, 300)))}, {"train": "a"})
    run(source=to_folder(tmp_path / "in", files), out=tmp_path / "out")
    assert label(tmp_path / "out", "train2007", "a") == [pytest.approx([11, 0.8, 0.75, 0.4, 0.5])]


def test_image_by_filename_only_if_not_by_stem(tmp_path: Path) -> None:
    files = voc({}, {"train": "a\nb"}, "set")
    other = cv2.imencode(".png", np.zeros((H, W, 3), np.uint8))[1].tobytes()
    files |= {"set/Annotations/a.xml": xml(thing(), filename="shared"), "set/JPEGImages/a.PNG": PICTURE}
    files |= {"set/Annotations/b.xml": xml(thing(), filename="C:\\my pictures\\shared.png")}
    files |= {"set/JPEGImages/shared.png": other}
    run(source=to_folder(tmp_path / "in", files), out=tmp_path / "out")
    assert (tmp_path / "out/images/train/a.PNG").read_bytes() == PICTURE
    assert (tmp_path / "out/images/train/b.png").read_bytes() == other


def test_hostile_zip_members(tmp_path: Path) -> None:
    path = to_zip(tmp_path / "VOC.zip", OFFICIAL | {"../evil.xml": b"x", "/abs.xml": b"x"})
    link = zipfile.ZipInfo("VOCdevkit/VOC2007/JPEGImages/000004.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as z:
        z.writestr(link, "/etc/passwd")
        z.writestr("__MACOSX/VOCdevkit/VOC2007/Annotations/._000001.xml", b"\0\5\x16\7")
    summary = run(source=path, out=tmp_path / "out")
    assert sum(summary.images.values()) == 3
    assert sorted(reason for _, reason in summary.problems) == [
        "member is a symbolic link", "member path leaves its folder", "member with an absolute path",
    ]  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"VOC.zip", "out"}


def test_bad_crc_and_truncated_zip_are_reported_beside_a_good_one(tmp_path: Path) -> None:
    bad = {name.replace("VOC2007", "VOC2012"): data for name, data in OFFICIAL.items() if "test" not in name}
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as z:
        for name, data in bad.items():
            z.writestr(name, data)
    data = (tmp_path / "bad.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(data.replace(PICTURE, PICTURE[:-9] + b"x" + PICTURE[-8:], 1))
    good = to_zip(tmp_path / "good.zip", OFFICIAL)
    (tmp_path / "cut.zip").write_bytes(good.read_bytes()[:-500])
    summary = run(source=[tmp_path / "cut.zip", tmp_path / "bad.zip", good, tmp_path / "none.zip"], out=tmp_path / "o")
    assert summary.images == {"train2012": 0, "val2012": 1, "train2007": 1, "val2007": 1, "test2007": 1}
    reasons = {Path(file).name: reason for file, reason in summary.problems}
    assert "not a complete zip" in reasons["cut.zip"] and "no such file" in reasons["none.zip"]
    assert "damaged in the zip" in reasons["000001.xml"]
    assert not (tmp_path / "o/labels/train2012/000001.txt").exists()


def test_image_in_two_splits_is_reported_and_converted(tmp_path: Path) -> None:
    files = voc({"a": xml(thing()), "b": xml(thing())}, {"train": "a\nb", "test": "b"})
    summary = run(source=to_folder(tmp_path / "in", files), out=tmp_path / "out")
    assert summary.problems == [("VOC2007/b.xml", "image in two splits: train and test")]
    assert summary.images == {"train2007": 2, "test2007": 1}


# Where VOC is looked for, what is downloaded, how it ends


def test_default_places_downloads_and_the_message_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "DATASETS", tmp_path)
    asked: list[str] = []

    def fetch(url: str, path: Path) -> Path:
        asked.append(url)
        return to_zip(path, {n: d for n, d in OFFICIAL.items() if ("Main/test" in n) == ("test" in url.lower())}
                      | voc({"000003": xml(thing())}))  # fmt: skip

    monkeypatch.setattr(convert, "download", fetch)
    with pytest.raises(UserError) as caught:
        run()
    for part in (str(tmp_path / "VOC/images"), "`python my_tools/voc2yolo.py`", "voc2yolo.py --download`"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and asked == [] and list(tmp_path.iterdir()) == []
    to_folder(tmp_path / "VOC/images", {n: d for n, d in OFFICIAL.items() if "Main/test" not in n})
    summary = run()
    assert list(summary.images) == ["train2007", "val2007"] and asked == []
    assert summary.missing[0].startswith("VOC2007 test: not found in")
    assert summary.data_yaml == ROOT / "data/VOC.yaml"
    summary = run(download=True, years=[2007])
    assert asked == [convert.URL + "VOCtest_06-Nov-2007.zip"] and summary.missing == []
    assert set(summary.images) == {"train2007", "val2007", "test2007"}


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"box": "exakt"}, "did you mean 'exact'"),
        ({"box": "zeros"}, "did you mean 'zero'"),
        ({"encoding": "zlib"}, "--encoding 'zlib'"),
        ({"link": "move"}, "--link 'move'"),
        ({"years": [2011]}, "--years 2011"),
        ({"split": [0.8, 0.3]}, "--split"),
        ({"split": [float("nan"), 0.2]}, "--split"),
        ({"names": ["a", "a"]}, "--names"),
        ({"name": "../up"}, "--name '../up'"),
        ({"download": True, "name": "x"}, "--download"),
        ({"sorce": "x"}, "did you mean 'source'"),
        ({"source": "no/such/place"}, "no such file"),
    ],
)
def test_bad_options_are_one_clear_error(tmp_path: Path, kwargs: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason.replace("(", r"\(")) as caught:
        run(**{"out": tmp_path / "out", "source": None if "download" in kwargs else tmp_path} | kwargs)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_vocs_years_and_an_own_set_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="convert them separately"):
        run(source=to_folder(tmp_path, OFFICIAL | voc({"a": xml()}, None, "mine")), out=tmp_path / "out")


def test_output_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        run(source=to_folder(tmp_path / "in", OFFICIAL), out=tmp_path / "out")


def command(*args: object) -> list[str]:
    return [sys.executable, str(ROOT / "my_tools/voc2yolo.py"), *map(str, args)]


def test_exit_code_tells_whether_something_was_converted(tmp_path: Path) -> None:
    bad = to_folder(tmp_path / "bad", voc({"a": b"broken"}, {"train": "a"}))
    done = subprocess.run(command("--source", bad, "--out", tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 1 and "nothing was converted" in done.stderr and "Traceback" not in done.stderr
    main(parse_opt(["--source", str(to_folder(tmp_path / "in", OFFICIAL)), "--out", str(tmp_path / "out")]))


def test_yaml_can_be_left_out(tmp_path: Path) -> None:
    files = voc({"a": xml(thing())}, {"train": "a"}, "set")
    assert run(source=to_folder(tmp_path / "in", files), out=tmp_path / "out", yaml=None).data_yaml is None
    assert list((tmp_path / "out").glob("*.yaml")) == []


def test_data_yaml_of_voc_names_what_the_converter_writes() -> None:
    data = yaml.safe_load((ROOT / "data/VOC.yaml").read_text(encoding="utf-8"))
    assert [data["names"][i] for i in range(20)] == VOC_NAMES and len(data["names"]) == 20
    assert data["train"] == [f"images/{s}" for s in ("train2012", "train2007", "val2012", "val2007")]
    assert data["val"] == data["test"] == ["images/test2007"]
    assert (data["path"], "download" in data) == ("../datasets/VOC", False)


def test_names_are_printed_without_their_control_characters() -> None:
    assert printable("a\x1b[2J\n\u202eb\udc80ä") == "a\\x1b[2J\\n\\u202eb\\udc80ä"


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_killed_at_any_moment_and_run_again_is_as_if_undisturbed(tmp_path: Path) -> None:
    count = 900
    files = voc({f"{i:04}": xml(thing()) for i in range(count)}, {"train": "\n".join(f"{i:04}" for i in range(count))})
    source = to_zip(tmp_path / "VOC.zip", files)
    run(source=source, out=tmp_path / "whole")
    out = tmp_path / "out"
    interrupted = 0
    for labels in (0, 300, 600):
        process = subprocess.Popen(
            command("--source", source, "--out", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        folder = out / "labels/train2007"
        while process.poll() is None and not (folder.is_dir() and len(os.listdir(folder)) > labels):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        interrupted += process.wait() == -signal.SIGKILL
    assert interrupted >= 2  # else this test tests nothing: enlarge `count`
    # what a kill between writing and renaming leaves
    (out / "images/train2007/.voc2yolo.123.part").write_bytes(PICTURE[:9])
    (out / "annotations").joinpath(".instances_train2007.json.abc.part").write_bytes(b"{")
    run(source=source, out=out)
    expected = tree(tmp_path / "whole")
    expected["VOC.yaml"] = expected["VOC.yaml"].replace(str(tmp_path / "whole").encode(), str(out).encode())
    assert tree(out) == expected
    assert not run(source=source, out=out).changed


def test_writers_temporary_file_may_be_swept_by_a_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, swept = os.replace, []

    def sweep_first(source: str, target: str) -> None:
        if not swept:
            swept.append(source)
            os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", sweep_first)
    assert run(source=to_folder(tmp_path / "in", OFFICIAL), out=tmp_path / "out").images["train2007"] == 1
    assert len(swept) == 1


def test_real_blood_cell_set(tmp_path: Path) -> None:
    summary = run(source=shared("bccd/BCCD.zip"), out=tmp_path, name="bccd")
    assert summary.images == {"train": 205, "val": 87, "test": 72}
    assert summary.names == ["Platelets", "RBC", "WBC"]


def test_a_link_that_another_conversion_has_made_leaves_nothing_behind(tmp_path: Path) -> None:
    """To rename one name of a file to another name of it does nothing, on POSIX systems: both stay."""
    source, target = tmp_path / "source.jpg", tmp_path / "target.jpg"
    source.write_bytes(PICTURE)
    os.link(source, target)
    voc_output._put(str(target), lambda temporary: os.link(source, temporary))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.jpg", "target.jpg"]


def test_what_another_conversion_swept_away_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def swept(source: str, target: str) -> None:
        calls.append(source)
        if len(calls) == 1:
            voc_output.sweep(tmp_path, ["a.json"])
        real(source, target)

    monkeypatch.setattr(os, "replace", swept)
    assert voc_output.write_if_changed(tmp_path / "a.json", b"{}", flush=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and len(calls) == 2


def test_pictures_may_be_links_into_a_store_of_files_without_suffix(tmp_path: Path) -> None:
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / "VOC" / name).mkdir(parents=True)
    (tmp_path / "blob").write_bytes(PICTURE)
    (tmp_path / "VOC/JPEGImages/a.jpg").symlink_to(tmp_path / "blob")
    (tmp_path / "xml").write_text(
        "<annotation><object><name>dog</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</object></annotation>")  # fmt: skip
    (tmp_path / "VOC/Annotations/a.xml").symlink_to(tmp_path / "xml")
    done = run(source=tmp_path / "VOC", out=tmp_path / "out", name="dogs")
    assert sum(done.images.values()) == 1
