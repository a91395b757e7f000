"""YOLOv5's import path; the code is in `utils.evaluation.nms`."""

from utils.evaluation.nms import non_max_suppression

__all__ = ["non_max_suppression"]
