"""YOLOv5's import path; the code is in `models.inference.backend`."""

from models.inference.backend import attempt_load

__all__ = ["attempt_load"]
