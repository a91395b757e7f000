"""Old names for YOLOv5's scripts; what they name lives in `utils.device`, `utils.optim` and `utils.profiling`."""

from torch import inference_mode as smart_inference_mode

from utils.device import select_device
from utils.optim import EarlyStopping, ModelEMA
from utils.profiling import model_info, time_sync
from utils.profiling import time_sync as time_synchronized

__all__ = [
    "EarlyStopping", "ModelEMA", "model_info", "select_device", "smart_inference_mode", "time_sync",
    "time_synchronized",
]  # fmt: skip
