"""Entry points for `torch.hub.load(<this folder>, <name>, ..., source="local")`: `custom`, and one per model yaml.

>>> import torch
>>> model = torch.hub.load(".", "yolov5_shufflenet", classes=2, source="local", _verbose=False)
>>> model.names, model.stride
({0: '0', 1: '1'}, 32)
"""

from __future__ import annotations

import pathlib
import sys
import typing

dependencies = ["torch", "numpy", "cv2", "yaml", "tqdm", "PIL"]


def _check_modules() -> None:
    """Raise ImportError if `models` or `utils` is already imported from another project."""
    here = pathlib.Path(__file__).resolve().parent
    for name in ("models", "utils"):
        if name in sys.modules:
            file = getattr(sys.modules[name], "__file__", None)
            if not file or pathlib.Path(file).resolve().parent != here / name:
                raise ImportError(f"another module '{name}' ({file or 'a folder'}) is already loaded and hides the "
                                  f"one in {here}: load this detector first, or in a separate process")  # fmt: skip


_check_modules()

import models.inference.hub as _hub  # noqa: E402
from utils.settings.values import from_code as _from_code  # noqa: E402


@_from_code("custom", "custom: {}")
def custom(
    path: str | pathlib.Path, autoshape: bool = True, _verbose: bool = True, device: _hub.Device = None
) -> _hub.AutoShape | _hub.DetectionModel:
    """Load a model from a checkpoint of this program or of YOLOv5, or from an exported model.

    autoshape: return `models.inference.hub.AutoShape`, which takes images of any kind; otherwise the bare network, for
    tensors and training. Both are in eval mode. device: 'cpu', 'mps' or a GPU's index; None selects the best available.
    Raises UserError if the file is not a model.
    """
    return _hub.load_custom(path, autoshape, _verbose, device)


def _entry(name: str) -> typing.Callable[..., _hub.AutoShape | _hub.DetectionModel]:
    @_from_code(name, f"{name}: {{}}")
    def entry(
        pretrained: bool | str | pathlib.Path = False, channels: int = 3, classes: int = 80, autoshape: bool = True,
        _verbose: bool = True, device: _hub.Device = None,
    ) -> _hub.AutoShape | _hub.DetectionModel:  # fmt: skip
        return _hub.create(name, pretrained, channels, classes, autoshape, _verbose, device)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"""Build a detector from {name}.yaml: untrained, or with the matching tensors of a checkpoint.

    pretrained: the checkpoint's path; nothing is downloaded. For the other arguments see `custom`.
    """
    return entry


for _name in _hub.model_yamls():
    globals()[_name] = _entry(_name)
