"""Exported models with the same interface as checkpoints (`models.inference.runtime.Runtime`)."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.export.engines import Opened, first_line, open_engine
from utils.errors import UserError, no_memory
from utils.system.console import LOGGER
from utils.system.precision import inference_precision


class ExportedRuntime:
    """An exported model, ready to predict; see `models.inference.runtime.Runtime` for the attributes.

    size: (h, w) that images must have, None for any. batch: the fixed batch size, None for any; other batches are
    padded or split. facts: the model's metadata. `model` is None, as there is no network. opened: an engine that is
    open already; otherwise `path` is opened.
    """

    model = None

    def __init__(
        self, path: Path, device: torch.device, half: bool = False, amp: str = "off", opened: Opened | None = None
    ) -> None:
        if half:
            LOGGER.warning("--half is for checkpoints; an exported model keeps the precision it was exported with")
        wanted = inference_precision("off" if half else amp, device)
        opened = opened or open_engine(path, device, wanted.dtype)
        self.path, self.expect = path, opened.expect
        self.facts, self.device, self.dtype, self._engine = opened.facts, device, opened.dtype, opened.engine
        self.names, self.stride, self.imgsz = dict(self.facts.names), self.facts.stride, max(self.facts.imgsz)
        self.size = None if self.facts.dynamic else list(self.facts.imgsz)
        self.batch = None if self.facts.dynamic else self.facts.batch
        format_ = wanted.reason if opened.dtype == wanted.dtype == torch.bfloat16 else self.facts.precision
        if self.facts.precision == "int8" != format_:
            format_ = f"int8, the rest in {format_}"
        self.reason = f"{format_}, {opened.name}"
        self._turn = contextlib.nullcontext() if opened.shared else threading.Lock()

    def predict(self, images: Tensor, augment: bool = False) -> Tensor:
        """Decode a batch, as `Runtime.predict` does. Raises UserError for sizes the model was not exported for."""
        if augment:
            raise UserError(f"--augment needs a checkpoint, and {self.path} is an exported model")
        if images.ndim != 4:
            raise UserError(f"images have the shape {tuple(images.shape)}; (batch, 3, height, width) is needed")
        if self.size and list(images.shape[2:]) != self.size:
            raise UserError(f"this model was exported for {self.size[0]}x{self.size[1]} px and got "
                            f"{images.shape[2]}x{images.shape[3]}; export it with --dynamic")  # fmt: skip
        x = np.ascontiguousarray(images.cpu().numpy(), None if images.dtype == torch.uint8 else np.float32)
        batch = self.batch or len(x)
        found = []
        for start in range(0, len(x), batch):
            piece = x[start : start + batch]
            missing = batch - len(piece)
            if missing:
                piece = np.concatenate((piece, np.zeros((missing, *piece.shape[1:]), x.dtype)))
            found.append(self._run(piece)[: batch - missing])
        return torch.from_numpy(np.concatenate(found) if len(found) > 1 else found[0]).to(self.device)

    def _run(self, images: np.ndarray) -> np.ndarray:
        """Run the engine. Raises UserError if it fails, or if its output is not (batch, boxes, 5 + nc)."""
        try:
            with self._turn:
                made = self._engine(images)
        except (UserError, MemoryError):
            raise
        except Exception as e:  # each engine has its own errors
            if no_memory(e):
                raise MemoryError(f"{self.path} on {images.shape}: {first_line(e)}") from e
            raise UserError(f"{self.path} does not run on {images.shape}: {first_line(e)}") from e
        if made.ndim != 3 or len(made) != len(images) or made.shape[2] != 5 + len(self.names):
            raise UserError(f"{self.path}: its output has the shape {made.shape}; a YOLOv5 detector with "
                            f"{len(self.names)} classes gives (batch, boxes, {5 + len(self.names)})")  # fmt: skip
        return made

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """Return the output of `predict`, and None in place of the head's raw maps."""
        return self.predict(images, augment), None
