"""A run's figures and pictures for TensorBoard, which is an extra package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.data.images import ImageError, read_image
from utils.errors import UserError

PICTURES = "labels.jpg train_batch0.jpg val_batch0_pred.jpg results.png PR_curve.png errors.jpg".split()  # of a run


def require_package() -> type:
    """Return the class that writes event files. Raises UserError if the package is missing."""
    try:
        import tensorboard  # noqa: F401  torch's own message for a missing package names no remedy
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from e
    return SummaryWriter


class TensorBoardLog:
    """Writes an event file into `folder`; `tensorboard --logdir` shows it while the run goes on.

    from_epoch: first epoch to come; what an earlier, cut-off run wrote of it and of later ones is not shown any more.
    Raises UserError if the package is missing or the folder cannot be written.
    """

    def __init__(self, folder: Path, from_epoch: int = 0) -> None:
        writer = require_package()
        try:
            self._writer = writer(str(folder), purge_step=from_epoch or None)
        except OSError as e:
            raise UserError(f"{folder}: TensorBoard's file cannot be written ({e.strerror or e})") from e

    def add(self, epoch: int, names: Sequence[str], values: Sequence[float]) -> None:
        """Add one epoch's figures, a value per name. Raises ValueError if there are not as many of both."""
        for name, value in zip(names, values, strict=True):
            self._writer.add_scalar(name, float(value), epoch)
        self._writer.flush()

    def image(self, name: str, path: Path) -> None:
        """Add a picture file. Raises UserError if it cannot be read."""
        try:
            rgb = read_image(path)[..., ::-1].copy()
        except ImageError as e:
            raise UserError(f"{path}: {e}") from e
        self._writer.add_image(name, rgb, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write what is pending and close the file."""
        self._writer.close()
