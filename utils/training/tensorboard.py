"""Metrics and plots of a run for TensorBoard, an optional package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.data.images import ImageError, read_image
from utils.errors import UserError

PICTURES = "labels.jpg train_batch0.jpg val_batch0_pred.jpg results.png PR_curve.png errors.jpg".split()  # run files


def require_package() -> type:
    """Return the class SummaryWriter. Raises UserError if the package tensorboard is missing."""
    try:
        import tensorboard  # noqa: F401  torch's own error does not say how to install it
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from e
    return SummaryWriter


class TensorBoardLog:
    """Writes an event file into `folder`; `tensorboard --logdir` can show it during the run.

    from_epoch: first epoch to be logged; TensorBoard then hides earlier entries of this and later epochs, from an
    interrupted run. Raises UserError if the package is missing or the folder cannot be written.
    """

    def __init__(self, folder: Path, from_epoch: int = 0) -> None:
        writer = require_package()
        try:
            self._writer = writer(str(folder), purge_step=from_epoch or None)
        except OSError as e:
            raise UserError(f"{folder}: TensorBoard's file cannot be written ({e.strerror or e})") from e

    def add(self, epoch: int, names: Sequence[str], values: Sequence[float]) -> None:
        """Add the metrics of an epoch. Raises ValueError if `names` and `values` differ in length."""
        for name, value in zip(names, values, strict=True):
            self._writer.add_scalar(name, float(value), epoch)
        self._writer.flush()

    def image(self, name: str, path: Path) -> None:
        """Add an image file. Raises UserError if it cannot be read."""
        try:
            rgb = read_image(path)[..., ::-1].copy()
        except ImageError as e:
            raise UserError(f"{path}: {e}") from e
        self._writer.add_image(name, rgb, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write pending data and close the file."""
        self._writer.close()
