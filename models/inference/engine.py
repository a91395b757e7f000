"""The engine that runs a checkpoint in detect.py: PyTorch, or ONNX Runtime or OpenVINO where they are faster.

For ONNX Runtime and OpenVINO, the network is converted to one ONNX graph for images of any size. The graph is compared
with the network, the engines are timed in turns, and all this is remembered in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch

from models.export.engines import installed, kind_of, need, without_logs
from models.inference.runtime import AnyRuntime, load_runtime
from utils.data.sources import STREAM_SCHEMES, Video, list_media, scheme_of
from utils.errors import UserError, did_you_mean
from utils.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from utils.settings.options import ENGINE_CHOICES
from utils.system.console import LOGGER
from utils.system.opencv import cv2

if TYPE_CHECKING:
    from models.inference.candidates import Candidates

NAMES = MappingProxyType({"pytorch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"})
PACKAGES = MappingProxyType({"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")})
SOME = 30  # images for which it pays to load a known faster engine, which takes some tenths of a second more
MANY = 300  # images for which it pays to find out which engine is faster, which takes some seconds
FASTER = 0.9  # of PyTorch's time: an engine that takes longer is not worth it


def load_fastest(
    weights: Path, device: torch.device, half: bool = False, amp: str = "off", engine: str = "auto",
    imgsz: int | list[int] | None = None, frames: Callable[[int], int] = lambda most: 0, only: str = "",
) -> AnyRuntime:  # fmt: skip
    """Load a checkpoint into the engine of `--engine`, or an exported model; its `reason` names the engine.

    imgsz: size that engines are timed with, None: as trained. frames: returns the number of images to process, or
    `most` if there are more. only: a flag, such as --augment, that only PyTorch supports.
    Raises UserError for an engine that is not installed, or cannot be combined with the other arguments.
    """
    if engine not in ENGINE_CHOICES:
        raise UserError(f"--engine {engine}{did_you_mean(engine, ENGINE_CHOICES)}: one of {', '.join(ENGINE_CHOICES)}")
    kind = kind_of(weights)
    if kind and engine in ("auto", kind):
        return load_runtime(weights, device, half, amp)
    against = _against(weights, device, half, only)
    if kind or engine in PACKAGES and against:
        raise UserError(f"--engine {engine} {against}")
    if engine == "onnx" and amp == "bf16":
        raise UserError("--engine onnx computes in float32 on a CPU: leave --amp out, or use --engine openvino")
    for package in PACKAGES.get(engine, ()):
        need(package, f"--engine {engine}")
    others = [engine] if engine in PACKAGES else [] if against or engine == "pytorch" else available()
    others = [other for other in others if (other, amp) != ("onnx", "bf16")]
    count = MANY if engine in PACKAGES else frames(MANY) if others else 0
    if count < SOME:
        runtime = load_runtime(weights, device, half, amp)
        if device.type == "cpu":
            runtime.reason += f", PyTorch{' for a few images' if others else ''}"
        return runtime
    from models.inference.candidates import Candidates  # not needed for a few images, and takes time to import

    candidates = Candidates(weights, amp)
    return candidates.open(engine) if engine in PACKAGES else _automatic(candidates, others, imgsz, count)


def _against(weights: Path, device: torch.device, half: bool, only: str) -> str:
    """Return why only the usual engine can be used, as the end of a message, or an empty string."""
    if kind_of(weights):
        return f"is for checkpoints, but {weights} is an exported model with its own engine: leave --engine out"
    if device.type != "cpu":
        return "is for CPUs: leave it out, or give --device cpu"
    if half:
        return "computes in the number format of --amp: leave --half out"
    return f"cannot be combined with {only}: leave it out" if only else ""


def available() -> list[str]:
    """Return the engines other than PyTorch whose packages are installed."""
    return [engine for engine, packages in PACKAGES.items() if installed(*packages)]


def _automatic(
    candidates: Candidates, engines: Sequence[str], imgsz: int | list[int] | None, count: int
) -> AnyRuntime:  # fmt: skip
    """Load the engine known to be the fastest; if none is, time them if `count` images are enough to pay for that."""
    speeds = candidates.known_speeds(engines, imgsz)
    if speeds is None and count < MANY:
        names = " and ".join(NAMES[engine] for engine in engines)
        return candidates.pytorch(f"not compared with {names} for fewer than {MANY} images")
    runtimes: dict[str, AnyRuntime] = {}
    if speeds is None:
        LOGGER.info(f"engine: comparing {', '.join(NAMES[e] for e in ('pytorch', *engines))} on {candidates.weights}; "
                    "this is remembered")  # fmt: skip
        speeds, runtimes = candidates.measure(engines, imgsz)
    best = fastest(speeds)
    if best == "pytorch":
        return candidates.pytorch("the fastest engine here")
    try:
        runtime = runtimes.get(best) or candidates.open(best)
    except UserError as e:
        return candidates.pytorch(f"as {NAMES[best]} fails: {e}")
    runtime.reason += f", {speeds['pytorch'] / speeds[best]:.1f} times as fast as PyTorch here"
    return runtime


def fastest(speeds: Mapping[str, float]) -> str:
    """Return the engine to use, given milliseconds per image: PyTorch, unless another one is clearly faster."""
    best = min(speeds, key=speeds.__getitem__)
    return best if speeds[best] < FASTER * speeds["pytorch"] else "pytorch"


def count_frames(source: str, vid_stride: int, most: int) -> int:
    """Return the number of images and frames of a `--source`, or `most` if there are more, as in a stream.

    A file that would have to be downloaded counts as one image, and a source that cannot be read as none.
    """
    source = str(source).strip()
    scheme = scheme_of(source)
    suffix = Path(urlsplit(source).path if scheme in STREAM_SCHEMES else source).suffix.lower()
    if scheme in ("http", "https") and suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        return 1
    if source.isdecimal() or suffix == ".streams" or scheme in STREAM_SCHEMES:
        return most
    count = 0
    try:
        with without_logs():  # the source is opened again later
            files = list_media(source)
    except UserError:
        return 0
    for number, file in enumerate(files):
        if count + len(files) - number >= most:  # each has at least one
            return most
        if Path(file).suffix.lower() not in VIDEO_SUFFIXES:
            count += 1
            continue
        capture = cv2.VideoCapture(file)
        count += max(Video(capture).total // max(vid_stride, 1), 1)
        capture.release()
    return min(count, most)
