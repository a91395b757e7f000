"""Dataset yamls as Roboflow, CVAT, Ultralytics and people write them: where their splits are, and their class names."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.data.labels import index_split, list_images
from utils.errors import UserError
from utils.settings import dataset
from utils.settings.config import load_model_cfg
from utils.settings.dataset import load_data

NAMES = "\nnames: [helmet]\n"


def write_images(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / file), np.full((40, 60, 3), 90, np.uint8))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkout, a working folder and a place for a dataset."""
    for name in ("checkout", "work", "set"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(dataset, "ROOT", tmp_path / "checkout")
    return tmp_path


@pytest.mark.parametrize(
    ("yaml_file", "text", "folder"),
    [
        ("set/data.yaml", "train: ../train/images\nval: ../valid/images", "set"),  # Roboflow
        ("set/data.yaml", "train: train/images\nval: valid/images", "set"),
        ("set/data.yaml", "path: .\ntrain: train/images\nval: valid/images", "set"),
        ("set/data.yaml", "path: ./\ntrain: train/images\nval: valid/images", "set"),  # CVAT
        ("set/data.yaml", "path: ''\ntrain: ./train/images\nval: ./valid/images", "set"),
        ("set/data.yaml", "path:\ntrain: [train/images]\nval: valid/images", "set"),
        ("set/data.yaml", "path: ../set\ntrain: train/images\nval: valid/images", "set"),
        ("set/data.yaml", "path: ..\ntrain: set/train/images\nval: set/valid/images", "set"),
        ("set/yamls/data.yaml", "train: ../train/images\nval: ../valid/images", "set"),
        ("set/data.yaml", "path: datasets/x\ntrain: train/images\nval: valid/images", "checkout/datasets/x"),
        ("set/data.yaml", "path: datasets/x\ntrain: train/images\nval: valid/images", "work/datasets/x"),
        ("set/data.yaml", "path: datasets/x\ntrain: train/images\nval: valid/images", "set/datasets/x"),
        ("set/data.yaml", "train: ../train/images\nval: ../valid/images", "work"),
        ("set/data.yaml", "train: ../train/images\nval: ../valid/images", "checkout"),  # unzipped in the checkout
        ("checkout/data.yaml", "train: ../train/images\nval: ../valid/images", "checkout"),
        ("set/data.yaml", "train: ..\\train\\images\nval: ..\\valid\\images", "set"),
    ],
)
def test_splits_are_found(yaml_file: str, text: str, folder: str, elsewhere: Path) -> None:
    write_images(elsewhere / folder, "train/images/a.jpg", "valid/images/b.jpg")
    (elsewhere / yaml_file).parent.mkdir(parents=True, exist_ok=True)
    (elsewhere / yaml_file).write_text(text + NAMES)
    data = load_data(elsewhere / yaml_file)
    assert data.existing("train") == (elsewhere / folder / "train/images",)
    assert data.existing("val") == (elsewhere / folder / "valid/images",)
    assert len(index_split(data, "train")) == 1


def test_beside_the_yaml_comes_first(elsewhere: Path) -> None:
    for place in ("set", "work", "checkout"):
        write_images(elsewhere / place, "train/a.jpg")
    (elsewhere / "set/data.yaml").write_text("train: train" + NAMES)
    assert load_data(elsewhere / "set/data.yaml").train == (elsewhere / "set/train",)


def test_all_splits_are_of_one_dataset(elsewhere: Path) -> None:
    write_images(elsewhere / "set", "images/a.jpg", "images/b.jpg")
    write_images(elsewhere / "work", "images/a.jpg", "valid/a.jpg")
    (elsewhere / "set/data.yaml").write_text("train: images\nval: valid" + NAMES)
    data = load_data(elsewhere / "set/data.yaml")
    bases = {data.train[0].parent, data.val[0].parent}
    assert len(bases) == 1
    (elsewhere / "set/valid").mkdir()
    assert load_data(elsewhere / "set/data.yaml").val == (elsewhere / "set/valid",)


def test_a_list_is_of_one_dataset(elsewhere: Path) -> None:
    names = [f"images/{k}.jpg" for k in range(5)]
    write_images(elsewhere / "set", *names[1:])
    write_images(elsewhere / "work", *names)
    (elsewhere / "set/train.txt").write_text("\n".join(names))
    (elsewhere / "set/data.yaml").write_text("train: train.txt" + NAMES)
    data = load_data(elsewhere / "set/data.yaml")
    (elsewhere / "set/train.txt").write_text("\n".join(["images/none.jpg", *names[1:]]))
    assert list_images(data.train, data.roots)[:4] == [str(elsewhere / f"set/{name}") for name in names[1:]]


def test_every_place_is_named(elsewhere: Path) -> None:
    (elsewhere / "set/data.yaml").write_text("train: ../train/images" + NAMES)
    with pytest.raises(UserError, match="'train' does not exist") as e:
        load_data(elsewhere / "set/data.yaml").existing("train")
    places = ["train/images", "set/train/images", "work/train/images", "checkout/train/images"]
    assert all(str(elsewhere / place) in str(e.value) for place in places) and "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["train: {long}", "path: {long}\ntrain: x", "path: .\ntrain: [{long}]"])
def test_names_too_long_for_a_disk_do_not_exist(text: str, elsewhere: Path) -> None:
    (elsewhere / "set/data.yaml").write_text(text.format(long="b" * 300) + NAMES)
    with pytest.raises(UserError, match="'train' does not exist"):
        load_data(elsewhere / "set/data.yaml").existing("train")


def test_a_place_that_was_guessed_is_logged(elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(elsewhere / "set", "train/images/a.jpg")
    with caplog.at_level(logging.INFO, logger="yolov5"):
        (elsewhere / "set/data.yaml").write_text("train: ../train/images" + NAMES)
        load_data(elsewhere / "set/data.yaml")
        assert caplog.messages == [f"data.yaml: 'train' found at {elsewhere / 'set/train/images'}"]
        (elsewhere / "set/data.yaml").write_text("train: train/images" + NAMES)
        load_data(elsewhere / "set/data.yaml")
        assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "line",
    ["images/train/a.jpg", "./images/train/a.jpg", '"images/train/a.jpg"', "'./images/train/a.jpg'",
     "images\\train\\a.jpg", ".\\images\\train\\a.jpg", "data/images/train/a.jpg", "data\\images\\train\\a.jpg",
     "  images/train/a.jpg  ", "{root}/images/train/a.jpg"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["train.txt", "lists/train.txt"])
def test_lists_of_images(line: str, where: str, elsewhere: Path) -> None:
    root = elsewhere / "set"
    write_images(root, "images/train/a.jpg", "images/train/b.jpg")
    (root / where).parent.mkdir(exist_ok=True)
    line = line.format(root=root)
    (root / where).write_text(f"\ufeff{line}\n\n{line.replace('a.jpg', 'b.jpg')}\n", encoding="utf-8")
    (root / "data.yaml").write_text(f"path: .\ntrain: {where}" + NAMES)
    index = index_split(load_data(root / "data.yaml"), "train")
    assert [index.file(i) for i in range(len(index))] == [str(root / f"images/train/{n}.jpg") for n in "ab"]


def test_missing_images_of_a_list_are_named_beside_it(elsewhere: Path) -> None:
    root = elsewhere / "set"
    write_images(root, "images/a.jpg")
    (root / "train.txt").write_text("images/a.jpg\nimages/none.jpg\n")
    assert list_images((root / "train.txt",)) == [str(root / "images/a.jpg"), str(root / "images/none.jpg")]


@pytest.mark.parametrize(
    ("lines", "ignored"),
    [
        ("author: me\nlicense: MIT\ncolors: [red]", "ignored keys author, license, colors"),
        ("flip_idx: [0]", "ignored key flip_idx"),
        ("roboflow:\n  workspace: x\n  version: 1", "ignored key roboflow"),
        ("kpt_shape: [17, 3]\nchannels: 3", ""),
        ("channels: 1", "channels is 1, but images are read with 3 channels"),
        ("classes: 1", "ignored key classes"),
        ("classes: [helmet]", "ignored key classes"),
        ("5: x", "ignored key 5"),
    ],
)
def test_keys_of_other_tools(lines: str, ignored: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d.yaml").write_text(f"train: x\n{lines}" + NAMES, encoding="utf-8")
    load_data(tmp_path / "d.yaml")
    assert [ignored in m for m in caplog.messages] == [True] * bool(ignored)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: x\nvalid: y", "unknown key 'valid'.*did you mean 'val'"),
        ("train: x\nvalidation: y", "unknown key 'validation'.*did you mean 'val'"),
        ("train: x\nVal: y", "unknown key 'Val'.*did you mean 'val'"),
        ("train: x\nclasses: 3", "'classes' lists 3 classes, 'names' 1"),
        ("train: x\nclasses: [a, b]", "'classes' lists 2 classes, 'names' 1"),
        ("train: x\nkpt_shape: [17, 4]", r"kpt_shape is \[17, 4\], it must be \[number of points, 2 or 3\]"),
        ("train: x\nkpt_shape: 17", "kpt_shape is 17"),
        ("train: x\nunlabeled: y", "unknown key 'unlabeled'.*did you mean 'unlabelled'"),
        ("train: x\nunlabelled: {a: b}", "unlabelled must be a folder, a .txt list of images, or a list of these"),
        ("unlabelled: x", "there is no 'train:' or 'val:' in it"),
    ],
)
def test_keys_that_would_be_lost_are_errors(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(text + NAMES)
    with pytest.raises(UserError, match=message):
        load_data(tmp_path / "d.yaml")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("{'0': cat, '1': dog}", ["cat", "dog"]),
        ("{0: cat, '1': dog}", ["cat", "dog"]),
        ("[yes, no, ~, 12:30]", ["yes", "no", "~", "12:30"]),
        ("[on, off, null, 1.0, 007, 2001-01-01, 1e3, True]", "on off null 1.0 007 2001-01-01 1e3 True".split()),
        ("{0: yes, 1: n}", ["yes", "n"]),
        ("\n  - 'yes'\n  - \"no\"", ["yes", "no"]),
        ("[traffic light, 猫]", ["traffic light", "猫"]),
    ],
)
def test_class_names_are_texts(names: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(f"train: x\nnames: {names}\n", encoding="utf-8")
    assert list(load_data(tmp_path / "d.yaml").names.values()) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("{0: cat, 0: dog}", "d.yaml:2: not valid yaml .class 0 has two names"),
        ("{0: cat, '0': dog}", "class 0 has two names"),
        ("{0: &x 1.0, 1: *x}\nnc: 3", "nc is 3, but there are 2 names"),
        ("{a: cat}", "the keys of 'names' must be 0 to 0"),
        ("\n  0: cat\n  1:\n", "class 1 in 'names' has no name"),
        ("['']", "class 0 in 'names' has no name"),
    ],
)
def test_class_names_that_cannot_be(names: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(f"train: x\nnames: {names}\n")
    with pytest.raises(UserError, match=message):
        load_data(tmp_path / "d.yaml")


def test_a_zip_is_named_as_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as z:
        z.writestr("helmets/data.yaml", "train: x")
        z.writestr("__MACOSX/helmets/._data.yaml", "")
    with pytest.raises(UserError, match=r"set.zip is a zip: unpack it .* it contains helmets/data.yaml$"):
        load_data(tmp_path / "set.zip")


def test_other_keys_of_a_model_yaml_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (dataset.ROOT / "models/yolov5_shufflenet.yaml").read_text(encoding="utf-8")
    (tmp_path / "m.yaml").write_text(f"{text}\nloss: ciou\nscales: {{n: [0.3, 0.2]}}\n", encoding="utf-8")
    assert load_model_cfg(tmp_path / "m.yaml")["nc"]
    assert len(caplog.messages) == 1 and "ignored keys loss, scales" in caplog.messages[0]
    (tmp_path / "m.yaml").write_text(f"{text}\nanchor: 3\n", encoding="utf-8")
    with pytest.raises(UserError, match="unknown key 'anchor'.*did you mean 'anchors'"):
        load_model_cfg(tmp_path / "m.yaml")
