"""YOLOv5's import path; the code is in `utils.training.loss`."""

from utils.training.loss import ComputeLoss

__all__ = ["ComputeLoss"]
