"""The torch.hub API: a detector that takes images of any kind and returns a results object; see `hubconf.py`.

    model = torch.hub.load(".", "custom", "best.pt", source="local")
    results = model(["street.jpg", image])
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Integral
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from models.export.engines import kind_of
from models.export.exported import ExportedRuntime
from models.inference.detections import Detections
from models.inference.runtime import DEFAULT_IMGSZ, to_input
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint
from models.weights.transfer import transfer_weights
from models.yolo import DetectionModel
from utils.boxes import scale_boxes
from utils.data.augment import GREY, letterbox, make_divisible
from utils.data.images import ImageError, read_image
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression
from utils.files import model_yamls
from utils.settings.config import is_number, is_whole
from utils.settings.values import plain_value
from utils.system.console import LOGGER
from utils.system.device import describe_device, select_device
from utils.system.download import download
from utils.system.profiling import seconds

Picture = str | Path | Image.Image | np.ndarray
Device = str | int | torch.device | None


class Engine(Protocol):
    """An object other than a network that `AutoShape` can run: `models.inference.runtime.Runtime` or similar."""

    names: dict[int, str]
    stride: int
    imgsz: int

    def predict(self, images: Tensor, augment: bool = False) -> Tensor:
        """Decode images (b, 3, h, w) to boxes (b, n, 5 + nc)."""


class AutoShape(nn.Module):
    """A detector that takes images of any kind and size and returns `Detections`.

    Settings, read at each call: `conf` and `iou` (NMS thresholds), `agnostic`, `multi_label`, `classes` (a list of the
    classes to keep), `max_det` (per image). Attributes: `names` {index: class name}, `stride` (largest, pixels) and
    `imgsz` (the image size in training in pixels, or 640). `to`, `half` etc. work as in any module.

    >>> import numpy as np
    >>> model = AutoShape(DetectionModel("yolov5_shufflenet.yaml", nc=2))  # untrained
    >>> model.conf, model.max_det = 0.0, 3
    >>> image = np.full((48, 64, 3), 255, np.uint8)  # RGB
    >>> results = model([image, image[:, :32]], size=64)
    >>> len(results), results.s, results.xyxy[0].shape
    (2, (2, 3, 64, 64), torch.Size([3, 6]))
    >>> list(results.pandas().xywhn[1].columns)
    ['xcenter', 'ycenter', 'width', 'height', 'confidence', 'class', 'name']
    >>> [im.shape for im in results.render()]
    [(48, 64, 3), (48, 32, 3)]
    """

    conf = 0.25
    iou = 0.45
    agnostic = False
    multi_label = False
    classes: list[int] | None = None
    max_det = 1000

    def __init__(self, model: nn.Module | Engine, imgsz: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.names: dict[int, str] = dict(model.names)
        self.stride = int(torch.as_tensor(model.stride).max())
        self.imgsz = imgsz or getattr(model, "imgsz", DEFAULT_IMGSZ)
        if isinstance(model, DetectionModel) and model.yaml["ch"] != 3:
            raise UserError(f"this model takes {model.yaml['ch']} channels and images have 3; load it with "
                            "autoshape=False and pass tensors")  # fmt: skip
        self.eval()

    @torch.no_grad()
    def forward(
        self, ims: Picture | Sequence[Picture] | Tensor, size: int | Sequence[int] | None = None,
        augment: bool = False, profile: bool = False,
    ) -> Detections | Tensor | tuple | list:  # fmt: skip
        """Detect objects in one image or a list of images, which run as one batch, letterboxed to the same shape.

        ims: a file path, an http(s) URL (downloaded), a PIL image or an array (h, w, 3) uint8 RGB; arrays may also be
        (h, w), have an alpha channel or have channels first. A tensor (b, 3, h, w), float in [0, 1] or uint8, sides
        multiples of `stride`, is passed to the network as it is, and the network's output is returned (or an engine's
        predictions).
        size: pixels of the longer side, or (height, width) to fit into; rounded up to multiples of `stride`.
        augment: test-time augmentation. profile: print the time of every layer.
        Raises UserError for images or settings that cannot be used.
        """
        if isinstance(ims, Tensor):
            return self._run(self._checked(ims), augment, profile)
        if self.training:
            raise UserError("the network is in training mode; call .eval() first")
        conf, iou, classes, max_det = self._settings()
        start = seconds()
        pictures, files = read_pictures(ims)
        only = getattr(self.model, "size", None)  # of an exported model
        fitting = fitting_size(size if size is not None else only or self.imgsz, self.stride)
        if only and fitting != tuple(only):
            raise UserError(f"size={size!r}: this model was exported for {only[0]}x{only[1]} px; leave size out")
        batch = torch.from_numpy(stack(pictures, fitting, self.stride, fill=bool(only)))
        loaded = seconds()
        prediction = self._run(batch, augment, profile)
        predicted = seconds()
        found = non_max_suppression(prediction, conf, iou, classes, self.agnostic, self.multi_label, max_det)
        for f, im in zip(found, pictures, strict=True):
            scale_boxes(tuple(batch.shape[2:]), f[:, :4], im.shape[:2])
        times = np.diff([start, loaded, predicted, seconds()]) * 1e3 / len(pictures)
        return Detections(pictures, found, files, tuple(times.tolist()), self.names, tuple(batch.shape))

    def _run(self, batch: Tensor, augment: bool, profile: bool) -> Tensor | tuple | list:
        if not isinstance(self.model, nn.Module):
            return self.model.predict(batch, augment)
        parameter = next(self.model.parameters())
        with printed_layer_times(self.model) if profile else nullcontext():
            return self.model(to_input(batch, parameter.device).to(parameter.dtype), augment=augment)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3 or not x.numel() or x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise UserError(f"a tensor of shape {tuple(x.shape)}: it must be (b, 3, h, w) with h and w multiples of "
                            f"{self.stride}; arrays and files may have any shape")  # fmt: skip
        return x

    def _settings(self) -> tuple[float, float, list[int] | None, int]:
        """Return `conf`, `iou`, `classes` and `max_det` as Python's own values. Raises UserError if one is invalid."""
        conf, iou, classes, most = map(plain_value, (self.conf, self.iou, self.classes, self.max_det))
        if not all(is_number(v) and 0 <= v <= 1 for v in (conf, iou)):
            raise UserError(f".conf {conf!r} and .iou {iou!r} must be numbers between 0 and 1")
        if not is_whole(most) or most < 1:
            raise UserError(f".max_det {most} must be a whole number from 1")
        wanted = [] if classes is None else classes
        if not isinstance(wanted, (list, tuple)) or not all(is_whole(c) and c in self.names for c in wanted):
            raise UserError(f".classes {wanted!r}: give a list of class indices, or None; this model has 0 to "
                            f"{len(self.names) - 1}")  # fmt: skip
        return conf, iou, None if classes is None else list(classes), most


@contextmanager
def printed_layer_times(model: nn.Module) -> Iterator[None]:
    """Print the milliseconds that each layer of the `DetectionModel` in `model` takes within this context."""
    marks: list[tuple[int, str, float]] = []

    def note(module: nn.Module, args: object, output: object) -> None:
        marks.append((module.i, module.type, seconds()))

    layers = [m for d in model.modules() if isinstance(d, DetectionModel) for m in d.model]
    handles = [m.register_forward_hook(note) for m in layers]
    last = seconds()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    rows = [f"{'layer':>6}  {'module':<18}{'ms':>8}"]
    for i, name, moment in marks:
        rows.append(f"{i:>6}  {name:<18}{(moment - last) * 1e3:>8.2f}")
        last = moment
    LOGGER.info("\n".join(rows))


def fitting_size(size: int | Sequence[int], stride: int) -> tuple[int, int]:
    """(height, width) rounded up to multiples of `stride`. Raises UserError if `size` is not one or two pixel counts.

    >>> fitting_size(600, 32), fitting_size((320, 600), 32)
    ((608, 608), (320, 608))
    """
    size = plain_value(size)
    sizes = list(size) if isinstance(size, (list, tuple)) else [size] * 2
    if len(sizes) != 2 or not all(isinstance(s, Integral) and s > 0 for s in sizes):
        raise UserError(f"size={size!r}: give the longer side in pixels, or (height, width)")
    height, width = (make_divisible(s, stride) for s in sizes)
    return height, width


def stack(pictures: Sequence[np.ndarray], size: tuple[int, int], stride: int, fill: bool = False) -> np.ndarray:
    """Letterbox images (h, w, 3) uint8, each one separately, into one batch (b, 3, h', w') uint8.

    (h', w') is the smallest shape in multiples of `stride` that contains all images resized to `size` (height, width),
    or with `fill` exactly `size`. The rest is padded with grey.
    """
    fitted = [letterbox(im, size, stride=stride, auto=not fill)[0].transpose(2, 0, 1) for im in pictures]
    height, width = (max(f.shape[k] for f in fitted) for k in (1, 2))
    batch = np.full((len(fitted), 3, height, width), GREY, np.uint8)
    for k, f in enumerate(fitted):
        top, left = (height - f.shape[1]) // 2, (width - f.shape[2]) // 2
        batch[k, :, top : top + f.shape[1], left : left + f.shape[2]] = f
    return batch


def read_pictures(ims: Picture | Sequence[Picture]) -> tuple[list[np.ndarray], list[str]]:
    """Read one or more images; returns arrays (h, w, 3) uint8 RGB and a unique file name (.jpg) for each.

    Raises UserError if there are none, or if one cannot be read.
    """
    items = list(ims) if isinstance(ims, (list, tuple)) else [ims]
    if not items:
        raise UserError("the list of images is empty")
    pictures, names, taken = [], [], set()
    for k, item in enumerate(items):
        picture, stem = read_picture(item, k)
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        pictures.append(picture)
        names.append(f"{name}.jpg")
    return pictures, names


def read_picture(item: Picture, number: int = 0) -> tuple[np.ndarray, str]:
    """Read an image; returns (h, w, 3) uint8 RGB and a name without suffix. Raises UserError if it cannot be used."""
    what = f"image {number}"
    if isinstance(item, str) and urlsplit(item).scheme.lower() in ("http", "https"):
        with tempfile.TemporaryDirectory(prefix="hub-") as folder:
            name = Path(urlsplit(item).path).name[-100:] or "picture"
            return _read_file(download(item, Path(folder) / name), item), Path(name).stem
    if isinstance(item, (str, Path)):
        return _read_file(Path(item), str(item)), Path(item).stem
    if isinstance(item, Image.Image):
        name = getattr(item, "filename", "") or f"image{number}"
        return _from_pil(item, what), Path(str(name)).stem
    if isinstance(item, np.ndarray):
        return _from_array(item, what), f"image{number}"
    raise UserError(f"{what} is of type {type(item).__name__}: give a path, an http(s) URL, a PIL image, an array "
                    "(h, w, 3) uint8 RGB, a list of these, or one tensor (b, 3, h, w)")  # fmt: skip


def _read_file(path: Path, where: str) -> np.ndarray:
    try:
        return np.ascontiguousarray(read_image(path)[..., ::-1])
    except (ImageError, ValueError) as e:
        reason = "is a folder; give its images as a list of paths" if os.path.isdir(path) else e
        raise UserError(f"{where or '.'}: {reason}") from None


def _from_pil(image: Image.Image, what: str) -> np.ndarray:
    """Convert a PIL image to (h, w, 3) uint8 RGB, rotated according to its EXIF orientation."""
    if image.mode.startswith(("I", "F")):  # PIL would clip values above 255
        raise UserError(f"{what}: a PIL image of mode {image.mode}; convert it to 8 bits per channel first")
    try:
        picture = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as e:  # PIL reads the pixels only here
        raise UserError(f"{what}: this PIL image cannot be read ({e})") from e
    return _from_array(picture, what)


def _from_array(im: np.ndarray, what: str) -> np.ndarray:
    depths = (1, 3, 4)
    if im.dtype != np.uint8:
        raise UserError(f"{what}: an array of {im.dtype}; it must be uint8, with values from 0 to 255")
    rgb = im[..., None] if im.ndim == 2 else im
    if rgb.ndim == 3 and rgb.shape[2] not in depths and rgb.shape[0] in depths:
        rgb = rgb.transpose(1, 2, 0)
    if rgb.ndim != 3 or rgb.shape[2] not in depths or not rgb.size:
        raise UserError(f"{what}: an array of shape {im.shape}; it must be (h, w, 3) RGB; give several as a list")
    # copied, as the caller may reuse the array, for example for the next camera frame
    return np.repeat(rgb, 3, 2) if rgb.shape[2] == 1 else np.array(rgb[..., :3], order="C")


def load_custom(
    path: str | Path, autoshape: bool = True, verbose: bool = True, device: Device = None
) -> AutoShape | DetectionModel:
    """Load a model in eval mode, as `AutoShape` or, with autoshape=False, as the bare network.

    path: a checkpoint of this program or of YOLOv5, or an exported model, which has no bare network and runs on the
    CPU (ONNX and TorchScript also on a GPU).
    device: as `--device`; None selects the best available. Raises UserError if the file is not a model.
    """
    if kind_of(Path(path)):
        if not autoshape:
            raise UserError(f"{path}: autoshape=False needs a checkpoint; an exported model has no network inside")
        return AutoShape(ExportedRuntime(Path(path), select_device(device)))
    content = load_checkpoint(path)
    return _finished(model_from_checkpoint(content, path), str(path), content.get("imgsz"), autoshape, verbose, device)


def create(
    name: str, pretrained: bool | str | Path = False, channels: int = 3, classes: int = 80, autoshape: bool = True,
    verbose: bool = True, device: Device = None,
) -> AutoShape | DetectionModel:  # fmt: skip
    """Build `<name>.yaml` in eval mode: untrained, or with the matching tensors of a checkpoint.

    pretrained: the checkpoint's path. For the other arguments see `load_custom`. Raises UserError if one is invalid.
    """
    if pretrained is True:
        raise UserError(f"{name}(pretrained=True): weights are not downloaded; give a checkpoint with "
                        f"custom('file.pt') or {name}(pretrained='file.pt')")  # fmt: skip
    for key, value in (("channels", channels), ("classes", classes)):
        if not is_whole(value) or value < 1:
            raise UserError(f"{name}({key}={value!r}): {key} must be a whole number from 1")
    content = load_checkpoint(pretrained) if pretrained else {}
    model = DetectionModel(model_yamls()[name], ch=channels, nc=classes)
    if content:
        if len(content["names"]) == classes:
            model.names = {int(k): str(v) for k, v in content["names"].items()}
        # a trained head predicts boxes relative to its anchors
        anchors = content.get("stride") == model.stride.tolist()
        with _quiet(not verbose):
            transfer_weights(model, content, str(pretrained), anchors=anchors)
    return _finished(model.eval(), name, content.get("imgsz"), autoshape, verbose, device)


def _finished(
    model: DetectionModel, what: str, imgsz: int | None, autoshape: bool, verbose: bool, device: Device
) -> AutoShape | DetectionModel:
    where = select_device("" if device is None else str(device))
    detector = AutoShape(model.fuse(), imgsz) if autoshape else model
    if verbose:
        size = f"trained at {imgsz} px, " if imgsz else ""
        LOGGER.info(f"{what}: {len(model.names)} classes, {size}{describe_device(where)}")
    return detector.to(where, memory_format=torch.channels_last) if autoshape else detector.to(where)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Log only warnings if `quiet`."""
    level = LOGGER.level
    if quiet:
        LOGGER.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        LOGGER.setLevel(level)
