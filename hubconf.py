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
    """Raise ImportError if a module of another project stands in the place of our `models` or `utils`."""
    here = pathlib.Path(__file__).resolve().parent
    for name in ("models", "utils"):
        if name in sys.modules:
            file = getattr(sys.modules[name], "__file__", None)
            if not file or pathlib.Path(file).resolve().parent != here / name:
                raise ImportError(f"another module '{name}' ({file or 'a folder'}) is loaded already, which hides the "
                                  f"one in {here}: load this detector first, or in a process of its own")  # fmt: skip


_check_modules()

import models.inference.hub as _hub  # noqa: E402


def custom(
    path: str | pathlib.Path, autoshape: bool = True, _verbose: bool = True, device: _hub.Device = None
) -> _hub.AutoShape | _hub.DetectionModel:
    """A detector from a checkpoint of this program or of YOLOv5.

    autoshape: it takes images of any kind (`models.inference.hub.AutoShape`); otherwise the bare network, for tensors
    and for training. Both in eval mode. device: 'cpu', 'mps' or a GPU's number; None for the best there is.
    Raises UserError if the file is no checkpoint.
    """
    return _hub.load_custom(path, autoshape, _verbose, device)


def _entry(name: str) -> typing.Callable[..., _hub.AutoShape | _hub.DetectionModel]:
    def entry(
        pretrained: bool | str | pathlib.Path = False, channels: int = 3, classes: int = 80, autoshape: bool = True,
        _verbose: bool = True, device: _hub.Device = None,
    ) -> _hub.AutoShape | _hub.DetectionModel:  # fmt: skip
        return _hub.create(name, pretrained, channels, classes, autoshape, _verbose, device)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"""A detector of {name}.yaml, untrained, or with what fits of a checkpoint.

    pretrained: the path of that checkpoint; nothing is downloaded. The rest is as `custom` says.
    """
    return entry


for _name in _hub.model_yamls():
    globals()[_name] = _entry(_name)
