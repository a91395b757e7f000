"""YOLOv5's import path; the code is in `utils.training.anchors`."""

from utils.training.anchors import check_anchor_order, check_anchors, kmean_anchors

__all__ = ["check_anchor_order", "check_anchors", "kmean_anchors"]
