"""Attacks through checkpoints, caches and exported models."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exports import need_packages
from helpers import write_yolo_set
from security.zoo import MADE_ANEW, Attack

from models.export.engines import need
from models.inference.runtime import load_runtime
from models.run.resume import open_resumed
from models.weights.checkpoint import load_checkpoint, load_tensors, model_from_checkpoint, weights_content
from models.yolo import DetectionModel
from utils.data.dataset import DetectionDataset
from utils.data.labels import load_labels
from utils.settings.dataset import load_data
from utils.settings.options import TrainOptions

SMALL = {
    "nc": 1,
    "anchors": 1,
    "backbone": [[-1, 1, "Conv", [8, 3, 8]]],
    "head": [[[-1], 1, "Detect", ["nc", "anchors"]]],
}


class Runs:
    """An object whose pickle calls the given function when it is loaded."""

    def __init__(self, call: Callable, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple:
        return self.call, self.args


def archive(folder: Path, data: bytes, records: dict[str, bytes] | None = None, packed: bool = False) -> Path:
    """Write a zip file as torch.save does, with any bytes as its pickle."""
    with zipfile.ZipFile(folder / "x.pt", "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as z:
        for name, content in {"archive/data.pkl": data, **(records or {})}.items():
            z.writestr(name, content)
    return folder / "x.pt"


def piped(folder: Path, name: str = "x.pt", read: Callable = load_checkpoint) -> Any:
    os.mkfifo(folder / name)
    return read(folder / name) if read is load_checkpoint else read(folder / name, torch.device("cpu"))


def pickled(data: bytes, folder: Path, **how: Any) -> Any:
    return load_checkpoint(archive(folder, data, **how))


def saved(content: Any, folder: Path) -> Any:
    torch.save(content, folder / "x.pt")
    return load_checkpoint(folder / "x.pt")


def changed(change: Callable[[dict], Any], folder: Path) -> Any:
    """Save a checkpoint of this project with changed content, load it and build its model."""
    content = weights_content(DetectionModel(SMALL), 64)
    change(content)
    return model_from_checkpoint(saved(content, folder))


def written(data: bytes, folder: Path, name: str = "x.pt", read: Callable = load_checkpoint) -> Any:
    (folder / name).write_bytes(data)
    return read(folder / name)


def tar_of_old_torch(folder: Path) -> Any:
    with tarfile.open(folder / "x.pt", "w") as tar:
        info = tarfile.TarInfo("../ran")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"ran"))
    return load_checkpoint(folder / "x.pt")


def nested(folder: Path) -> Any:
    """Load a pickle inside nested zip files; the outer zip contains no pickle itself."""
    inner = pickle.dumps(Runs(os.system, "touch ran"))
    for _ in range(3):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as z:
            z.writestr("archive/more.zip", inner)
        inner = buffer.getvalue()
    return written(inner, folder)


def overlapping(folder: Path) -> Any:
    """Load a zip file in which many directory entries refer to the same bytes."""
    file = archive(folder, b"\x80\x02N.", {f"archive/data/{k}": bytes(1000) for k in range(50)})
    raw = bytearray(file.read_bytes())
    at = raw.find(b"PK\x01\x02")
    first = raw[at + 42 : at + 46]
    while at >= 0:
        raw[at + 42 : at + 46] = first
        raw[at + 20 : at + 28] = struct.pack("<II", 1000, 1000)
        at = raw.find(b"PK\x01\x02", at + 4)
    return written(bytes(raw), folder)


def resumed(folder: Path) -> Any:
    """Resume from a last.pt whose saved options contain another output folder and a command."""
    content = weights_content(DetectionModel(SMALL), 64, half=False)
    content |= {
        "kind": "training",
        "training": {},
        "hyp": {},
        "epoch": 0,
        "options": {"project": "/etc/cron.d", "command": "touch ran"},
    }
    (folder / "weights").mkdir()
    torch.save(content, folder / "weights/last.pt")
    return open_resumed(TrainOptions.from_flags({"resume": str(folder / "weights/last.pt")}))


def cached(folder: Path, forge: Callable[[dict], Any]) -> Any:
    """Load a dataset that comes with a forged label cache whose fingerprint is correct."""
    data = load_data(write_yolo_set(folder / "set", 4))
    right = load_labels(data.train, data.nc)
    (cache,) = (folder / "set").rglob("*.cache.npz")
    with np.load(cache) as z:
        content = dict(z)
    forge(content)
    np.savez(cache, **content)
    found = load_labels(data.train, data.nc)
    assert np.array_equal(found.values, right.values) and np.array_equal(found.files, right.files)


def packed_cache(folder: Path) -> Any:
    data = load_data(write_yolo_set(folder / "set", 4))
    load_labels(data.train, data.nc)
    (cache,) = (folder / "set").rglob("*.cache.npz")
    np.savez_compressed(cache, fingerprint=np.zeros(2**28, np.uint8))  # 256 KB for 256 MiB
    load_labels(data.train, data.nc)


def disk_cached(folder: Path, content: Callable[[Path], Any]) -> Any:
    """Load a dataset that comes with a forged .npy file of --cache disk."""
    data = load_data(write_yolo_set(folder / "set", 4))
    index = load_labels(data.train, data.nc)
    dataset = DetectionDataset(index, 96, 4, cache="disk")
    file = Path(f"{index.file(0)}.val96.npy")
    content(file)
    os.utime(file)
    image = dataset[0][0]
    assert image.shape == (3, 96, 96) and len(image.unique()) > 1


def header_of(shape: tuple[int, ...], file: Path) -> None:
    with open(file, "wb") as f:
        np.lib.format.write_array_header_1_0(f, {"descr": "|u1", "fortran_order": False, "shape": shape})


def onnx_with_data_elsewhere(folder: Path) -> Any:
    """Load an ONNX graph whose weights refer to another file."""
    need_packages("onnx")
    onnx = need("onnx", "")
    tensor = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[2], data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="../secret/secret.txt")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["w"], ["output"])], "g", [], [info("output", 1, [2])], [tensor]
    )
    (folder / "x.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return load_runtime(folder / "x.onnx", torch.device("cpu"))


def exported(facts: dict, folder: Path) -> Any:
    (folder / "x_openvino").mkdir()
    (folder / "x_openvino/x.xml").write_text('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><net>&e;</net>')
    (folder / "x_openvino/x.bin").write_bytes(b"")
    (folder / "x_openvino/metadata.json").write_text(json.dumps(facts))
    need_packages("openvino")
    return load_runtime(folder / "x_openvino", torch.device("cpu"))


def shared(levels: int) -> Any:
    """Return nested lists that share their items: small in memory, but 2^levels values when written out."""
    value: Any = "x"
    for _ in range(levels):
        value = [value, value]
    return value


FACTS = {"format": "yolov5-light export", "version": 1, "names": {"0": "a"}, "stride": 32, "shape": [1, 3, 64, 64]}
CALLS = {"os.system": os.system, "eval": eval, "exec": exec, "open": open, "__import__": __import__, "getattr": getattr}


def _changed(what: str, change: Callable[[dict], Any], answer: str) -> Attack:
    return Attack("checkpoint", what, partial(changed, change), answer)


ATTACKS = [
    *(
        Attack(
            "checkpoint",
            f"a pickle that calls `{name}`",
            partial(saved, {"model": Runs(call, "touch ran")}),
            r"asks for '[\w.]+', which is neither",
        )
        for name, call in CALLS.items()
    ),
    Attack(
        "checkpoint",
        "a pickle that calls a function with the INST opcode",
        partial(pickled, b"\x80\x02(S'touch ran'\nios\nsystem\n."),
        "the instruction INST",
    ),
    Attack(
        "checkpoint",
        "a pickle that calls a function with the OBJ opcode",
        partial(pickled, b"\x80\x02(cmodels.a\nB\no."),
        "the instruction OBJ",
    ),
    Attack(
        "checkpoint", "a pickle with an extension code", partial(pickled, b"\x80\x02\x82\x01."), "the instruction EXT1"
    ),
    Attack(
        "checkpoint",
        "a pickle that reaches os.system through a module of this project",
        partial(pickled, b"\x80\x04\x8c\x0bmodels.yolo\x8c\x09os.system\x93\x8c\x02ls\x85R."),
        "asks for|damaged",
    ),
    Attack(
        "checkpoint",
        "a pickle that sets attributes on a class of this project",
        partial(pickled, b"\x80\x02cmodels.common\nConv\n}X\x01\x00\x00\x00aK\x01sb."),
        "damaged",
    ),
    Attack(
        "checkpoint",
        "a bare pickle, without a zip file around it",
        partial(written, pickle.dumps(Runs(os.system, "touch ran"))),
        "is not a checkpoint",
    ),
    Attack(
        "checkpoint",
        "a pickle after the magic number of PyTorch's legacy format",
        partial(written, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + pickle.dumps(Runs(os.system, "touch ran"), 2)),
        "damaged|more than tensors",
    ),
    Attack(
        "checkpoint",
        "a tar file (the oldest PyTorch format) with `../` in a name",
        tar_of_old_torch,
        "is not a checkpoint",
    ),
    Attack("checkpoint", "a pickle inside nested zip files", nested, "damaged"),
    Attack("checkpoint", "zip entries that share the same bytes", overlapping, "damaged"),
    Attack("checkpoint", "a zip bomb as the pickle", partial(pickled, bytes(2**27), packed=True), "damaged"),
    Attack(
        "checkpoint",
        "two pickles in one zip file",
        partial(pickled, b"\x80\x02N.", records={"other/data.pkl": b"\x80\x02N."}),
        "damaged",
    ),
    Attack(
        "checkpoint",
        "a pickle with a memo index of 2^31 - 1",
        partial(pickled, b"\x80\x02K\x01r\xff\xff\xff\x7f."),
        "contains",
    ),
    Attack(
        "checkpoint",
        "nested tuples that take 2^60 steps to compare",
        partial(pickled, b"\x80\x04}" + b"K\x01" + 60 * b"2\x86" + b"Ns."),
        "damaged",
    ),
    Attack(
        "checkpoint", "an HTML page saved as .pt", partial(written, b"<html>not found</html>"), "is not a checkpoint"
    ),
    _changed(
        "a model config with 10^9 channels",
        lambda c: c["yaml"].update(backbone=[[-1, 1, "Conv", [10**9, 3, 8]]]),
        "output width",
    ),
    _changed(
        "a model config with layers of 16,384 x 16,384 channels",
        lambda c: c["yaml"].update(backbone=[[-1, 1, "Conv", [16384, 1, 8]]] * 9),
        "do not fit|have more than [0-9,]+ parameters",
    ),
    _changed(
        "a model config with Python code as a module name",
        lambda c: c["yaml"].update(backbone=[[-1, 1, "eval('1')", [8]]]),
        "unknown module",
    ),
    _changed("a model config that expands to 2^40 values", lambda c: c["yaml"].update(backbone=shared(40)), "damaged"),
    _changed(
        "weights that are NaN",
        lambda c: c["model"].update({k: v * float("nan") for k, v in c["model"].items() if v.is_floating_point()}),
        "are not finite",
    ),
    _changed(
        "a class name with a terminal escape sequence",
        lambda c: c["names"].update({0: "\x1b[2Jcat"}),
        "control character",
    ),
    _changed("an image size of 10^9", lambda c: c.update(imgsz=10**9), "its imgsz is not between"),
    Attack("last.pt for --resume", "saved options with another output folder and a command", resumed, "command"),
    Attack(
        "torchvision weights",
        "a pickle that calls `os.system`",
        partial(written, pickle.dumps(Runs(os.system, "touch ran"), 2), read=load_tensors),
        "is not a checkpoint",
    ),
    Attack("checkpoint", "a named pipe", piped, "is not a regular file"),
    Attack("ONNX file", "a named pipe", partial(piped, name="x.onnx", read=load_runtime), "is not a regular file"),
    Attack(
        "label cache",
        "an object array (a pickle)",
        partial(cached, forge=lambda c: c.update(files=np.array([Runs(os.system, "touch ran")], object))),
        "",
        MADE_ANEW,
    ),
    Attack(
        "label cache",
        "/etc/shadow as the path of every image",
        partial(cached, forge=lambda c: c.update(files=np.array([b"/etc/shadow"] * len(c["files"])))),
        "",
        MADE_ANEW,
    ),
    Attack(
        "label cache",
        "all label values set to 10^6",
        partial(cached, forge=lambda c: c["values"].fill(10**6)),
        "",
        MADE_ANEW,
    ),
    Attack(
        "label cache",
        "labels with negative coordinates",
        partial(cached, forge=lambda c: c["values"].__imul__(-1)),
        "",
        MADE_ANEW,
    ),
    Attack(
        "label cache",
        "offsets past the end of the labels",
        partial(cached, forge=lambda c: c["offsets"].__iadd__(10**9)),
        "",
        MADE_ANEW,
    ),
    Attack("label cache", "an array of 256 MiB compressed to 256 KiB", packed_cache, "", MADE_ANEW),
    Attack(
        "disk cache",
        "an object array (a pickle)",
        partial(disk_cached, content=lambda f: np.save(f, np.array([Runs(os.system, "touch ran")], object))),
        "",
        MADE_ANEW,
    ),
    Attack(
        "disk cache",
        "a header that claims an image of 10^6 x 10^6",
        partial(disk_cached, content=partial(header_of, (10**6, 10**6, 3))),
        "",
        MADE_ANEW,
    ),
    Attack(
        "disk cache",
        "an image of the wrong shape",
        partial(disk_cached, content=lambda f: np.save(f, np.zeros((5, 7, 3), np.uint8))),
        "",
        MADE_ANEW,
    ),
    Attack("ONNX file", "weights stored in a file outside the model's folder", onnx_with_data_elsewhere, "x.onnx"),
    Attack("OpenVINO folder", "an external entity in the XML", partial(exported, FACTS), "x_openvino"),
    Attack(
        "OpenVINO folder",
        "65,537 classes",
        partial(exported, {**FACTS, "names": {str(k): "a" for k in range(65537)}}),
        "no usable 'names'",
    ),
    Attack(
        "OpenVINO folder",
        "an input size of 10^9 x 10^9",
        partial(exported, {**FACTS, "shape": [1, 3, 10**9, 10**9]}),
        "no usable 'shape'",
    ),
    Attack(
        "OpenVINO folder",
        "a class name with a line break",
        partial(exported, {**FACTS, "names": {"0": "a\nerror: b"}}),
        "no usable 'names'",
    ),
]
