"""Datasets as other tools write them: the files of each tool in, the label files out."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from my_tools.voc2yolo import run
from utils.errors import UserError
from utils.voc.convert import Summary
from utils.voc.layouts import split_of

W, H = 100, 80
JPEG = cv2.imencode(".jpg", np.full((H, W, 3), 90, np.uint8))[1].tobytes()
OTHER = cv2.imencode(".jpg", np.full((H, W, 3), 200, np.uint8))[1].tobytes()
BOX = (11, 21, 50, 60)
LABEL = "0.3 0.5 0.4 0.5"  # of BOX, counted from 1


def xml(box: tuple = BOX, filename: str = "x.jpg", name: str = "cat", size: tuple = (W, H)) -> bytes:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
            f"</size><object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>").encode()  # fmt: skip


def files_of(names: str | dict[str, bytes]) -> dict[str, bytes]:
    """Return files by name: given ones, or for a text of names an image, an annotation or an empty file each."""
    if isinstance(names, dict):
        return names
    return {n: xml() if n.lower().endswith(".xml") else JPEG if n.lower().endswith((".jpg", ".png")) else b""
            for n in names.split()}  # fmt: skip


def to_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def to_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for name, data in files.items():
            z.writestr(name, data)
    return path


def labels(done: Summary) -> dict[str, str]:
    """Return the label files of a conversion without their classes; each must have an image of the same name."""
    found = sorted((done.out / "labels").rglob("*.txt"))
    images = {p.relative_to(done.out / "images").with_suffix("") for p in (done.out / "images").rglob("*.*")}
    assert images == {p.relative_to(done.out / "labels").with_suffix("") for p in found}
    return {p.relative_to(done.out / "labels").with_suffix("").as_posix(): p.read_text().strip()[2:] for p in found}


ALL = {"split": [1, 0]}  # everything into train

LAYOUTS: dict[str, tuple[str | dict[str, bytes], dict, set[str]]] = {  # files, options, split/stem of each label
    "VOC": ("JPEGImages/a.jpg Annotations/a.xml", ALL, {"train/a"}),
    "LabelImg: xml beside the images": ("a.jpg a.xml b.JPG b.XML", ALL, {"train/a", "train/b"}),
    "LabelImg: run in images/": ("images/a.jpg images/a.xml images/classes.txt", ALL, {"train/a"}),
    "LabelImg: a folder for each class": ("cat/1.jpg cat/1.xml dog/1.jpg dog/1.xml dog/2.jpg dog/2.xml", ALL,
        {"train/cat_1", "train/dog_1", "train/2"}),
    "Roboflow": ("train/a.jpg train/a.xml valid/b.jpg valid/b.xml test/c.jpg test/c.xml README.roboflow.txt", {},
        {"train/a", "val/b", "test/c"}),
    "Roboflow: equal names": ("train/1.jpg train/1.xml valid/1.jpg valid/1.xml", {}, {"train/1", "val/1"}),
    "only train/: val is taken from it": ("train/a.jpg train/a.xml train/b.jpg train/b.xml", {},
        {"train/a", "val/b"}),
    "only test/": ("test/a.jpg test/a.xml", {}, {"test/a"}),
    "Kaggle": ("images/a.png annotations/a.xml", ALL, {"train/a"}),
    "Kaggle: doubled folders": ("images/images/a.png annotations/annotations/a.xml", ALL, {"train/a"}),
    "Kaggle: train_zip": ("train_zip/train/a.jpg train_zip/train/a.xml test_zip/test/b.jpg test_zip/test/b.xml", {},
        {"train/a", "test/b"}),
    "Kaggle: splits below": ("images/train/1.jpg images/test/1.jpg annotations/train/1.xml annotations/test/1.xml", {},
        {"train/1", "test/1"}),
    "train_images, train_annotations": (
        "train_images/1.jpg train_annotations/1.xml test_images/1.jpg test_annotations/1.xml", {},
        {"train/1", "test/1"}),
    "Annotations and images": ("images/a.png Annotations/a.xml", ALL, {"train/a"}),
    "train/labels": ("train/images/a.jpg train/labels/a.xml valid/images/b.jpg valid/labels/b.xml", {},
        {"train/a", "val/b"}),
    "labels and images in sub-folders": ("images/x/a.jpg labels/x/a.xml images/y/a.jpg labels/y/a.xml", ALL,
        {"train/x_a", "train/y_a"}),
    "CVAT": ({"JPEGImages/a.jpg": JPEG, "Annotations/a.xml": xml(), "ImageSets/Main/default.txt": b"a\n",
              "labelmap.txt": b"# label:color_rgb:parts:actions\n"}, ALL, {"train/a"}),
    "CVAT: subsets": ({"JPEGImages/a.jpg": JPEG, "Annotations/a.xml": xml(), "JPEGImages/b.jpg": JPEG,
                       "Annotations/b.xml": xml(), "ImageSets/Main/Train.txt": b"a\n",
                       "ImageSets/Main/Validation.txt": b"b\n"}, {}, {"train/a", "val/b"}),
    "CVAT: sub-folders": ({"JPEGImages/cam1/a.jpg": JPEG, "Annotations/cam1/a.xml": xml(), "JPEGImages/cam2/a.jpg":
                           JPEG, "Annotations/cam2/a.xml": xml(), "ImageSets/Main/train.txt": b"cam1/a\n",
                           "ImageSets/Main/test.txt": b"cam2/a\n"}, {}, {"train/a", "test/a"}),
    "CVAT: equal names in sub-folders": (
        "JPEGImages/cam1/a.jpg JPEGImages/cam2/a.jpg Annotations/cam1/a.xml Annotations/cam2/a.xml", ALL,
        {"train/cam1_a", "train/cam2_a"}),
    "images in sub-folders only": ("JPEGImages/cam1/a.jpg Annotations/a.xml", ALL, {"train/a"}),
    "LabelMe": ("JPEGImages/a.jpg Annotations/a.xml AnnotationsVisualization/a.jpg class_names.txt", ALL, {"train/a"}),
    "Label Studio": ("images/1f2e-a.jpg Annotations/1f2e-a.xml", ALL, {"train/1f2e-a"}),
    "VoTT: only lists per class": (
        {"p/JPEGImages/a.jpg": JPEG, "p/Annotations/a.xml": xml(), "p/JPEGImages/b.jpg": JPEG, "p/Annotations/b.xml":
         xml(), "p/ImageSets/Main/cat_train.txt": b"a.jpg 1\n", "p/ImageSets/Main/cat_val.txt": b"b.jpg 1\n",
         "p/ImageSets/Main/dog_train.txt": b"a.jpg -1\n", "p/ImageSets/Main/dog_val.txt": b"b.jpg -1\n",
         "p/pascal_label_map.pbtxt": b""}, {}, {"train/a", "val/b"}),
    "Supervisely": ({"p/ds/JPEGImages/a.jpg": JPEG, "p/ds/Annotations/a.xml": xml(), "p/ds/SegmentationClass/a.png":
                     JPEG, "p/ds/ImageSets/Main/trainval.txt": b"a\n"}, {}, {"train/a"}),
    "Supervisely: xml named as the image": ("JPEGImages/a.jpg Annotations/a.jpg.xml", ALL, {"train/a.jpg"}),
    "Oxford pets": ({"images/cat_1.jpg": JPEG, "annotations/xmls/cat_1.xml": xml(), "annotations/trimaps/cat_1.png":
                     JPEG, "images/cat_2.jpg": JPEG, "annotations/xmls/cat_2.xml": xml(), "annotations/trainval.txt":
                     b"cat_1 1 1 1\n", "annotations/test.txt": b"cat_2 1 1 1\n"}, {}, {"train/cat_1", "test/cat_2"}),
    "PaddleDetection: two columns": (
        {"JPEGImages/a.jpg": JPEG, "Annotations/a.xml": xml(), "JPEGImages/b.jpg": JPEG, "Annotations/b.xml": xml(),
         "train.txt": b"JPEGImages/a.jpg Annotations/a.xml\n", "valid.txt": b"./JPEGImages/b.jpg ./Annotations/b.xml\n",
         "label_list.txt": b"cat\n"}, {}, {"train/a", "val/b"}),
    "lists without Main": ({"JPEGImages/a.jpg": JPEG, "Annotations/a.xml": xml(), "JPEGImages/b.jpg": JPEG,
                            "Annotations/b.xml": xml(), "ImageSets/train.txt": b"a\n", "ImageSets/test.txt": b"b\n"},
                           {}, {"train/a", "test/b"}),
    "two VOC folders": ("s/train/JPEGImages/a.jpg s/train/Annotations/a.xml s/test/JPEGImages/b.jpg "
                        "s/test/Annotations/b.xml", {}, {"train/a", "test/b"}),
    "found by <filename>": ({"images/photo 1.jpg": JPEG, "annotations/0.xml": xml(filename="photo 1.jpg")}, ALL,
                            {"train/0"}),
    "found by the path in <filename>": (
        {"images/x/1.jpg": JPEG, "images/y/1.jpg": JPEG, "annotations/1.xml": xml(filename="y/1.jpg")}, ALL,
        {"train/1"}),
    "case of the name": ("images/IMG_1.JPG annotations/img_1.xml", ALL, {"train/img_1"}),
    "hidden": ("a.jpg a.xml ._a.xml .ipynb_checkpoints/a-checkpoint.jpg .ipynb_checkpoints/a-checkpoint.xml "
               "__MACOSX/._a.jpg __MACOSX/a.xml Thumbs.db .Trash-0/files/old.jpg .Trash-0/files/old.xml", ALL,
               {"train/a"}),
    "hidden, in VOC's folders": (
        "JPEGImages/a.jpg Annotations/a.xml Annotations/.ipynb_checkpoints/b-checkpoint.xml JPEGImages/.b.jpg "
        "Annotations/.b.xml __MACOSX/JPEGImages/b.jpg __MACOSX/Annotations/b.xml", ALL, {"train/a"}),
    "xml of two kinds": ("JPEGImages/a.jpg Annotations/a.xml more/b.jpg more/b.xml pom.xml", ALL,
                         {"train/a", "train/b"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_other_tools(tmp_path: Path, layout: str, kind: str) -> None:
    names, options, expected = LAYOUTS[layout]
    files = files_of(names)
    source = to_folder(tmp_path / "set", files) if kind == "folder" else to_zip(tmp_path / "set.zip", files)
    done = run(source=source, out=tmp_path / "out", name="x", **options)
    assert labels(done) == dict.fromkeys(expected, LABEL)
    assert not run(source=source, out=tmp_path / "out", name="x", **options).changed
    assert done.problems == []


def test_the_image_beside_or_named_is_taken(tmp_path: Path) -> None:
    files = {"images/x/1.jpg": OTHER, "images/y/1.jpg": JPEG, "annotations/1.xml": xml(filename="C:\\set\\y\\1.jpg")}
    files |= {"images/2.jpg": OTHER, "images/2.png": JPEG, "annotations/2.xml": xml(filename="2.png")}
    done = run(source=to_folder(tmp_path / "set", files), out=tmp_path / "out", split=[1, 0])
    assert {p.name: p.read_bytes() == JPEG for p in (tmp_path / "out/images/train").iterdir()} == {
        "1.jpg": True, "2.png": True}  # fmt: skip
    assert len(done.problems) == 0


SOURCES: dict[str, tuple[dict[str, str], set[str]]] = {
    "makesense: a zip of xml, and the images": ({"labels.zip": "a.xml", "pictures": "a.jpg b.jpg"}, {"train/a"}),
    "CVAT without images": ({"cvat.zip": "Annotations/a.xml ImageSets/Main/default.txt", "pictures": "x/a.jpg"},
                            {"train/a"}),
    "annotations and images": ({"annotations": "a.xml", "images": "a.jpg"}, {"train/a"}),
    "train and test": ({"train": "a.jpg a.xml", "test": "b.jpg b.xml"}, {"train/a", "test/b"}),
    "zips of splits": ({"train.zip": "1.jpg 1.xml", "valid.zip": "1.jpg 1.xml"}, {"train/1", "val/1"}),
    "splits, images elsewhere": ({"train.zip": "1.xml", "test.zip": "2.xml", "images": "1.jpg 2.jpg"},
                                 {"train/1", "test/2"}),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_several_sources(tmp_path: Path, case: str) -> None:
    parts, expected = SOURCES[case]
    make = {True: to_zip, False: to_folder}
    sources = [make[name.endswith(".zip")](tmp_path / name, files_of(names)) for name, names in parts.items()]
    done = run(source=sources, out=tmp_path / "out", name="x", split=[1, 0])
    assert (labels(done), done.problems) == (dict.fromkeys(expected, LABEL), [])


def test_a_zip_of_xml_in_the_folder_of_images(tmp_path: Path) -> None:
    to_zip(to_folder(tmp_path / "set", files_of("a.jpg b.jpg")) / "labels.zip", files_of("a.xml"))
    assert set(labels(run(source=tmp_path / "set", out=tmp_path / "out", split=[1, 0]))) == {"train/a"}


def test_equal_names_in_two_sets_are_both_converted_unless_the_images_are_equal(tmp_path: Path) -> None:
    one = to_folder(tmp_path / "one", {"1.jpg": JPEG, "1.xml": xml(), "2.jpg": JPEG, "2.xml": xml()})
    two = to_folder(tmp_path / "two", {"1.jpg": OTHER, "1.xml": xml(), "2.jpg": JPEG, "2.xml": xml()})
    done = run(source=[one, two], out=tmp_path / "out", split=[1, 0])
    assert set(labels(done)) == {"train/1", "train/2", "train/two_1"}
    assert done.problems == [("two/1.xml", "same name in two sets: written as two_1"),
                             ("two/2.xml", "same name in two sets: using one")]  # fmt: skip


PROBLEMS: dict[str, tuple[str | dict[str, bytes], str]] = {  # beside a good image: files, the reason given
    "several images": (
        "images/x/b.jpg images/y/b.jpg annotations/b.xml",
        "several images of this name: images/x/b.jpg",
    ),
    "only a mask": ("annotations/b.xml images/masks/b.png", "image missing"),
    "only in another split": ("images/test/b.jpg annotations/train/b.xml images/train/c.jpg", "image missing"),
    "two xml files": ("images/b.jpg annotations/b.xml annotations/old/b.xml", "another xml file belongs to this image"),
    "another folder": ("images/x/b.jpg annotations/y/b.xml", "image taken from a folder of another name"),
    "CVAT's own format": ({"annotations/b.xml": b"<annotations/>"}, "not a VOC annotation: its root element"),
    "xml and XML": ("images/b.jpg annotations/b.xml annotations/b.XML", "two xml files of this name"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_does_not_fit_is_reported(tmp_path: Path, case: str) -> None:
    names, reason = PROBLEMS[case]
    files = files_of("images/good.jpg annotations/good.xml") | files_of(names)
    done = run(source=to_folder(tmp_path / "set", files), out=tmp_path / "out", split=[1, 0])
    assert "train/good" in labels(done)
    assert any(reason in why for _, why in done.problems), done.problems


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("train/a.xml train/b.xml", "no images: .*found 2 xml files in train/; give the folder of the images"),
        (
            "images/a.jpg labels/a.txt",
            "no VOC dataset: found 1 image in images/, 1 txt file in labels/; wanted: VOC xml",
        ),
        ("a/1.jpg b/1.jpg c/d.json", "found 2 images in a/ and 1 other folders, 1 json file in c/; wanted"),
        ("readme.md", "no VOC dataset: found 1 files, none of them xml or an image; wanted: VOC xml files beside"),
    ],
)
def test_nothing_fits(tmp_path: Path, names: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        run(source=to_folder(tmp_path / "set", files_of(names)), out=tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "JPEGImages/a.jpg Annotations/a.xml ImageSets/Main/default.txt .git/x.xml __MACOSX/y.xml notes/z.xml"
    run(source=to_folder(tmp_path / "set", files_of(names)), out=tmp_path / "out")
    told = capsys.readouterr().out
    for line in ("2 hidden files and folders are left out: .git, __MACOSX", "lists that are not used: default.txt",
                 "1 xml files outside of Annotations are not used"):  # fmt: skip
        assert line in told


def test_list_beats_folder_and_says_so(tmp_path: Path) -> None:
    files = files_of("test/JPEGImages/a.jpg test/Annotations/a.xml") | {"test/ImageSets/Main/train.txt": b"a\n"}
    done = run(source=to_folder(tmp_path / "set", files), out=tmp_path / "out")
    assert set(labels(done)) == {"train/a"}
    assert done.problems == [("test/a.xml", "folder and list name different splits, the list is used: test and train")]


def test_the_name_of_the_output_is_not_that_of_a_split(tmp_path: Path) -> None:
    source = to_folder(tmp_path / "fruit", files_of("train/a.jpg train/a.xml test/b.jpg test/b.xml"))
    assert run(source=source, out=tmp_path / "out").data_yaml == tmp_path / "out/fruit.yaml"


def test_an_output_below_the_source_is_not_found_again(tmp_path: Path) -> None:
    source = to_folder(tmp_path / "set", files_of("pics/a.jpg xml/a.xml pics/b.jpg xml/b.xml"))
    first = run(source=source, out=source / "out", name="x")
    assert not run(source=source, out=source / "out", name="x").changed and set(labels(first)) == {"train/a", "val/b"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((n, "train") for n in "train Train training trainval train2017 train_set train-images images_train trainset"
                                " voc_train train_zip Train_Annotations".split()),
        *((n, "val") for n in "val valid VALIDATION Validation val2017 valid_images".split()),
        *((n, "test") for n in "test testing test2007 Test-set test_xml".split()),
        *((n, None) for n in "trains values testimony cat_train VOC2007 tests default contest my_val_2".split()),
    ],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split
