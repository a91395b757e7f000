"""Old names for YOLOv5's scripts; what they name lives in `utils.augment`."""

from utils.augment import jitter_hsv as augment_hsv
from utils.augment import jitter_perspective as random_perspective
from utils.augment import letterbox

__all__ = ["augment_hsv", "letterbox", "random_perspective"]
