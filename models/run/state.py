"""The state of a training run, which is saved in last.pt and restored from it exactly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.yolo import DetectionModel
from utils.data.labels import LabelIndex
from utils.errors import UserError
from utils.system.device import random_state, set_random_state
from utils.system.distributed import gather
from utils.system.processes import rank
from utils.training.optim import EarlyStopping, ModelEMA


@dataclass
class TrainState:
    """The state of a training run between two batches.

    epoch, batch: the epoch in progress and the number of its finished batches. losses: their mean losses in this
    process, (PARTS,). last_step: number of the batch after which the optimizer made its last step. rows: those of
    results.csv. seconds: of the epoch in progress, by kind (`save`: of the whole run). class_maps: mAP50-95 per class
    of the last validation. done: all epochs are finished. learner: what the optimizer trains, with a teacher a `Pupil`.
    """

    model: DetectionModel
    ema: ModelEMA
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    stopper: EarlyStopping
    losses: Tensor
    epoch: int = 0
    batch: int = 0
    last_step: int = -1
    rows: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    class_maps: list[float] = field(default_factory=list)
    done: bool = False
    learner: nn.Module | None = None

    def __post_init__(self) -> None:
        self.learner = self.learner or self.model

    def content(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, without the EMA weights. All processes must call it."""
        gradients = {k: p.grad for k, p in self.learner.named_parameters() if p.grad is not None}
        return {
            "model": self.learner.state_dict(),
            "gradients": gradients if self.batch else {},  # at the start of an epoch there are none
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": self.ema.updates,
            "epoch": self.epoch,
            "batch": self.batch,
            "last_step": self.last_step,
            "processes": gather({"losses": self.losses.tolist(), "random": random_state()}),
            "rows": self.rows,
            "seconds": self.seconds,
            "class_maps": self.class_maps,
            "done": self.done,
            **self.stopper.state(),
        }

    def restore(self, content: dict[str, Any], smoothed: dict[str, Tensor]) -> None:
        """Restore the state. content: as returned by `content`; smoothed: the EMA weights.

        Raises UserError if they are incomplete or do not fit.
        """
        try:
            self.learner.load_state_dict(content["model"])
            self.ema.ema.load_state_dict(smoothed)
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            self.ema.updates, self.last_step = content["ema_updates"], content["last_step"]
            self.epoch, self.batch = content["epoch"], content["batch"]
            self.rows, self.seconds, self.class_maps = content["rows"], content["seconds"], content["class_maps"]
            self.done = content["done"]
            self.stopper.best_fitness, self.stopper.best_epoch = content["best_fitness"], content["best_epoch"]
            for key, parameter in self.learner.named_parameters():
                if key in content["gradients"]:
                    parameter.grad = content["gradients"][key].to(parameter.device)
            own = content["processes"][rank()]
            # a run of an earlier version has no loss of a teacher
            self.losses = torch.tensor([*own["losses"], 0.0][: len(self.losses)], device=self.losses.device)
            set_random_state(own["random"])
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError, AttributeError) as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"--resume: last.pt is damaged or incompatible with this program ({reason})") from e


def data_digest(*indices: LabelIndex | None) -> str:
    """Return a hash of images and labels. It depends on file names, image sizes and boxes, not on the folder."""
    digest = hashlib.sha256()
    for index in indices:
        if index is None:
            digest.update(b"none")
            continue
        digest.update("\0".join(index.file(i).replace("\\", "/").rpartition("/")[2] for i in range(len(index))).encode(
            errors="surrogateescape"))  # fmt: skip
        for array in (index.shapes, index.values, index.offsets):
            digest.update(array.tobytes())
    return digest.hexdigest()
