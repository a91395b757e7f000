"""Old name for YOLOv5's scripts; what it names lives in `models.backend`."""

from models.backend import attempt_load

__all__ = ["attempt_load"]
