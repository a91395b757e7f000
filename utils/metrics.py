"""YOLOv5's import path; the code is in `utils.boxes` and `utils.evaluation.metrics`."""

from utils.boxes import box_iou
from utils.evaluation.metrics import ConfusionMatrix, ap_per_class, compute_ap, fitness, process_batch, smooth

__all__ = [
    "ConfusionMatrix", "ap_per_class", "box_iou", "compute_ap", "fitness", "process_batch", "smooth",
]  # fmt: skip
