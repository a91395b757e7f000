"""YOLOv5's import path; the code is in `utils.system` and `utils.training.optim`."""

from torch import inference_mode as smart_inference_mode

from utils.system.device import select_device
from utils.system.profiling import model_info, time_sync
from utils.system.profiling import time_sync as time_synchronized
from utils.training.optim import EarlyStopping, ModelEMA

__all__ = [
    "EarlyStopping", "ModelEMA", "model_info", "select_device", "smart_inference_mode", "time_sync",
    "time_synchronized",
]  # fmt: skip
