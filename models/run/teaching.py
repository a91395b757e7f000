"""Training with a teacher: the network in training sees the same images, and learns from what the teacher sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models.run.teacher import Teacher, head_channels
from models.yolo import DetectionModel
from utils.losses.distillation import FEATURE_TERMS, Masked, ResponseLoss, Taught

PARTS = 4  # of a loss that are shown: box, obj (or dfl), cls, and the teacher's


class Pupil(nn.Module):
    """A detector in training and the layers that compare its maps with the teacher's, which belong to no checkpoint.

    channels: of the teacher's maps, None if it gives none. The gains of the terms are hyper-parameters:
    `teacher_cls`, `teacher_box` and `teacher_feature`.
    """

    def __init__(self, model: DetectionModel, channels: Sequence[int] | None) -> None:
        super().__init__()
        self.model = model
        self.gains = [model.hyp[f"teacher_{term}"] for term in ("cls", "box", "feature")]
        self.response = ResponseLoss(model.model[-1])
        self.terms = nn.ModuleList()
        if channels is not None and self.gains[2]:
            device = next(model.parameters()).device
            own = head_channels(model, device)
            term = FEATURE_TERMS[model.hyp.get("feature_loss") or "channel_wise"]
            self.terms = nn.ModuleList(term(a, b) for a, b in zip(own, channels, strict=True))
            self.terms.to(device, memory_format=torch.channels_last)

    def forward(self, x: Tensor, taught: Taught, seed: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Images (b, 3, h, w) and what the teacher sees in them -> raw maps, and the teacher's loss as a mean (1,)."""
        maps = self.model.head_maps(x)
        raw = self.model.model[-1](maps)
        with torch.autocast(x.device.type, enabled=False):
            cls, box = self.response(raw, taught)
        loss = cls * self.gains[0] + box * self.gains[1]
        for level, term in enumerate(self.terms):
            more = (torch_generator((*seed, level)),) if isinstance(term, Masked) else ()
            loss = loss + term(maps[level], taught.features[level], *more) * self.gains[2] / len(self.terms)
        return raw, loss.reshape(1)


class Teaching:
    """Calls a network in training on images that its teacher sees too; without a teacher, only the network."""

    def __init__(self, teacher: Teacher | None = None) -> None:
        self.teacher = teacher

    def __call__(self, network: nn.Module, x: Tensor, seed: Sequence[int]) -> tuple[list[Tensor], Tensor | None]:
        """Images (b, 3, h, w) -> raw maps, and the teacher's loss, mean over the images, (1,), or None.

        seed: of what the masked term hides.
        """
        if self.teacher is None:
            return network(x), None
        return network(x, self.teacher(x), seed)


def with_lesson(
    losses: tuple[Tensor, Tensor], lesson: Tensor | None, count: int, images: int
) -> tuple[Tensor, Tensor]:
    """Add the teacher's loss, a mean over `count` of the `images` images of a batch, to the loss (1,) and its parts.

    Returns the loss and its parts (PARTS,), the last of which is the teacher's, 0 without one.
    """
    loss, parts = losses
    if lesson is None:
        return loss, torch.cat((parts, parts.new_zeros(1)))
    return loss + lesson * count, torch.cat((parts, lesson.detach() * (count / images)))


def torch_generator(seed: Sequence[int]) -> torch.Generator:
    """Return a random generator for a seed of several numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
