"""What the scripts and the models are built on."""

import os

# OpenCV reads this when it is loaded: a picture of a few kilobytes may claim to fill the memory once it is unpacked
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))
