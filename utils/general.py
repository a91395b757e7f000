"""YOLOv5's import path; the code is in the modules below."""

from pathlib import Path

from utils.boxes import box_iou, clip_boxes, scale_boxes, xywh2xyxy, xywhn2xyxy, xyxy2xywh, xyxy2xywhn
from utils.boxes import clip_boxes as clip_coords
from utils.boxes import scale_boxes as scale_coords
from utils.data.augment import make_divisible
from utils.data.augment import round_to_stride as check_img_size
from utils.data.dataset_yolov5 import check_dataset
from utils.evaluation.nms import non_max_suppression
from utils.files import ROOT, check_suffix
from utils.files import unused_path as increment_path
from utils.settings.config import load_yaml as yaml_load
from utils.settings.config import save_yaml as yaml_save
from utils.system.console import LOGGER, colorstr, print_args, set_logging
from utils.system.device import check_imshow, check_requirements
from utils.system.device import seed_everything as init_seeds
from utils.system.download import check_file, check_yaml
from utils.system.download import download_files as download
from utils.system.opencv import cv2
from utils.system.profiling import Profile
from utils.training.optim import strip_optimizer

__all__ = [
    "LOGGER", "ROOT", "Path", "Profile", "box_iou", "check_dataset", "check_file", "check_img_size", "check_imshow",
    "check_requirements", "check_suffix", "check_yaml", "clip_boxes", "clip_coords", "colorstr", "cv2", "download",
    "increment_path", "init_seeds", "make_divisible", "non_max_suppression", "print_args", "scale_boxes",
    "scale_coords", "set_logging", "strip_optimizer", "xywh2xyxy", "xywhn2xyxy", "xyxy2xywh", "xyxy2xywhn",
    "yaml_load", "yaml_save",
]  # fmt: skip
