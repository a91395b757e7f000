"""The loaders that YOLOv5's scripts call: `DetectMultiBackend`, and `attempt_load` in older versions."""

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
# format -> the attribute of DetectMultiBackend that YOLOv5's scripts read
FLAGS = MappingProxyType({"": "pt", "torchscript": "jit", "onnx": "onnx", "openvino": "xml", "ncnn": "ncnn",
                          "tflite": "tflite"})  # fmt: skip


class DetectMultiBackend(nn.Module):
    """A checkpoint or an exported model, ready to predict; `model` is the network, None for an exported model.

    Attributes: `names` {index: class name}, `stride` (largest, pixels), `device`, `fp16` (whether it runs in half
    precision). One of the flags `pt` (a checkpoint, which takes any size), `jit` (TorchScript), `onnx`, `xml`
    (OpenVINO), `ncnn` and `tflite` is True; other formats are not supported. The arguments dnn, data and fuse are
    accepted for compatibility with YOLOv5 and have no effect: class names come from the weights file, and the network
    is always fused. Raises UserError if weights is not a model file, or more than one.
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

    @torch.no_grad()  # not inference mode, as scripts modify the output in place
    def forward(self, im: Tensor, augment: bool = False, visualize: bool = False) -> list[Tensor]:
        """Decode a batch: (b, 3, h, w) float in [0, 1], or uint8, RGB, sides multiples of `stride`.

        Returns a list with one tensor (b, n, 5 + nc): cx, cy, w, h in pixels, objectness, class scores.
        Raises UserError for `visualize`, and for image sizes that the model was not exported for.
        """
        if visualize:
            raise UserError("visualize: only detect.py --visualize writes feature maps; call the model without it")
        if self.exported:
            return [self.exported.predict(im, augment)]
        # the network's current dtype, which scripts may have changed with model.model.half()
        x = to_input(im, self.device).to(next(self.model.parameters()).dtype)
        return [self.model(x, augment=augment)[0]]

    def warmup(self, imgsz: Sequence[int] = (1, 3, 640, 640)) -> None:
        """Run a batch of zeros of this shape, so that later timings do not include the cost of the first call."""
        batch, channels, height, width = imgsz
        if self.exported and self.exported.size:
            height, width = self.exported.size
        self(torch.zeros(batch, channels, height, width))


def attempt_load(
    weights: str | Path | Sequence[str | Path], device: Device = None, inplace: bool = True, fuse: bool = True,
    map_location: Device = None,
) -> DetectionModel:  # fmt: skip
    """Load a checkpoint's network in float32 and eval mode, fused if `fuse`, on `device` (None: the CPU).

    map_location: the older name of `device`. inplace is accepted for compatibility with YOLOv5 and has no effect.
    Raises UserError if weights is not a checkpoint file, or more than one.
    """
    file = _one_file(weights)
    model = model_from_checkpoint(load_checkpoint(file), file)
    where = device if device is not None else map_location if map_location is not None else "cpu"
    return (model.fuse() if fuse else model).to(select_device(where))


def _one_file(weights: str | Path | Sequence[str | Path]) -> str | Path:
    files = [weights] if isinstance(weights, (str, Path)) else list(weights)
    if len(files) != 1:
        raise UserError(f"weights: {len(files)} files; ensembles are not supported, give one checkpoint")
    return files[0]
