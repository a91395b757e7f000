"""YOLOv5's import path; the code is in `utils.data.augment`."""

from utils.data.augment import jitter_hsv as augment_hsv
from utils.data.augment import jitter_perspective as random_perspective
from utils.data.augment import letterbox

__all__ = ["augment_hsv", "letterbox", "random_perspective"]
