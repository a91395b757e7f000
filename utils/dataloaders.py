"""YOLOv5's import path; the code is in `utils.data` and `utils.files`."""

from utils.data.augment import letterbox
from utils.data.dataset_yolov5 import create_dataloader
from utils.data.sources import LoadImages, LoadScreenshots, LoadStreams
from utils.files import IMG_FORMATS, VID_FORMATS

__all__ = [
    "IMG_FORMATS", "VID_FORMATS", "LoadImages", "LoadScreenshots", "LoadStreams", "create_dataloader", "letterbox",
]  # fmt: skip
