"""YOLOv5's import path; the code is in `utils.system.download`."""

from utils.system.download import attempt_download, is_url, safe_download

__all__ = ["attempt_download", "is_url", "safe_download"]
