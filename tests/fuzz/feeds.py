"""The fuzzing targets, used with hypothesis and atheris: each feed passes bytes to a reader and checks the result.

A feed raises an exception if the reader raises an unexpected type of error or accepts invalid data.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch

from models.inference.engine_cache import Record, cache_folder, read_model, read_record, write_record
from models.weights.checkpoint import check_fit, load_checkpoint, weights_content
from models.yolo import DetectionModel, parse_model
from utils.data.images import ImageError, decode_image
from utils.data.label_rows import parse_labels
from utils.errors import UserError
from utils.files import model_yamls
from utils.settings.config import check_model_cfg, load_yaml
from utils.settings.dataset import load_data
from utils.voc.annotation import VocError, box_edges, doubt, guess_encoding, pixel_box, read_voc_xml, yolo_line
from utils.voc.files import MAX_IMAGE, FolderFiles
from utils.voc.sizes import Header, find_frame, read_header
from utils.voc.source import find_sets

CLASSES = 3
RECORDED = "a" * 64  # digest of the checkpoint that a record is for
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
SMALL = {"nc": 1, "anchors": 1, "backbone": [[-1, 1, "Conv", [8, 3, 8]]],
         "head": [[[-1], 1, "Detect", ["nc", "anchors"]]]}  # fmt: skip


def one_line(error: Exception) -> None:
    """Check that an error message is a single line of limited length."""
    assert "\n" not in str(error) and len(str(error)) < 1500, error


def labels(data: bytes) -> None:
    """A label file: each accepted label has a known class and a box with an area inside the image."""
    for keypoints in (True, False):
        try:
            found = parse_labels(data.decode("utf-8", errors="replace"), CLASSES, keypoints)
        except ValueError as e:
            one_line(e)
            assert str(e).startswith("line ")
            continue
        _check_labels(found)


def _check_labels(found: np.ndarray) -> None:
    assert found.dtype == np.float32 and found.shape[1:] == (5,) and np.isfinite(found).all()
    cls, xy, wh = found[:, 0], found[:, 1:3].astype(np.float64), found[:, 3:].astype(np.float64)
    assert np.isin(cls, range(CLASSES)).all() and (wh > 0).all()
    assert (xy - wh / 2 > -1e-6).all() and (xy + wh / 2 < 1 + 1e-6).all()


def xml(data: bytes) -> None:
    """A VOC annotation: each converted box must be accepted as a label, whatever the size of its image."""
    try:
        annotation = read_voc_xml(data, guess_encoding([data]) if doubt(data) else None)
    except VocError as e:
        one_line(e)
        return
    for formula, header in (
        ("exact", Header((500, 375))),
        ("zero", Header((375, 500), 6)),
        ("legacy", Header((50, 38))),
    ):
        try:
            frame, note = find_frame(annotation, header, [box_edges(o.box, formula) for o in annotation.objects])
        except UserError as e:
            one_line(e)
            continue
        assert "\n" not in note and frame.size == header.size
        for thing in annotation.objects:
            try:
                corners, _ = pixel_box(thing.box, *frame.given, formula)
            except VocError as e:
                one_line(e)
                continue
            try:
                labels(yolo_line(0, frame.place(corners), *frame.size).encode())
            except ValueError as e:
                assert "without area" in str(e)


def voc_names(data: bytes) -> None:
    """The names of the files of a dataset, one a line: each image found for an annotation is one of them."""
    files = FolderFiles(Path(tempfile.mkdtemp(dir=FOLDER)))
    files.where.rmdir()
    names = [line for line in data.decode("utf-8", errors="replace").splitlines() if line.strip("/") == line != ""]
    files.names = sorted(set(names))
    files.size = lambda name: len(name)  # type: ignore[method-assign]
    files.read = lambda name, limit: data  # type: ignore[method-assign]
    for voc in find_sets(files):
        found, problems = voc.splits()
        assert set(found) <= {"train", "val", "test"} and all(len(problem) == 2 for problem in problems)
        for key in list(voc.annotations)[:20]:
            try:
                assert voc.find_image(key, names[0])[1] in files.names
            except UserError as e:
                one_line(e)


def image_header(data: bytes) -> None:
    """An image whose size is read for a VOC annotation: it is that of the decoded image, if it can be decoded."""
    (FOLDER / "x.img").write_bytes(data)
    files = FolderFiles(FOLDER / "header")
    files.where = FOLDER
    try:
        header = read_header(files, "x.img")
    except UserError as e:
        one_line(e)
        return
    assert len(data) <= MAX_IMAGE and 1 <= header.orientation <= 8 and min(header.size) > 0


def model_yaml(data: bytes) -> None:
    """A model config: an accepted config can be built, here on the meta device, which allocates no memory."""
    (FOLDER / "model.yaml").write_bytes(data)
    try:
        cfg = load_yaml(FOLDER / "model.yaml")
        check_model_cfg(cfg, "model.yaml")
        with torch.device("meta"):
            parse_model(cfg, [3])
    except UserError as e:
        one_line(e)


def small_model(data: bytes) -> None:
    """A model config: an accepted config is also built in memory and run once, with an empty image."""
    (FOLDER / "model.yaml").write_bytes(data)
    try:
        model = DetectionModel(load_yaml(FOLDER / "model.yaml"))
    except UserError as e:
        one_line(e)
        return
    assert (model.stride > 0).all() and len(model.names) == model.yaml["nc"]


def data_yaml(data: bytes) -> None:
    """A data yaml: an accepted one has classes numbered from 0, with names of one line each."""
    (FOLDER / "data.yaml").write_bytes(data)
    try:
        config = load_data(FOLDER / "data.yaml")
    except UserError as e:
        one_line(e)
        return
    assert list(config.names) == list(range(config.nc)) and config.nc > 0
    assert all(isinstance(n, str) and n.splitlines() in ([n], []) for n in config.names.values())


def checkpoint(data: bytes) -> None:
    """A checkpoint: an accepted one has finite weights that fit its config."""
    (FOLDER / "x.pt").write_bytes(data)
    try:
        content = load_checkpoint(FOLDER / "x.pt")
        check_fit(content, "x.pt")
    except UserError as e:
        one_line(e)
        return
    assert all(v.isfinite().all() for v in content["model"].values())


def pickled(data: bytes) -> None:
    """A checkpoint made of a valid zip file around these bytes, so that fuzzing reaches the pickle itself."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("archive/data.pkl", data)
        z.writestr("archive/data/0", bytes(64))
    checkpoint(buffer.getvalue())


def image(data: bytes) -> None:
    """An image: an accepted one has three 8-bit channels."""
    try:
        found = decode_image(data)
    except ImageError as e:
        one_line(e)
        return
    assert found.ndim == 3 and found.shape[2] == 3 and found.dtype == np.uint8


def engine_record(data: bytes) -> None:
    """A record of the cache of converted checkpoints: an accepted one has valid values, and can be written again."""
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(FOLDER / "cache")}):
        write_record(Record(RECORDED))
        (cache_folder() / f"{RECORDED}.json").write_bytes(data)
        record = read_record(RECORDED)
        assert record.weights == RECORDED and len(record.model) in (0, 64)
        assert all(good in (True, False) for good in record.checked.values())
        assert all(0 < ms < 1e9 for found in record.speeds.values() for ms in found.values())
        assert read_model(record) is None
        write_record(record)
        assert read_record(RECORDED) == record


def label_seeds() -> list[bytes]:
    polygon = b"1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n"
    face = b"0 0.50 0.30 0.04 0.07 0.49 0.29 -1 -1 0.505 0.30 0.495 0.31 0.51 0.31\n"
    pose = b"0 0.64 0.55 0.10 0.06 0.60 0.52 1 0.65 0.53 1 0.68 0.55 2 0 0 0\n"
    return [b"0 0.5 0.5 0.2 0.3\n2 0.1 0.9 0.2 0.2\n", polygon, b"\xef\xbb\xbf0 0 0 1 1\r\n", face, pose,
            b"0 0.5 0.5 1.0005 0.2\n"]  # fmt: skip


def xml_seeds() -> list[bytes]:
    box = "<bndbox><xmin>8</xmin><ymin>12.5</ymin><xmax>352</xmax><ymax>498</ymax></bndbox>"
    body = (f"<annotation><filename>x.jpg</filename><size><width>500</width><height>375</height></size><object>"
            f"<name>dog</name><difficult>1</difficult>{box}</object></annotation>")  # fmt: skip
    return [body.encode(), f'<?xml version="1.0" encoding="GBK"?>{body}'.encode(), f"<!DOCTYPE a []>{body}".encode(),
            body.replace("dog", "猫").encode("gbk"), body.replace("dog", "犬").encode("shift_jis")]  # fmt: skip


def voc_name_seeds() -> list[bytes]:
    return [b"JPEGImages/a.jpg\nAnnotations/a.xml\nImageSets/Main/train.txt\n",
            b"train/a.jpg\ntrain/a.xml\nvalid/b.jpg\nvalid/b.xml\n.git/c.xml\n",
            b"images/x/a.jpg\nimages/y/a.jpg\nannotations/xmls/a.xml\nannotations/test.txt\n"]  # fmt: skip


def model_seeds() -> list[bytes]:
    names = ("yolov5_shufflenet", "yolov5_stem_shufflenet", "yolov5s_slimneck", "yolov5n")
    return [model_yamls()[name].read_bytes() for name in names]


def data_seeds() -> list[bytes]:
    folder = Path(__file__).resolve().parents[2] / "data"
    more = b"path: x\ntrain: [a, b]\nval: &v images/val\ntest: *v\nnc: 2\nnames: {0: cat, 1: dog}\n"
    other = b"train: ../train/images\nnames: [yes, no, ~, 12:30]\nkpt_shape: [5, 3]\nchannels: 3\nroboflow: {a: 1}\n"
    texts = b"path: .\ntrain: train.txt\nnames: {'0': cat, '1': ~}\nclasses: 2\nflip_idx: [0]\n"
    return [*(f.read_bytes() for f in sorted(folder.glob("*.yaml"))), more, other, texts]


def checkpoint_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    torch.save(weights_content(DetectionModel(SMALL), 64), buffer)
    return [buffer.getvalue()]


def pickle_seeds() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(checkpoint_seeds()[0])) as z:
        return [z.read(next(n for n in z.namelist() if n.endswith("data.pkl")))]


def engine_record_seeds() -> list[bytes]:
    speeds = {"640x640 px, torch 2": {"pytorch": 21.5, "onnx": 11.25}}
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(FOLDER / "cache")}):
        write_record(Record(RECORDED, "b" * 64, "torch 1", "{}", (64, 8), {"float32, ONNX Runtime": True}, speeds))
        return [(cache_folder() / f"{RECORDED}.json").read_bytes()]


def image_seeds() -> list[bytes]:
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    deep = [cv2.imencode(suffix, picture.astype(np.uint16) << 4)[1].tobytes() for suffix in (".png", ".tiff")]
    return [*(cv2.imencode(s, picture)[1].tobytes() for s in (".jpg", ".png", ".bmp", ".webp", ".tiff")), *deep]


FEEDS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "labels": (labels, label_seeds), "xml": (xml, xml_seeds), "model_yaml": (model_yaml, model_seeds),
    "small_model": (small_model, model_seeds), "data_yaml": (data_yaml, data_seeds),
    "checkpoint": (checkpoint, checkpoint_seeds), "pickle": (pickled, pickle_seeds), "image": (image, image_seeds),
    "voc_names": (voc_names, voc_name_seeds), "image_header": (image_header, image_seeds),
    "engine_record": (engine_record, engine_record_seeds),
}  # fmt: skip
