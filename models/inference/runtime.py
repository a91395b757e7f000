"""One interface for checkpoints and exported models: `predict(batch) -> (b, n, 5 + nc)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.export.engines import kind_of
from models.export.exported import ExportedRuntime
from models.inference.biases import corrected_biases
from models.inference.packed import pack
from models.weights.checkpoint import find_weights, load_checkpoint, model_from_checkpoint
from models.yolo import DetectionModel
from utils.data.augment import make_divisible
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression
from utils.files import newest
from utils.settings.config import LARGEST_IMAGE
from utils.system.background import one_torch_thread
from utils.system.console import LOGGER
from utils.system.precision import inference_precision

DEFAULT_IMGSZ = 640
BFLOAT16_COST = "scores may be a few hundredths off those of float32"


class Runtime:
    """A loaded detector, ready to predict.

    Attributes: `names` {index: class name}, `stride` (largest, pixels), `imgsz` (the image size in training, pixels),
    `device`, `dtype` (of the feature maps), `reason` (why this dtype, as text) and `size`, the (h, w) that images must
    have: None, as a network takes any. half: float16, on a GPU only; amp: see `inference_precision`.
    """

    size: list[int] | None = None

    def __init__(
        self, model: DetectionModel, device: torch.device, half: bool = False, imgsz: int | None = None,
        amp: str = "off",
    ) -> None:  # fmt: skip
        if half and device.type == "cpu":
            LOGGER.warning("--half is for GPUs; on a CPU the model runs in float32")
            half = False
            amp = "off"
        precision = inference_precision("fp16" if half else amp, device)
        self.device, self.dtype, self.reason = device, precision.dtype, precision.reason
        head = model.model[-1]
        constants = {k: b.float().to(device) for k, b in head.named_buffers(recurse=False)}  # not to be rounded
        model.fuse().eval()
        rounded = device.type == "cpu" and self.dtype == torch.bfloat16
        biases = corrected_biases(model) if rounded and _is_float32(model) else {}
        if biases:
            self.reason += f", {BFLOAT16_COST}"
        self.model = model.to(device, self.dtype, memory_format=torch.channels_last)
        for name, constant in constants.items():
            setattr(head, name, constant)
        if device.type == "cpu":
            pack(self.model, biases)
        self.names, self.stride, self.imgsz = model.names, int(model.stride.max()), imgsz or DEFAULT_IMGSZ

    @torch.inference_mode()
    def predict(self, images: Tensor, augment: bool = False) -> Tensor:
        """Decode a batch: (b, 3, h, w) uint8, or float in [0, 1], RGB, sides multiples of `stride`.

        Returns (b, n, 5 + nc) float32: cx, cy, w, h in pixels, objectness, class scores.
        """
        return self.forward(images, augment)[0]

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, list[Tensor] | None]:
        """Return the output of `predict` and the head's raw maps, the input of the loss (None with `augment`)."""
        return self.model(to_input(images, self.device, self.dtype), augment=augment)


def _is_float32(model: DetectionModel) -> bool:
    """Whether the parameters are float32; a model that is packed already has none."""
    return {p.dtype for p in model.parameters()} == {torch.float32}


AnyRuntime = Runtime | ExportedRuntime


def warm_up(runtime: AnyRuntime, height: int, width: int) -> None:
    """Run an image of zeros through the network and NMS, so that reported times exclude the cost of the first call."""
    non_max_suppression(runtime.predict(torch.zeros(1, 3, height, width, dtype=torch.uint8)))


def to_input(images: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert images (b, 3, h, w), uint8 or float in [0, 1], to a network's input: [0, 1], channels-last, on `device`.

    dtype: of the result. uint8 images are converted to it directly, which in half precision gives the same values as
    going through float32.
    """
    x = images.to(device, non_blocking=True)
    x = x.to(dtype).div_(255) if x.dtype == torch.uint8 else x.to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def load_runtime(weights: str | Path, device: torch.device, half: bool = False, amp: str = "off") -> AnyRuntime:
    """Load a checkpoint or an exported model for inference. Raises UserError if the file is neither."""
    if kind_of(Path(weights)):
        return ExportedRuntime(Path(weights), device, half, amp)
    # hundreds of small operations, in which several threads would mostly wait for each other, for seconds on a busy CPU
    with one_torch_thread():
        content = load_checkpoint(weights)
        model = model_from_checkpoint(content, weights)
        check_channels(model.yaml, weights)
        return Runtime(model, device, half, content.get("imgsz"), amp)


def check_channels(cfg: Mapping[str, Any], where: str | Path) -> None:
    """Raise UserError if the network of a model config (the content of its yaml) does not take images of 3 channels."""
    if (channels := cfg.get("ch", 3)) != 3:
        raise UserError(f"{where}: takes {channels} input channels ('ch: {channels}'), but images are read with 3")


def weights_file(weights: str | Path) -> Path:
    """Return the file for `--weights`: a checkpoint, an exported model, or the best.pt of a run's folder.

    Without `weights`, the best.pt of the newest run. Raises UserError if there is none.
    """
    if weights:
        return Path(weights) if kind_of(Path(weights)) else find_weights(weights)
    file = newest("train/*/weights/best.pt")
    if file is None:
        raise UserError("no --weights given and no trained model in runs/train; run train.py first")
    return file


def input_size(runtime: AnyRuntime, imgsz: int | list[int] | None) -> list[int]:
    """Return the [height, width] for inference: `imgsz` rounded up to the stride, or the training or export size.

    Raises UserError for sizes that the model was not exported for.
    """
    if runtime.size is None:
        return check_img_size(imgsz or runtime.imgsz, runtime.stride)
    if imgsz and check_img_size(imgsz, runtime.stride) != runtime.size:
        height, width = runtime.size
        raise UserError(f"--imgsz: this model was exported for {height}x{width} px; leave --imgsz out, or export it "
                        "with --dynamic")  # fmt: skip
    return list(runtime.size)


def check_img_size(imgsz: int | list[int], stride: int) -> list[int]:
    """Return [height, width], each rounded up to a multiple of `stride`, with a warning if that changes one.

    Raises UserError for sizes out of range, or more than two sizes.
    """
    sizes = [imgsz] * 2 if isinstance(imgsz, int) else list(imgsz)
    sizes = sizes * 2 if len(sizes) == 1 else sizes
    if len(sizes) != 2 or min(sizes) < 1 or max(sizes) > LARGEST_IMAGE:
        raise UserError(f"--imgsz {' '.join(map(str, sizes))}: give one or two sizes in pixels, 1 to {LARGEST_IMAGE}")
    fitting = [make_divisible(s, stride) for s in sizes]
    if fitting != sizes:
        given, used = (" ".join(map(str, dict.fromkeys(s) if s[0] == s[1] else s)) for s in (sizes, fitting))
        LOGGER.warning(f"--imgsz {given} is not a multiple of the largest stride, {stride}; using {used}")
    return fitting
