"""A trained detector as YOLOv5's scripts load and call it: `DetectMultiBackend`, and `attempt_load` in older ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from models.export.engines import kind_of
from models.export.exported import ExportedRuntime
from models.inference.runtime import to_input
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.system.device import select_device

Device = torch.device | str | int | None
# format -> its name in YOLOv5's scripts
FLAGS = MappingProxyType({"": "pt", "torchscript": "jit", "onnx": "onnx", "openvino": "xml", "ncnn": "ncnn",
                          "tflite": "tflite"})  # fmt: skip


class DetectMultiBackend(nn.Module):
    """A checkpoint or an exported model, ready to predict; `model` is the network, None for an exported model.

    Holds `names` {index: class name}, `stride` (largest, pixels), `device`, `fp16` (whether it runs in half precision),
    and which of the formats it is: `pt` (a checkpoint, which takes any size), `jit` (TorchScript), `onnx`, `xml`
    (OpenVINO), `ncnn`, `tflite`; the others are not offered. dnn, data and fuse are taken for the sake of YOLOv5's
    scripts and have no effect: the names come with the weights, and the network is always fused.
    Raises UserError if weights are no model, or several.
    """

    pt = jit = onnx = xml = ncnn = tflite = False
    engine = coreml = saved_model = pb = edgetpu = tfjs = paddle = triton = False

    def __init__(
        self, weights: str | Path | Sequence[str | Path] = "best.pt", device: Device = "cpu", dnn: bool = False,
        data: str | Path | None = None, fp16: bool = False, fuse: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        file = _one_file(weights)
        self.device = select_device(device)
        kind = kind_of(Path(file))
        setattr(self, FLAGS[kind], True)
        self.model, self.exported = None, None
        if kind:
            self.exported, self.fp16 = ExportedRuntime(Path(file), self.device), False
            self.names, self.stride = self.exported.names, self.exported.stride
            return
        self.fp16 = fp16 and self.device.type != "cpu"
        model = model_from_checkpoint(load_checkpoint(file), file).fuse()
        self.model = model.to(self.device, torch.half if self.fp16 else torch.float, memory_format=torch.channels_last)
        self.names, self.stride = model.names, int(model.stride.max())

    @torch.no_grad()  # not inference mode: scripts write into what they get
    def forward(self, im: Tensor, augment: bool = False, visualize: bool = False) -> list[Tensor]:
        """Decode a batch: (b, 3, h, w) float in [0, 1], or uint8, RGB, sides multiples of `stride`.

        Returns a list of one: (b, n, 5 + nc), cx, cy, w, h in pixels, objectness, class scores.
        Raises UserError for `visualize`, and for sizes that a model was not exported for.
        """
        if visualize:
            raise UserError("visualize: detect.py --visualize writes these pictures, a model alone does not")
        if self.exported:
            return [self.exported.predict(im, augment)]
        # the network's own precision, as some scripts change it by model.model.half()
        x = to_input(im, self.device).to(next(self.model.parameters()).dtype)
        return [self.model(x, augment=augment)[0]]

    def warmup(self, imgsz: Sequence[int] = (1, 3, 640, 640)) -> None:
        """Run an empty batch of this shape, so that what the first use costs is not in the times measured later."""
        batch, channels, height, width = imgsz
        if self.exported and self.exported.size:
            height, width = self.exported.size
        self(torch.zeros(batch, channels, height, width))


def attempt_load(
    weights: str | Path | Sequence[str | Path], device: Device = None, inplace: bool = True, fuse: bool = True,
    map_location: Device = None,
) -> DetectionModel:  # fmt: skip
    """Load a checkpoint's network: float32, in eval mode, fused if asked, on the device (the CPU if None).

    map_location: the older name of `device`. inplace is taken for the sake of YOLOv5's scripts and has no effect.
    Raises UserError if weights are no checkpoint, or several.
    """
    file = _one_file(weights)
    model = model_from_checkpoint(load_checkpoint(file), file)
    where = device if device is not None else map_location if map_location is not None else "cpu"
    return (model.fuse() if fuse else model).to(select_device(where))


def _one_file(weights: str | Path | Sequence[str | Path]) -> str | Path:
    files = [weights] if isinstance(weights, (str, Path)) else list(weights)
    if len(files) != 1:
        raise UserError(f"weights: {len(files)} files; ensembles are not offered, give one checkpoint")
    return files[0]
