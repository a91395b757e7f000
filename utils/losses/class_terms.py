"""Class terms of the loss, by name: how well predicted class scores agree with their targets."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

# maps logits, targets in [0, 1] of the same shape, and gamma (0: the default of the term) to the sum of the losses
ClassTerm = Callable[[Tensor, Tensor, float], Tensor]


def bce(logits: Tensor, target: Tensor, gamma: float = 0.0) -> Tensor:
    """Return the binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")


def focal(logits: Tensor, target: Tensor, gamma: float = 0.0) -> Tensor:
    """Return the focal loss (Lin et al., 2017), with gamma 1.5 by default as in YOLOv5, and alpha 0.25."""
    p = logits.sigmoid()
    agreement = target * p + (1 - target) * (1 - p)
    weight = (target * 0.25 + (1 - target) * 0.75) * (1 - agreement) ** (gamma or 1.5)
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum()


def varifocal(logits: Tensor, target: Tensor, gamma: float = 0.0) -> Tensor:
    """Return the varifocal loss (Zhang et al., 2021): positives weighted by their target, negatives as 0.75 p^gamma.

    gamma is 2 by default.
    """
    weight = (target > 0) * target + (target == 0) * 0.75 * logits.sigmoid() ** (gamma or 2.0)
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum()


def quality_focal(logits: Tensor, target: Tensor, gamma: float = 0.0) -> Tensor:
    """Return the quality focal loss (Li et al., 2020): the cross-entropy times |target - p|^gamma.

    gamma is 2 by default.
    """
    weight = (target - logits.sigmoid()).abs() ** (gamma or 2.0)
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum()


CLASS_TERMS: dict[str, ClassTerm] = {f.__name__: f for f in (bce, focal, varifocal, quality_focal)}
"""Names that a hyp file's `class_loss` may have."""
