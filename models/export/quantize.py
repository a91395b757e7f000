"""Quantize exported networks to 8-bit integers with ONNX Runtime or NNCF; sensitive layers stay in float."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.export.decoders import Branches
from models.export.engines import need, openvino_core, without_logs
from models.export.form import ExportForm
from utils.errors import UserError


class Calibration(NamedTuple):
    """Images for calibration, (n, 3, h, w) uint8 RGB, which set the quantization ranges; batch: images at a time.

    left: names of the layers that stay in float, as returned by `layers_of`.
    """

    images: np.ndarray
    batch: int = 1
    left: Sequence[str] = ()

    @property
    def starts(self) -> range:
        """The index of each batch's first image."""
        return range(0, len(self.images), self.batch)

    def batch_from(self, start: int) -> np.ndarray:
        """Return a batch of images, float32 in [0, 1]; the last batch is filled up with images from the start."""
        return self.images[np.arange(start, start + self.batch) % len(self.images)].astype(np.float32) / 255


def layers_of(form: ExportForm) -> dict[str, nn.Module]:
    """Return the layers with convolutions and the head's convolutions, by their names in exported graphs."""
    every = {f"layers.{k}": m for k, m in enumerate(form.layers)}
    for k, m in enumerate(form.convs):
        every |= {f"convs.{k}.{n}": b for n, b in m.named_children()} if isinstance(m, Branches) else {f"convs.{k}": m}
    return {name: m for name, m in every.items() if any(isinstance(n, nn.Conv2d) for n in m.modules())}


def quantize_onnx(model: Any, calibration: Calibration) -> Any:
    """Quantize an ONNX model's weights and activations to 8 bits (ONNX Runtime, static); decoding stays in float."""
    onnx, tools = need("onnx", "--int8"), _part_of("onnxruntime", "quantization")
    prepare = _part_of("onnxruntime", "quantization.shape_inference").quant_pre_process

    class Reader(tools.CalibrationDataReader):
        starts = iter(calibration.starts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.starts, None)
            return None if start is None else {"images": calibration.batch_from(start)}

    quantized = tuple(f"/{name}/" for name in ("layers", "convs"))
    left = tuple("/" + re.sub(r"^(convs.\d+)\.", r"\1/", name) + "/" for name in calibration.left)
    with tempfile.TemporaryDirectory() as folder, without_logs():
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        prepare(model, str(given), skip_symbolic_shape=True)
        nodes = [node.name for node in onnx.load(str(given)).graph.node]
        excluded = [name for name in nodes if not name.replace(".", "/").startswith(quantized) or name.startswith(left)]
        tools.quantize_static(
            str(given), str(made), Reader(), per_channel=True, nodes_to_exclude=excluded,
            activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
            extra_options={"CalibMovingAverage": True})  # fmt: skip
        return onnx.load(str(made))


def quantize_openvino(network: Any, calibration: Calibration) -> Any:
    """Quantize an OpenVINO model's weights and activations to 8 bits with NNCF; decoding stays in float."""
    nncf = need("nncf", "--int8 with openvino")
    openvino_core().get_property("CPU", "FULL_DEVICE_NAME")  # create our Core before NNCF's, which is destroyed first
    left = [rf"__module\.{re.escape(name)}[./].*" for name in ("decoder", *calibration.left)]
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        network, nncf.Dataset(calibration.starts, calibration.batch_from), subset_size=len(calibration.starts),
        preset=nncf.QuantizationPreset.MIXED,  # asymmetric activations, and convolutions fuse with what follows
        ignored_scope=nncf.IgnoredScope(patterns=[r"(?!__module\.).*", *left], validate=False))  # fmt: skip


def with_sensitive_left(
    build: Callable[[Sequence[str]], Path], measure: Callable[[Path], float], least: float,
    ranked: Callable[[], Sequence[str]],
) -> tuple[Path, float, Sequence[str]]:  # fmt: skip
    """Quantize with as few layers in float as an accuracy of `least` needs: none, or the 1, 2, 4, ... most sensitive.

    build: writes a model with the given layers in float; ranked: returns the layers, the most sensitive first.
    Returns the file, its accuracy and the layers in float. Raises UserError if half of all layers are not enough.
    """
    file = build(())
    accuracy = measure(file)
    if accuracy >= least:
        return file, accuracy, ()
    order, count = ranked(), 1
    while count <= len(order) // 2:
        file = build(order[:count])
        accuracy = measure(file)
        if accuracy >= least:
            return file, accuracy, order[:count]
        count *= 2
    raise UserError(f"--int8: mAP50 is {accuracy:.3f}, below {least:.3f}, even with {count // 2} of {len(order)} "
                    "layers in float; not written")  # fmt: skip


@torch.inference_mode()
def sensitive_first(form: ExportForm, images: np.ndarray) -> list[str]:
    """Sort the layers by how much boxes and scores change when only that layer is in 8 bits, the largest first.

    images: (n, 3, h, w) uint8 RGB.
    """
    layers, inputs = layers_of(form), [torch.from_numpy(i[None]).float() / 255 for i in images]
    ranges: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, value: Tensor) -> None:
        ranges.setdefault(module, []).append(torch.stack(value.aminmax()))

    with _hooks(layers.values(), note):
        exact = [form(x) for x in inputs]
    steps = {m: torch.stack(r).mean(0) for m, r in ranges.items()}
    changes = {}
    for name, layer in layers.items():
        with _hooks([layer], lambda m, value: in_8_bits(value, *steps[m])), _weights_in_8_bits(layer):
            changes[name] = sum(change(form(x), y) for x, y in zip(inputs, exact, strict=True))
    return sorted(changes, key=changes.get, reverse=True)


def change(found: Tensor, exact: Tensor) -> float:
    """Return the difference of decoded boxes (b, n, 5 + nc): of scores, plus of boxes weighted by the exact scores."""
    scores, sure = found[..., 4:5] * found[..., 5:], exact[..., 4:5] * exact[..., 5:]
    shift = (found[..., :4] - exact[..., :4]).abs() / exact[..., 2:4].repeat(1, 1, 2)
    return float((scores - sure).abs().sum() + (shift * sure.amax(-1, keepdim=True)).sum())


def in_8_bits(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round values to 256 even steps from low to high, a range extended to include 0; others are clamped."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-12)
    return torch.fake_quantize_per_tensor_affine(x, float(step), round(float(-low / step)), 0, 255)


@contextlib.contextmanager
def _hooks(layers: Sequence[nn.Module], each: Callable[[nn.Module, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `each` on the inputs of convolutions inside layers and layers' outputs; a result replaces them."""
    convs = {m for layer in layers for m in layer.modules() if isinstance(m, nn.Conv2d)}
    handles = [m.register_forward_pre_hook(lambda m, given: each(m, given[0])) for m in convs]
    handles += [layer.register_forward_hook(lambda m, _given, made: each(m, made)) for layer in layers
                if layer not in convs]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _weights_in_8_bits(layer: nn.Module) -> Iterator[None]:
    """Temporarily round the kernel of each output channel to 255 steps."""
    kept = {m: m.weight.data for m in layer.modules() if isinstance(m, nn.Conv2d)}
    for m, w in kept.items():
        step = (w.abs().amax((1, 2, 3)) / 127).clamp(min=1e-12)
        m.weight.data = torch.fake_quantize_per_channel_affine(w, step, torch.zeros_like(step, dtype=torch.int32), 0,
                                                               -127, 127)  # fmt: skip
    try:
        yield
    finally:
        for m, w in kept.items():
            m.weight.data = w


def _part_of(package: str, part: str) -> Any:
    need(package, "--int8")
    try:
        return importlib.import_module(f"{package}.{part}")
    except ImportError as e:
        raise UserError(f"--int8: {package}.{part} cannot be loaded ({e})") from e
