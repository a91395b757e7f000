"""What the scripts and the models are built on."""

import os
import sys

# OpenCV reads this when it is loaded: pixels of a picture, also in the formats that utils.images does not look into
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "178956970")

try:
    import cv2  # noqa: F401
except ImportError as e:
    HINT = (f"OpenCV cannot be loaded ({e}); on machines without a screen: pip uninstall opencv-python "
            "opencv-contrib-python, then pip install --force-reinstall opencv-python-headless")  # fmt: skip
    if hasattr(sys.modules.get("__main__"), "__file__"):  # a script: one line; notebooks and sessions go on
        sys.exit(f"error: {HINT}")
    raise ImportError(HINT) from e
