"""Old names for YOLOv5's scripts; what they name lives in `utils.sources`, `utils.files` and `utils.dataset_yolov5`."""

from utils.augment import letterbox
from utils.dataset_yolov5 import create_dataloader
from utils.files import IMG_FORMATS, VID_FORMATS
from utils.sources import LoadImages, LoadScreenshots, LoadStreams

__all__ = [
    "IMG_FORMATS", "VID_FORMATS", "LoadImages", "LoadScreenshots", "LoadStreams", "create_dataloader", "letterbox",
]  # fmt: skip
