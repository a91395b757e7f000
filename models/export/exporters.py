"""One function per format that writes an exported model."""

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

from models.export.engines import INSIDE, need
from models.export.facts import ExportFacts
from models.export.form import ExportForm
from models.export.onnx_nms import with_nms
from models.export.quantize import Calibration, quantize_onnx, quantize_openvino
from utils.errors import UserError

AXES = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 1: "boxes"}}


class Job(NamedTuple):
    """What to export: a network, example images for tracing, the output path (a temporary one), the model's metadata.

    opset, simplify: for ONNX only. calibration: images for int8 quantization; None for floating point.
    """

    form: ExportForm
    example: Tensor
    out: Path
    facts: ExportFacts
    opset: int = 17
    simplify: bool = False
    calibration: Calibration | None = None


def to_torchscript(job: Job) -> None:
    """Write a traced network, with its metadata as an extra file inside."""
    with _quiet():
        network = torch.jit.trace(job.form, job.example, strict=False, check_trace=False)
    network.save(str(job.out), _extra_files={INSIDE: job.facts.to_json()})


def to_onnx(job: Job) -> None:
    """Write an ONNX graph. Its metadata also has `names` and `stride` where YOLOv5's scripts look for them."""
    onnx, facts = need("onnx", "--include onnx"), job.facts
    graph = onnx.load_from_string(onnx_graph(job.form, job.example, job.opset, facts.dynamic))
    if job.simplify:  # before NMS is added, as onnxslim would turn the NMS settings into constants
        graph = need("onnxslim", "--simplify").slim(graph)
    if job.calibration:
        graph = quantize_onnx(graph, job.calibration)
    if facts.nms:
        graph = with_nms(graph, facts.nms)
    for key, value in (("stride", str(facts.stride)), ("names", repr(dict(facts.names))), (INSIDE, facts.to_json())):
        field = graph.metadata_props.add()
        field.key, field.value = key, value
    onnx.checker.check_model(graph)
    onnx.save(graph, str(job.out))


def onnx_graph(network: nn.Module, example: Tensor, opset: int = 17, dynamic: bool = False) -> bytes:
    """Return a network as an ONNX graph, with the input `images` and the output `output0` (the network's first one)."""
    buffer = io.BytesIO()
    # the newer exporter took ten times as long for the same boxes, and needs another package
    older = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with _quiet():
        torch.onnx.export(network, (example,), buffer, opset_version=opset, input_names=["images"], **older,
                          output_names=["output0"], dynamic_axes=AXES if dynamic else None)  # fmt: skip
    return buffer.getvalue()


def to_openvino(job: Job) -> None:
    """Write a folder with the .xml file, the .bin file and the metadata."""
    openvino, out, facts = need("openvino", "--include openvino"), job.out, job.facts
    with _quiet():
        network = openvino.convert_model(job.form, example_input=job.example)
        network.reshape([-1, 3, -1, -1] if facts.dynamic else list(job.example.shape))
        if job.calibration:
            network = quantize_openvino(network, job.calibration)
    out.mkdir()
    openvino.save_model(network, out / f"{out.name}.xml", compress_to_fp16=facts.precision == "float16")
    (out / INSIDE).write_text(facts.to_json(), encoding="utf-8")


def to_ncnn(job: Job) -> None:
    """Write a folder with .ncnn.param, .ncnn.bin and the metadata. Raises UserError with pnnx's message if it fails."""
    program, out, facts = need("pnnx", "--include ncnn").EXEC_PATH, job.out, job.facts
    out.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "model.pt"
        with _quiet():
            torch.jit.trace(job.form, job.example, strict=False, check_trace=False).save(str(traced))
        shape, half = ",".join(map(str, job.example.shape)), int(facts.precision == "float16")
        done = subprocess.run([program, traced.name, f"inputshape=[{shape}]", f"fp16={half}"], cwd=folder,
                              capture_output=True, text=True, errors="replace", check=False)  # fmt: skip
        made = [Path(folder) / f"model.ncnn.{kind}" for kind in ("param", "bin")]
        if done.returncode or not all(file.is_file() for file in made):
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"--include ncnn: pnnx failed (exit code {done.returncode}): {last[0][:200]}")
        for file in made:
            (out / file.name).write_bytes(file.read_bytes())
    (out / INSIDE).write_text(facts.to_json(), encoding="utf-8")


def to_tflite(job: Job) -> None:
    """Write a TensorFlow Lite file, with its metadata in a zip archive appended to it, as the format allows."""
    litert_torch = need("litert_torch", "--include tflite")
    with _quiet():
        litert_torch.convert(job.form, (job.example,)).export(str(job.out))
    with zipfile.ZipFile(job.out, "a") as z:
        z.writestr(INSIDE, job.facts.to_json())


class Format(NamedTuple):
    """An export format: the function that writes it, the suffix of its file, the packages it needs, what it supports.

    A suffix without a dot means a folder. half: weights in float16; int8: 8-bit integers; dynamic: any image size and
    batch size; batches: more than one image.
    """

    write: Callable[[Job], None]
    suffix: str
    packages: tuple[str, ...]
    half: bool = True
    int8: bool = False
    dynamic: bool = True
    batches: bool = True

    @property
    def is_folder(self) -> bool:
        """Whether the exported model is a folder."""
        return not self.suffix.startswith(".")


FORMATS = MappingProxyType({
    "torchscript": Format(to_torchscript, ".torchscript", ()),
    "onnx": Format(to_onnx, ".onnx", ("onnx", "onnxruntime"), int8=True),
    "openvino": Format(to_openvino, "_openvino", ("openvino",), int8=True),
    "ncnn": Format(to_ncnn, "_ncnn", ("pnnx", "ncnn"), dynamic=False, batches=False),
    "tflite": Format(to_tflite, ".tflite", ("litert_torch", "ai_edge_litert"), half=False, dynamic=False),
})  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the converters' warnings (of shapes that become constants), and send what they print to stderr."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
