"""A trained detector as the teacher of another one (`train.py --teacher`)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from models.export.engines import kind_of
from models.inference.engine_cache import digest_of
from models.inference.runtime import AnyRuntime, load_runtime, to_input
from models.weights.checkpoint import find_weights
from models.weights.transfer import same_classes
from models.yolo import DetectionModel
from utils.boxes import xywh2xyxy
from utils.errors import UserError, shorten
from utils.losses.distillation import Taught
from utils.system.precision import Precision

MOST_ANCHORS = 64


class Teacher:
    """A checkpoint or an exported model that tells what it sees in the images of a batch.

    names: the classes of the network in training, matched by name. strides: of its maps; the teacher needs maps of the
    same strides, so that both have the same cells. channels: of the maps that the teacher's head reads, None for an
    exported model. Raises UserError if the file is no model, or if classes or strides do not fit.
    """

    def __init__(self, weights: str | Path, names: Mapping[int, str], strides: Sequence[float],
                 precision: Precision) -> None:  # fmt: skip
        self.path = self._found(Path(weights))
        self.strides, self.precision = [int(s) for s in strides], precision
        self._runtime: AnyRuntime | None = None
        self._process = -1
        runtime = self._opened()
        self.size = runtime.size
        alike = list(names.values()) == list(runtime.names.values())  # also if they are only numbers
        same = dict(zip(names, names, strict=True)) if alike else same_classes(names, runtime.names)
        if not same:
            raise UserError(f"--teacher {self.path}: has none of the classes {shorten(', '.join(names.values()))}")
        self.columns = torch.tensor([same.get(i, 0) for i in names])
        self.known = torch.tensor([i in same for i in names])
        model = runtime.model
        self.channels = None if model is None else head_channels(model, runtime.device, runtime.dtype)
        theirs = [runtime.stride] if model is None else model.stride.int().tolist()  # an export tells the largest
        if theirs != (self.strides if model is not None else [max(self.strides)]):
            raise UserError(f"--teacher {self.path}: its maps have the strides {', '.join(map(str, theirs))}, those of "
                            f"the network in training {', '.join(map(str, self.strides))}")  # fmt: skip
        self.close()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Taught:
        """Images (b, 3, h, w) in [0, 1] -> what the teacher sees in them."""
        runtime = self._opened()
        if runtime.model is None:
            return self._taught(runtime.predict(images.float()), None, images.shape[2:], None)
        maps = runtime.model.head_maps(to_input(images, runtime.device, runtime.dtype))
        found, raw = runtime.model.model[-1](maps)
        return self._taught(found.float(), raw, images.shape[2:], maps)

    @staticmethod
    def _found(path: Path) -> Path:
        """Return the file or folder of the model. Raises UserError if it does not exist."""
        kind = kind_of(path)
        if kind in ("openvino", "ncnn") and path.is_file():
            return path.parent  # with the file that has the weights
        try:
            return path if kind else find_weights(path)
        except UserError as e:
            raise UserError(f"--teacher: {str(e).removeprefix('--weights ')}") from e

    def close(self) -> None:
        """Close an exported model, which is opened again where it is needed; to be called before processes are forked.

        The threads of its engine do not exist in forked processes, which would wait for them for ever.
        """
        if self._runtime is not None and self._runtime.model is None:
            self._runtime = None

    @cached_property
    def digest(self) -> str:
        """A hash of the files of the model and of the classes that are matched."""
        files = sorted(p for p in self.path.rglob("*") if p.is_file()) if self.path.is_dir() else [self.path]
        found = hashlib.sha256(f"{self.columns.tolist()} {self.known.tolist()}".encode())
        for file in files:
            found.update(digest_of(file).encode())
        return found.hexdigest()

    def _taught(self, found: Tensor, raw: list[Tensor] | None, size: torch.Size,
                features: list[Tensor] | None) -> Taught:  # fmt: skip
        counts = [int(size[0] // s) * int(size[1] // s) for s in self.strides]
        anchors = found.shape[1] // sum(counts)
        if not 1 <= anchors <= MOST_ANCHORS or anchors * sum(counts) != found.shape[1]:
            raise UserError(f"--teacher {self.path}: makes {found.shape[1]} predictions for an image of "
                            f"{size[1]}x{size[0]}, which do not fit maps of the strides {self.strides}")  # fmt: skip
        scores, boxes = [], []
        for level in found.split([anchors * n for n in counts], 1):
            level = level.unflatten(1, (anchors, -1))
            classes = level[..., 5:][..., self.columns.to(level.device)] * level[..., 4:5]
            classes = classes * self.known.to(level.device)
            best = classes.amax(3).argmax(1)[:, None, :, None]
            scores.append(classes.take_along_dim(best, 1)[:, 0])
            boxes.append(level[..., :4].take_along_dim(best, 1)[:, 0])
        distances = None
        if raw is not None and getattr(self._opened().model.model[-1], "reg_max", 0):
            nc = len(self._opened().names)
            distances = torch.cat([r.flatten(1, 3)[..., : r.shape[4] - nc] for r in raw], 1).float()
        return Taught(torch.cat(scores, 1), xywh2xyxy(torch.cat(boxes, 1)), self.known.to(found.device), distances,
                      features)  # fmt: skip

    def _opened(self) -> AnyRuntime:
        """Return the model; an exported one is opened once in each process."""
        if self._runtime is None or (self._runtime.model is None and self._process != os.getpid()):
            self._runtime = load_runtime(self.path, self.precision.device, amp=self.precision.amp)
            self._process = os.getpid()
        return self._runtime


@torch.no_grad()
def head_channels(model: DetectionModel, device: torch.device, dtype: torch.dtype = torch.float32) -> list[int]:
    """Return the channels of the maps that a detector's head reads; its batch norms stay as they are."""
    training, side = model.training, int(model.stride.max()) * 2
    maps = model.eval().head_maps(to_input(torch.zeros(1, 3, side, side), device, dtype))
    model.train(training)
    return [x.shape[1] for x in maps]
