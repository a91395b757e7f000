"""One function per format that writes an exported model; they are told of a place that is not yet the final one."""

from __future__ import annotations

import contextlib
import inspect
import io
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.engines import INSIDE, need
from models.export_form import ExportForm
from models.onnx_nms import with_nms
from utils.errors import UserError
from utils.export_facts import ExportFacts

Exporter = Callable[[ExportForm, Tensor, Path, ExportFacts, int], None]
AXES = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 1: "boxes"}}


def to_torchscript(form: ExportForm, example: Tensor, out: Path, facts: ExportFacts, opset: int) -> None:
    """A traced network with its facts as a file inside."""
    with _quiet():
        network = torch.jit.trace(form, example, strict=False, check_trace=False)
    network.save(str(out), _extra_files={INSIDE: facts.to_json()})


def to_onnx(form: ExportForm, example: Tensor, out: Path, facts: ExportFacts, opset: int) -> None:
    """An ONNX graph with its facts among its metadata, where YOLOv5's programs find names and stride too."""
    onnx = need("onnx", "--include onnx")
    graph = onnx.load_from_string(onnx_graph(form, example, opset, facts.dynamic))
    if facts.nms:
        graph = with_nms(graph, facts.nms)
    for key, value in (("stride", str(facts.stride)), ("names", repr(dict(facts.names))), (INSIDE, facts.to_json())):
        field = graph.metadata_props.add()
        field.key, field.value = key, value
    onnx.checker.check_model(graph)
    onnx.save(graph, str(out))


def onnx_graph(network: nn.Module, example: Tensor, opset: int = 17, dynamic: bool = False) -> bytes:
    """The graph of a network as ONNX; `images` in, `output0` out (the first of what it gives)."""
    buffer = io.BytesIO()
    # the newer exporter gave the same boxes in ten times the time, and needs another package
    older = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with _quiet():
        torch.onnx.export(network, (example,), buffer, opset_version=opset, input_names=["images"], **older,
                          output_names=["output0"], dynamic_axes=AXES if dynamic else None)  # fmt: skip
    return buffer.getvalue()


def to_openvino(form: ExportForm, example: Tensor, out: Path, facts: ExportFacts, opset: int) -> None:
    """A folder with .xml, .bin and the facts."""
    openvino = need("openvino", "--include openvino")
    with _quiet():
        network = openvino.convert_model(form, example_input=example)
    network.reshape([-1, 3, -1, -1] if facts.dynamic else list(example.shape))
    out.mkdir()
    openvino.save_model(network, out / f"{out.name}.xml", compress_to_fp16=facts.precision == "float16")
    (out / INSIDE).write_text(facts.to_json(), encoding="utf-8")


def to_ncnn(form: ExportForm, example: Tensor, out: Path, facts: ExportFacts, opset: int) -> None:
    """A folder with .ncnn.param, .ncnn.bin and the facts. Raises UserError with what pnnx says if it fails."""
    pnnx = need("pnnx", "--include ncnn")
    program = pnnx.EXEC_PATH
    out.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "model.pt"
        with _quiet():
            torch.jit.trace(form, example, strict=False, check_trace=False).save(str(traced))
        shape, half = ",".join(map(str, example.shape)), int(facts.precision == "float16")
        done = subprocess.run([program, traced.name, f"inputshape=[{shape}]", f"fp16={half}"], cwd=folder,
                              capture_output=True, text=True, errors="replace", check=False)  # fmt: skip
        made = [Path(folder) / f"model.ncnn.{kind}" for kind in ("param", "bin")]
        if done.returncode or not all(file.is_file() for file in made):
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"--include ncnn: pnnx failed (exit code {done.returncode}): {last[0][:200]}")
        for file in made:
            (out / file.name).write_bytes(file.read_bytes())
    (out / INSIDE).write_text(facts.to_json(), encoding="utf-8")


def to_tflite(form: ExportForm, example: Tensor, out: Path, facts: ExportFacts, opset: int) -> None:
    """A TensorFlow Lite file with its facts in a zip behind it, which the format allows."""
    litert_torch = need("litert_torch", "--include tflite")
    with _quiet():
        litert_torch.convert(form, (example,)).export(str(out))
    with zipfile.ZipFile(out, "a") as z:
        z.writestr(INSIDE, facts.to_json())


class Format(NamedTuple):
    """A format of export.py: what writes it, what its name adds to that of the weights, what it needs and can have.

    A suffix without a dot is that of a folder. half: weights in float16; dynamic: any size and number of images;
    batches: more than one image.
    """

    write: Exporter
    suffix: str
    packages: tuple[str, ...]
    half: bool = True
    dynamic: bool = True
    batches: bool = True

    @property
    def is_folder(self) -> bool:
        return not self.suffix.startswith(".")


FORMATS = MappingProxyType({
    "torchscript": Format(to_torchscript, ".torchscript", ()),
    "onnx": Format(to_onnx, ".onnx", ("onnx", "onnxruntime")),
    "openvino": Format(to_openvino, "_openvino", ("openvino",)),
    "ncnn": Format(to_ncnn, "_ncnn", ("pnnx", "ncnn"), dynamic=False, batches=False),
    "tflite": Format(to_tflite, ".tflite", ("litert_torch", "ai_edge_litert"), half=False, dynamic=False),
})  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what converters tell of shapes that are constants here, and of themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
