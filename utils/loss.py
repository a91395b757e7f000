"""YOLOv5's import path; the code is in `utils.losses.compute_loss`."""

from utils.losses.compute_loss import ComputeLoss

__all__ = ["ComputeLoss"]
