"""OpenCV, imported in one place: with a limit on image size, and an error that names the package to install.

    from utils.system.opencv import cv2
"""

import os
import sys

# OpenCV reads this variable when it is imported. It limits the number of pixels per image, for formats whose headers
# `utils.data.images` does not read itself.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "178956970")
# what OpenCV would print for a damaged image is reported by this program, in one line
os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")

try:
    import cv2
except ImportError as e:
    HINT = (f"OpenCV cannot be loaded ({e}); on machines without a screen: pip uninstall opencv-python "
            "opencv-contrib-python, then pip install --force-reinstall opencv-python-headless")  # fmt: skip
    if hasattr(sys.modules.get("__main__"), "__file__"):  # a script: one line, no traceback
        sys.exit(f"error: {HINT}")
    raise ImportError(HINT) from e

__all__ = ["cv2"]
