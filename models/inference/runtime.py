"""One interface to whatever runs a detector: `predict(batch) -> (b, n, 5 + nc)`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.export.engines import kind_of
from models.export.exported import ExportedRuntime
from models.inference.packed import pack
from models.weights.checkpoint import find_weights, load_checkpoint, model_from_checkpoint
from models.yolo import DetectionModel
from utils.data.augment import make_divisible
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression
from utils.files import newest
from utils.settings.config import LARGEST_IMAGE
from utils.system.console import LOGGER
from utils.system.precision import inference_precision

DEFAULT_IMGSZ = 640


class Runtime:
    """A loaded detector, ready to predict.

    Holds `names` {index: class name}, `stride` (largest, pixels), `imgsz` (pixels it was trained at), `device`, `dtype`
    (of its maps; half: float16, on a GPU; amp: as `inference_precision` takes it) and `reason` for that, in words.
    size: (h, w) of the only images it takes: None, as a network takes any.
    """

    size: list[int] | None = None

    def __init__(
        self, model: DetectionModel, device: torch.device, half: bool = False, imgsz: int | None = None,
        amp: str = "off",
    ) -> None:  # fmt: skip
        if half and device.type == "cpu":
            LOGGER.warning("--half is for GPUs; on a CPU the model stays in float32")
            half = False
            amp = "off"
        precision = inference_precision("fp16" if half else amp, device)
        self.device, self.dtype, self.reason = device, precision.dtype, precision.reason
        head = model.model[-1]
        anchors = head.anchors.float().to(device)  # in half precision they would be others
        self.model = model.fuse().to(device, self.dtype, memory_format=torch.channels_last).eval()
        head.anchors = anchors
        if device.type == "cpu":
            pack(self.model)
        self.names, self.stride, self.imgsz = model.names, int(model.stride.max()), imgsz or DEFAULT_IMGSZ

    @torch.inference_mode()
    def predict(self, images: Tensor, augment: bool = False) -> Tensor:
        """Decode a batch: (b, 3, h, w) uint8, or float in [0, 1], RGB, sides multiples of `stride`.

        Returns (b, n, 5 + nc) float32: cx, cy, w, h in pixels, objectness, class scores.
        """
        return self.forward(images, augment)[0]

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, list[Tensor] | None]:
        """What `predict` returns, and the head's raw maps as its loss takes them (None with `augment`)."""
        return self.model(to_input(images, self.device, self.dtype), augment=augment)


AnyRuntime = Runtime | ExportedRuntime


def warm_up(runtime: AnyRuntime, height: int, width: int) -> None:
    """Run one empty image through network and NMS, so that what the first use costs is not in the times shown."""
    non_max_suppression(runtime.predict(torch.zeros(1, 3, height, width, dtype=torch.uint8)))


def to_input(images: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (b, 3, h, w) uint8, or float in [0, 1], as a network takes them: in [0, 1], channels-last, on `device`.

    dtype: of the result; what comes as uint8 is the same in half precision whether it was float32 in between or not.
    """
    x = images.to(device, non_blocking=True)
    x = x.to(dtype).div_(255) if x.dtype == torch.uint8 else x.to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def load_runtime(weights: str | Path, device: torch.device, half: bool = False, amp: str = "off") -> AnyRuntime:
    """Load a checkpoint or an exported model to predict with. Raises UserError if it is none."""
    if kind_of(Path(weights)):
        return ExportedRuntime(Path(weights), device, half, amp)
    content = load_checkpoint(weights)
    return Runtime(model_from_checkpoint(content, weights), device, half, content.get("imgsz"), amp)


def weights_file(weights: str | Path) -> Path:
    """The checkpoint or exported model that `--weights` names, or a run's folder; the newest run's best.pt if none.

    Raises UserError if there is none.
    """
    if weights:
        return Path(weights) if kind_of(Path(weights)) else find_weights(weights)
    file = newest("train/*/weights/best.pt")
    if file is None:
        raise UserError("no --weights given and no trained model in runs/train; run train.py first")
    return file


def input_size(runtime: AnyRuntime, imgsz: int | list[int] | None) -> list[int]:
    """[height, width] to look at images in: as asked for, fitted to the stride, or as trained or exported.

    Raises UserError for sizes that a model was not exported for.
    """
    if runtime.size is None:
        return check_img_size(imgsz or runtime.imgsz, runtime.stride)
    if imgsz and check_img_size(imgsz, runtime.stride) != runtime.size:
        height, width = runtime.size
        raise UserError(f"--imgsz: this model was exported for {height}x{width} px; leave --imgsz out, or export it "
                        "with --dynamic")  # fmt: skip
    return list(runtime.size)


def check_img_size(imgsz: int | list[int], stride: int) -> list[int]:
    """Return [height, width], each rounded up to a multiple of `stride`, with a warning if that changes it.

    Raises UserError for sizes below 1 or too large, or more than two of them.
    """
    sizes = [imgsz] * 2 if isinstance(imgsz, int) else list(imgsz)
    sizes = sizes * 2 if len(sizes) == 1 else sizes
    if len(sizes) != 2 or min(sizes) < 1 or max(sizes) > LARGEST_IMAGE:
        raise UserError(f"--imgsz {' '.join(map(str, sizes))}: one or two sizes in pixels, from 1 to {LARGEST_IMAGE}")
    fitting = [make_divisible(s, stride) for s in sizes]
    if fitting != sizes:
        given, used = (" ".join(map(str, dict.fromkeys(s) if s[0] == s[1] else s)) for s in (sizes, fitting))
        LOGGER.warning(f"--imgsz {given} is no multiple of the largest stride, {stride}; {used} is used")
    return fitting
