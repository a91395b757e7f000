"""Inference engines for exported models: TorchScript, ONNX Runtime, OpenVINO, ncnn, TensorFlow Lite.

An engine is a function from images (b, 3, h, w) RGB, float32 in [0, 1] or uint8, to the output of the file's graph. Its
package is imported when a file of its format is opened. If it is missing, the error names the command to install it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import logging
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from models.export.facts import LARGEST, ExportFacts, facts_of_yolov5, read_facts
from models.export.openvino_model import OpenVinoModel
from utils.errors import UserError
from utils.files import no_file

V = TypeVar("V")
Engine = Callable[[np.ndarray], np.ndarray]
LOWEST = 0.001  # confidence threshold given to graphs with NMS, the same as val.py's
INSIDE = "metadata.json"  # a file or field inside the exported model, or a file beside it if the format cannot hold one
REPORTER = "openvino_telemetry"
GPU_PROVIDER = "CUDAExecutionProvider"
# package to import -> its name for pip, and the extra of pyproject.toml that includes it
PACKAGES = MappingProxyType({
    "onnx": ("onnx", "onnx"), "onnxruntime": ("onnxruntime", "onnx"), "onnxslim": ("onnxslim", "onnx"),
    "openvino": ("openvino", "openvino"), "nncf": ("nncf", "openvino"), "ncnn": ("ncnn", "ncnn"),
    "pnnx": ("pnnx", "ncnn"), "litert_torch": ("litert-torch", "tflite"),
    "ai_edge_litert": ("ai-edge-litert", "tflite"),
})  # fmt: skip


class Opened(NamedTuple):
    """An exported model, ready to run: `engine`, the model's metadata (facts), the engine's name and its dtype.

    shared: whether several threads may call the engine at once, each with its share of the cores (torch's number of
    threads in that thread). Otherwise one call uses all cores. expect: prepares the engine for many batches of a shape
    (b, 3, h, w).
    """

    engine: Engine
    facts: ExportFacts
    name: str
    dtype: torch.dtype
    shared: bool = False
    expect: Callable[[Sequence[int]], None] = lambda shape: None


def installed(*packages: str) -> bool:
    """Whether all these packages are installed."""
    return all(map(importlib.util.find_spec, packages))


def need(package: str, what: str) -> ModuleType:
    """Import a package. Raises UserError if it cannot be loaded, or is not installed (with the command for that)."""
    pip, extra = PACKAGES[package]
    try:
        with _unreported(), without_logs():
            return importlib.import_module(package)
    except ModuleNotFoundError as e:
        if e.name != package:
            raise UserError(f"{what} needs {pip}, which cannot be loaded ({e})") from e
        raise UserError(f"{what} needs {pip}: pip install {pip}, or pip install '.[{extra}]' in the folder of this "
                        "repository") from e  # fmt: skip
    except (ImportError, OSError, AttributeError, RuntimeError) as e:
        raise UserError(f"{what} needs {pip}, which cannot be loaded ({first_line(e)})") from e


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Hide OpenVINO's telemetry package, without which OpenVINO sends no usage reports to its developers."""
    if REPORTER in sys.modules:
        yield
        return
    sys.modules[REPORTER] = None
    try:
        yield
    finally:
        del sys.modules[REPORTER]


@contextlib.contextmanager
def without_logs() -> Iterator[None]:
    """Suppress log messages up to WARNING, and remove handlers that packages add to the root logger meanwhile."""
    handlers = list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.handlers[:] = handlers


def kind_of(path: Path) -> str:
    """Return the format of an exported model: by its suffix, or for a folder by its files; "" if it is not one."""
    if path.is_dir():
        found = [kind for kind, pattern in (("openvino", "*.xml"), ("ncnn", "*.ncnn.param")) if any(path.glob(pattern))]
        return found[0] if found else ""
    kinds = {".torchscript": "torchscript", ".onnx": "onnx", ".tflite": "tflite", ".xml": "openvino",
             ".param": "ncnn"}  # fmt: skip
    return kinds.get(path.suffix.lower(), "")


def open_engine(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Opened:
    """Open an exported model. Raises UserError if the file, or the package that runs it, cannot be used.

    dtype: the dtype to compute in, for engines that offer a choice.
    """
    kind = kind_of(path)
    path = path.parent if kind in ("openvino", "ncnn") and path.is_file() else path
    if not path.is_dir() and (why := no_file(path)):
        raise UserError(f"{path} {why}")
    try:
        return OPENERS[kind](path, device, dtype)
    except UserError:
        raise
    except Exception as e:  # each engine has its own errors for invalid files
        raise UserError(f"{path} cannot be opened as {kind}: {first_line(e)}") from e


def in_unit(images: np.ndarray) -> np.ndarray:
    """Convert uint8 images to float32 in [0, 1]; float32 images are returned as they are.

    NumPy is used because torch's threads would keep spinning for a while on the cores that the engine needs.
    """
    return images if images.dtype != np.uint8 else np.divide(images, np.float32(255), dtype=np.float32)


def first_line(error: Exception) -> str:
    """Return the first non-empty line of an error message, or the error's type; at most 300 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def open_torchscript(path: Path, device: torch.device, dtype: torch.dtype) -> Opened:
    """Open a TorchScript file, on the CPU or a GPU; it runs in float32, or in float16 if it was exported as float16."""
    extra = {INSIDE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch recommends another format instead of TorchScript
        network = torch.jit.load(str(path), map_location=device, _extra_files=extra).eval()
    facts = read_facts(_text(extra[INSIDE]), str(path))
    kind = {"float16": torch.float16}.get(facts.precision, torch.float32)

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(in_unit(images)).to(device, kind)).float().cpu().numpy()

    return Opened(run, facts, f"TorchScript in torch {torch.__version__}", kind, shared=True)


def built_once(build: Callable[..., V]) -> Callable[..., V]:
    """Return `build` with a cache. If several threads ask for the same value at once, only one of them builds it."""
    made: dict[tuple[Hashable, ...], V] = {}
    lock = threading.Lock()

    def get(*key: Hashable) -> V:
        if key not in made:
            with lock:
                if key not in made:
                    made[key] = build(*key)
        return made[key]

    return get


def onnx_session(source: str | bytes, device: torch.device, threads: int = 0) -> Any:
    """Create an ONNX Runtime session from a file's path or bytes; threads: 0 means torch's number of threads.

    It runs on a GPU if `device` is one and ONNX Runtime supports it, otherwise on the CPU.
    """
    onnxruntime = need("onnxruntime", "an .onnx file")
    getattr(onnxruntime, "disable_telemetry_events", lambda: None)()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    wanted = (GPU_PROVIDER,) * (device.type == "cuda") + ("CPUExecutionProvider",)
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(source, options, providers=providers)


def open_onnx(path: Path, device: torch.device, dtype: torch.dtype) -> Opened:
    """Open an ONNX file, exported by this program or by YOLOv5, on the CPU or a GPU."""
    return onnx_engine(str(path), device)


def onnx_engine(source: str | bytes, device: torch.device, facts: ExportFacts | None = None) -> Opened:
    """Open an ONNX file, or the content of one, in ONNX Runtime. facts: its metadata if the file has none.

    There is one session for each number of threads that the callers have.
    """
    session_of = built_once(functools.partial(onnx_session, source, device))
    session = session_of(torch.get_num_threads())
    fields, (first, *_) = session.get_modelmeta().custom_metadata_map, session.get_inputs()
    if facts is None:
        facts = (read_facts(fields[INSIDE], str(source)) if INSIDE in fields
                 else facts_of_yolov5(fields, str(source), list(first.shape)))  # fmt: skip
    kind = np.float16 if "float16" in first.type else np.float32
    on_gpu = GPU_PROVIDER in session.get_providers()

    def run(images: np.ndarray) -> np.ndarray:
        mine = session if on_gpu else session_of(torch.get_num_threads())
        feed = {first.name: in_unit(images).astype(kind, copy=False), **low}
        found = mine.run(None, feed)[0].astype(np.float32, copy=False)
        return as_decoded(found, len(images), len(facts.names), int(facts.nms["max_det"])) if facts.nms else found

    # a lower threshold only adds boxes, and the caller applies its own threshold later
    low = {"conf_thres": np.array([LOWEST], np.float32)} if facts.nms else {}
    on_cpu = " on the CPU" * (device.type == "cuda" and not on_gpu)
    return Opened(run, facts, f"ONNX Runtime {need('onnxruntime', '').__version__}{on_cpu}", torch.float32, not on_gpu)


def as_decoded(rows: np.ndarray, batch: int, nc: int, most: int) -> np.ndarray:
    """Convert detections (m, 7) of `models.export.onnx_nms.with_nms` to decoded boxes (b, most, 5 + nc).

    Each box has a score for its own class only. Images with fewer than `most` detections are filled up with zeros.
    """
    made = np.zeros((batch, most, 5 + nc), np.float32)
    for k in range(batch):
        mine = rows[rows[:, 0] == k]
        made[k, : len(mine), :2] = (mine[:, 1:3] + mine[:, 3:5]) / 2
        made[k, : len(mine), 2:4] = mine[:, 3:5] - mine[:, 1:3]
        made[k, : len(mine), 4] = mine[:, 5]
        made[k, np.arange(len(mine)), 5 + mine[:, 6].astype(int)] = 1
    return made


@functools.cache
def openvino_core() -> Any:
    """Return OpenVINO's Core, one for the whole process.

    A Core that is destroyed restores the signal stack of the Core before it, even if that one no longer exists. The
    next signal, such as Ctrl-C or the end of a child process, would then crash Python.
    """
    return need("openvino", "an OpenVINO model").Core()


def open_openvino(path: Path, device: torch.device, dtype: torch.dtype) -> Opened:
    """Open a folder with an OpenVINO model, on the CPU; dtype: float32 or bfloat16."""
    need("openvino", "an OpenVINO model")
    facts = _facts_beside(path)
    return openvino_engine(_only(path, "*.xml"), facts, dtype)


def openvino_engine(source: Path | bytes, facts: ExportFacts, dtype: torch.dtype, threads: int = 0) -> Opened:
    """Open the .xml file of an OpenVINO model, or the content of an ONNX file, in OpenVINO; dtype: as above.

    threads: that most calls will have; 0 means torch's number of threads.
    """
    openvino, bf16 = need("openvino", "OpenVINO"), dtype == torch.bfloat16
    core = openvino_core()
    network = core.read_model(io.BytesIO(source) if isinstance(source, bytes) else source)
    model = OpenVinoModel(openvino, core, network, bf16, facts.dynamic, threads or torch.get_num_threads())
    name = f"OpenVINO {openvino.__version__.split('-')[0]}"
    return Opened(model, facts, name, dtype if bf16 else torch.float32, True, model.expect)


def open_ncnn(path: Path, device: torch.device, dtype: torch.dtype) -> Opened:
    """Open a folder with an ncnn model, on the CPU in float32."""
    ncnn = need("ncnn", "an ncnn model")
    facts = _facts_beside(path)
    param = _only(path, "*.ncnn.param")
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    # ncnn uses these formats by default where the CPU has them; the exported model was checked without them
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    if net.load_param(str(param)) or net.load_model(str(param.with_suffix(".bin"))):
        raise UserError(f"{param} cannot be read by ncnn; export it again")

    def run(images: np.ndarray) -> np.ndarray:
        return np.stack([one(image) for image in in_unit(images)])

    def one(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image))
        code, found = extractor.extract("out0")
        if code:
            raise UserError(f"{param}: ncnn could not run it on an image of {image.shape[1]}x{image.shape[2]} px")
        return np.array(found)

    return Opened(run, facts, f"ncnn {ncnn.__version__}", torch.float32)


def open_tflite(path: Path, device: torch.device, dtype: torch.dtype) -> Opened:
    """Open a TensorFlow Lite file, on the CPU in float32."""
    need("ai_edge_litert", "a .tflite file")
    interpreter_of = importlib.import_module("ai_edge_litert.interpreter").Interpreter
    with zipfile.ZipFile(path) as z:
        facts = read_facts(_text(z.read(INSIDE)), str(path))
    interpreter = interpreter_of(str(path), num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given, in_unit(images))
        interpreter.invoke()
        return interpreter.get_tensor(made)

    return Opened(run, facts, "TensorFlow Lite (LiteRT)", torch.float32)


OPENERS = MappingProxyType({"torchscript": open_torchscript, "onnx": open_onnx, "openvino": open_openvino,
                            "ncnn": open_ncnn, "tflite": open_tflite})  # fmt: skip


def _text(content: str | bytes) -> str:
    return content if isinstance(content, str) else content.decode("utf-8", "replace")


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise UserError(f"{folder}: {len(files)} files match {pattern}; an exported model has exactly one")
    return files[0]


def _facts_beside(folder: Path) -> ExportFacts:
    file = folder / INSIDE
    try:
        with open(file, "rb") as f:
            content = f.read(LARGEST + 1)
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}): it contains the model's class names; export "
                        "the model again") from e  # fmt: skip
    return read_facts(_text(content), str(folder))
