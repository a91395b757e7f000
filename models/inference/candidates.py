"""The engines that can run a checkpoint on a CPU: conversion, comparison with the network, timing.

ONNX Runtime and OpenVINO both run one ONNX graph for images of any size, which is kept in the user's cache folder.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.export.check import seen, tolerances
from models.export.engines import first_line, need, onnx_engine, openvino_engine
from models.export.exported import ExportedRuntime
from models.export.exporters import onnx_graph
from models.export.facts import ExportFacts, read_facts
from models.export.form import ExportForm
from models.inference.engine_cache import Record, digest_of, read_model, read_record, write_model, write_record
from models.inference.runtime import DEFAULT_IMGSZ, AnyRuntime, Runtime, check_channels, check_img_size
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint
from models.yolo import DetectionModel
from utils.data.images import read_image
from utils.data.sources import network_input
from utils.errors import UserError
from utils.files import ROOT, no_file
from utils.system.background import calls_at_a_time, one_torch_thread, side_by_side
from utils.system.console import LOGGER, quiet
from utils.system.device import cpu_info
from utils.system.precision import inference_precision
from utils.system.profiling import REST

CPU = torch.device("cpu")
AS_EXACT = 1.5  # times the rounding errors of PyTorch in bfloat16 are allowed to an engine in bfloat16
ROUNDS, SECONDS = 5, 1.0  # of timing; a slow network takes longer, as two rounds are needed


class Candidates:
    """The engines that can run a checkpoint on the CPU. The network is loaded and converted only when necessary."""

    def __init__(self, weights: Path, amp: str) -> None:
        self.weights, self.amp = weights, amp
        self.wanted = inference_precision(amp, CPU)

    @functools.cached_property
    def record(self) -> Record:
        """What is remembered about the checkpoint."""
        try:
            return Record("") if no_file(self.weights) else read_record(digest_of(self.weights))
        except OSError:  # told when the checkpoint is loaded
            return Record("")

    @functools.cached_property
    def content(self) -> dict:
        """The content of the checkpoint. If the file was replaced since `record` was read, nothing is remembered."""
        digest, content = self.record.weights, load_checkpoint(self.weights)
        if digest and digest != digest_of(self.weights):
            self.record = Record("")
        return content

    def network(self) -> DetectionModel:
        """Return a new instance of the network, in float32."""
        model = model_from_checkpoint(self.content, self.weights)
        check_channels(model.yaml, self.weights)
        return model

    @functools.cached_property
    def plain(self) -> Runtime:
        """The network in PyTorch."""
        return self._runtime(self.amp)

    def _runtime(self, amp: str) -> Runtime:
        with one_torch_thread():  # as in `load_runtime`
            return Runtime(self.network(), CPU, False, self.content.get("imgsz"), amp)

    def pytorch(self, why: str) -> Runtime:
        """Return the network in PyTorch. why: the reason to log for this choice."""
        self.plain.reason += f", PyTorch, {why}"
        return self.plain

    @functools.cached_property
    def converted(self) -> tuple[bytes, ExportFacts]:
        """The network as an ONNX graph for any size, with its metadata: from the cache, or else converted now."""
        maker = maker_of_graphs()
        if self.record.maker == maker and (known := read_model(self.record)):
            try:
                return known, read_facts(self.record.facts, str(self.weights))
            except UserError:  # not written by this program
                pass
        model = self.network().eval()
        need("onnx", "--engine")
        stride, imgsz = int(model.stride.max()), self.content.get("imgsz") or DEFAULT_IMGSZ
        facts = ExportFacts(dict(model.names), stride, (imgsz, imgsz), dynamic=True, source=self.weights.name)
        try:
            graph = onnx_graph(ExportForm(model, None), torch.rand(1, 3, 2 * stride, 2 * stride), dynamic=True)
        except Exception as e:  # the exporter raises exceptions of many types
            raise UserError(f"{self.weights} cannot be converted to ONNX: {first_line(e)}; use --engine pytorch") from e
        write_model(self.record, graph, facts.to_json(), maker)
        write_record(self.record)
        return graph, facts

    def open(self, engine: str) -> ExportedRuntime:
        """Open an engine in the number format of --amp; with 'auto' in float32 if the engine is less exact in bfloat16.

        Raises UserError if it cannot be opened, or if its boxes and scores differ from PyTorch's.
        """
        tried = ["off"]
        if engine == "openvino" and self.wanted.dtype == torch.bfloat16:
            tried = [self.amp] if self.amp == "bf16" else [self.amp, "off"]
        for amp in tried:
            runtime = self._open(engine, amp)
            if self._is_exact(runtime):
                return runtime
        raise UserError(f"--engine {engine}: its boxes and scores differ from PyTorch's; use --engine pytorch")

    def _open(self, engine: str, amp: str) -> ExportedRuntime:
        graph, facts = self.converted
        dtype, share = inference_precision(amp, CPU).dtype, max(torch.get_num_threads() // calls_at_a_time(CPU), 1)
        try:
            opened = onnx_engine(graph, CPU, facts) if engine == "onnx" else openvino_engine(graph, facts, dtype, share)
        except UserError:
            raise
        except Exception as e:  # each engine raises its own exceptions
            raise UserError(f"--engine {engine}: cannot open {self.weights}: {first_line(e)}") from e
        return ExportedRuntime(self.weights, CPU, amp=amp, opened=opened)

    def _is_exact(self, runtime: ExportedRuntime) -> bool:
        """Whether an engine's outputs are within rounding of the network's, by comparison or as recorded."""
        engine = f"{runtime.reason}; torch {torch.__version__}, {cpu_name()}"
        if engine not in self.record.checked:
            exact = self._runtime("off")
            images = examples(check_img_size(runtime.imgsz, runtime.stride), runtime.stride)
            expected = [exact.predict(image) for image in images]
            allowed = np.array(tolerances(runtime.facts))
            if runtime.dtype == torch.bfloat16:
                allowed += AS_EXACT * errors(self.plain, images, expected)
            self.record.checked[engine] = bool((errors(runtime, images, expected) <= allowed).all())
            write_record(self.record)
        return self.record.checked[engine]

    def known_speeds(self, engines: Sequence[str], imgsz: int | list[int] | None) -> dict[str, float] | None:
        """Return the recorded milliseconds per image of PyTorch and the engines measured with it, None if unknown."""
        if not all(self.record.trained):
            return None
        found = self.record.speeds.get(self._conditions(imgsz), {})
        speeds = {engine: found[engine] for engine in ("pytorch", *engines) if engine in found}
        return speeds if "pytorch" in speeds else None

    def measure(
        self, engines: Sequence[str], imgsz: int | list[int] | None
    ) -> tuple[dict[str, float], dict[str, AnyRuntime]]:
        """Time PyTorch and the engines that can be opened; return milliseconds per image, and the opened engines."""
        runtimes: dict[str, AnyRuntime] = {"pytorch": self.plain}
        for engine in engines:
            try:
                runtimes[engine] = self.open(engine)
            except UserError as e:
                LOGGER.warning(f"not used: {e}")
        self.record.trained = self.plain.imgsz, self.plain.stride
        with quiet():
            size = check_img_size(imgsz or self.plain.imgsz, self.plain.stride)
        for engine in list(runtimes)[1:]:
            try:
                runtimes[engine].predict(noise(size))
            except (UserError, MemoryError) as e:
                LOGGER.warning(f"not used: --engine {engine}: {first_line(e)}")
                del runtimes[engine]
        speeds = time_engines(runtimes, size)
        self.record.speeds[self._conditions(imgsz)] = speeds
        write_record(self.record)
        return speeds, runtimes

    def _conditions(self, imgsz: int | list[int] | None) -> str:
        """Return all that a measurement depends on, as the key of the record."""
        side, stride = self.record.trained
        with quiet():
            size = check_img_size(imgsz or side, stride)
        versions = ", ".join(f"{p} {version_of(p)}" for p in ("torch", "onnxruntime", "openvino"))
        return (f"{size[0]}x{size[1]} px, --amp {self.amp}, {self.wanted.dtype}; {versions}; {cpu_name()}, "
                f"{torch.get_num_threads()} threads")  # fmt: skip


def cpu_name() -> str:
    """Return the name of this machine's processor, as exactly as the system gives it."""
    return (cpu_info().get("model name") or platform.processor() or platform.machine() or "unknown CPU")[:200]


def maker_of_graphs() -> str:
    """Return what a converted graph depends on besides the checkpoint: the packages' versions and this program."""
    program = hashlib.sha256(b"".join(file.read_bytes() for file in sorted((ROOT / "models").rglob("*.py"))))
    return f"torch {version_of('torch')}, onnx {version_of('onnx')}, {program.hexdigest()}"


def version_of(package: str) -> str:
    """Return the version of an installed package, or 'none'."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def examples(size: Sequence[int], stride: int) -> list[Tensor]:
    """Return the images of data/images that engines are compared on, each (1, 3, h, w) uint8, letterboxed to `size`."""
    files = sorted((ROOT / "data/images").glob("*.jpg"))[:2]
    made = [network_input(read_image(file), list(size), stride, auto=True) for file in files]
    return [torch.from_numpy(np.ascontiguousarray(image[None])) for image in made] or [noise(size)]


def noise(size: Sequence[int]) -> Tensor:
    """Return an image of noise, (1, 3, h, w) uint8, always the same."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, *size), np.uint8))


def errors(runtime: AnyRuntime, images: Sequence[Tensor], expected: Sequence[Tensor]) -> np.ndarray:
    """Return the largest differences of boxes (pixels) and scores from the expected ones, among visible boxes."""
    worst = np.zeros(2)
    for image, right in zip(images, expected, strict=True):
        found = runtime.predict(image)
        if found.shape != right.shape:
            return np.full(2, np.inf)
        off = (found - right).abs().numpy()[seen(right.numpy())]
        worst = np.maximum(worst, (off[:, :4].max(initial=0), off[:, 4:].max(initial=0)))
    return worst


def time_engines(runtimes: Mapping[str, AnyRuntime], size: Sequence[int]) -> dict[str, float]:
    """Return the milliseconds per image of each engine, as detect.py runs them: several images at a time.

    The engines take turns, and rest before each turn until the threads of the previous one have stopped spinning. The
    first round is not counted; the shortest time of the others is returned.
    size: (h, w) of the images; engines are prepared for it, as they are after the first images of a folder or video.
    """
    count = calls_at_a_time(CPU)
    images = [noise(size)] * (2 * count)
    for runtime in runtimes.values():
        if isinstance(runtime, ExportedRuntime):
            runtime.expect(images[0].shape)
    times, start = {engine: [] for engine in runtimes}, None
    for number in range(1 + ROUNDS):
        for engine, runtime in runtimes.items():
            time.sleep(REST)
            begin = time.perf_counter()
            for _ in side_by_side(runtime.predict, images, count):
                pass
            times[engine].append(time.perf_counter() - begin)
        start = start or time.perf_counter()
        if number >= 2 and time.perf_counter() - start > SECONDS:
            break
    return {engine: round(min(found[1:]) / len(images) * 1e3, 3) for engine, found in times.items()}
