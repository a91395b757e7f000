"""Checkpoints: files of tensors and plain values only. They are written atomically and read without running code.

YOLOv5's own checkpoints, which are pickled networks, can be read too, as weights (see `models.weights.foreign`).

There are two kinds with the same layout: `best.pt` (kind "weights") for deployment, and `last.pt` (kind "training"),
from which a run can be resumed:

    format    "yolov5-light", version 1
    kind      "weights" or "training"
    model     state dict of the EMA weights; half precision in "weights", float32 in "training"
    yaml      the model config; names {index: class name}; stride, anchors (pixels) as lists
    imgsz     image size in pixels in training
    metrics   of that epoch {name: value}; epoch (from 0); date; versions {package: version}; options, hyp of the run
    commit    git commit of the program, if it ran from a git checkout
    training  only in "training": model (the weights being trained), gradients (not yet applied), optimizer, scaler,
              ema_updates, epoch and batch to resume at, last_step, processes (mean losses so far and random states of
              each process), rows (of results.csv), seconds, class_maps, best_fitness, best_epoch, data (hash of images
              and labels), amp, done, finished, several_batches (whether they are computed at once, see
              `models.run.parallel`). seed, epoch and class_maps determine the order of the images.
"""

from __future__ import annotations

import io
import pickle
import platform
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.weights.foreign import check_plain, foreign_content, outline, what_is
from models.weights.unpickle import Inert, RefusedPickle, read_torch_zip
from models.yolo import DetectionModel
from utils.errors import UserError, did_you_mean
from utils.files import atomic_write, no_file
from utils.settings.config import LARGEST_IMAGE, check_model_cfg, is_whole
from utils.system.console import has_control

FORMAT, VERSION = "yolov5-light", 1
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of a torch.save file before PyTorch 1.6
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RELEASES = "https://github.com/ultralytics/yolov5/releases/download/v7.0"


def weights_content(
    model: DetectionModel, imgsz: int, half: bool = True, **facts: Any
) -> dict[str, Any]:
    """Return the content of a "weights" checkpoint; `facts` (metrics, epoch, options, ...) are added unchanged."""
    head = model.model[-1]
    state = {k: _detached(v, half) for k, v in model.state_dict().items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": "weights",
        "model": state,
        "yaml": dict(model.yaml),
        "names": dict(model.names),
        "stride": head.stride.tolist(),
        "anchors": head.anchor_rows(),
        "imgsz": imgsz,
        "date": datetime.now().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        **facts,
    }


def _detached(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    if half and tensor.is_floating_point():
        small = tensor.half()
        if torch.equal(small.isfinite(), tensor.isfinite()):  # values above 65504 would become infinite
            return small
    return tensor.clone()


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically. Raises UserError if that fails; an existing file is then left unchanged."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        with atomic_write(path) as f:
            f.write(buffer.getbuffer())
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); the previous file is intact") from e


def weights_size(model: DetectionModel, imgsz: int) -> int:
    """Return the size in bytes of a "weights" checkpoint of a model, without the information about its training."""
    buffer = io.BytesIO()
    torch.save(weights_content(model, imgsz), buffer)
    return buffer.tell()


def find_weights(path: str | Path) -> Path:
    """Return the checkpoint in a run's folder; a path that is not a folder is returned as it is.

    Raises UserError if the folder has none.
    """
    given = Path(path)
    if not given.is_dir():
        return given
    for file in (given / "weights" / "best.pt", given / "best.pt", given / "weights" / "slim.pt"):
        if file.is_file():
            return file
    raise UserError(f"--weights {path}: is a folder without weights/best.pt; give a run's folder or a .pt file")


def load_checkpoint(path: str | Path, training: bool = False) -> dict[str, Any]:
    """Read a checkpoint of this program or of YOLOv5. Raises UserError, naming the content, for any other file.

    training: require a checkpoint of this program that can be resumed.
    """
    path = Path(path)
    tree = _read(path)
    if isinstance(tree, Inert) or isinstance(tree, dict) and any(isinstance(v, Inert) for v in tree.values()):
        content = {"format": FORMAT, "version": VERSION, **foreign_content(tree, str(path))}
    elif not isinstance(tree, dict) or tree.get("format") != FORMAT:
        holds = "tensors" if isinstance(tree, dict) and tree else what_is(tree)
        raise UserError(f"{path}: contains {holds}, but is not a checkpoint of this program or of YOLOv5; train one "
                        "with train.py (for torchvision's backbone weights use --backbone-weights)")  # fmt: skip
    else:
        content = tree
        version = content.get("version")
        if not is_whole(version) or version != VERSION:
            number = f"version {version}" if is_whole(version) else "another version"
            raise UserError(f"{path}: has {number} of the format, but this program reads version {VERSION}: it was "
                            "written by a newer version of the program; update this one")  # fmt: skip
    _check_content(content, path)
    if training and content["kind"] != "training":
        raise UserError(f"{path}: contains only weights and cannot be resumed; --resume needs last.pt")
    if training and not {"training", "options", "hyp", "epoch"} <= content.keys():
        raise UserError(f"{path}: is incomplete and cannot be resumed")
    return content


def _check_content(content: dict[str, Any], path: Path) -> None:
    """Raise UserError unless each entry of a checkpoint has the right type and all its weights are finite."""
    kinds = {"model": dict, "yaml": dict, "names": dict, "kind": str, "imgsz": int, "stride": list, "options": dict,
             "hyp": dict, "training": dict}  # fmt: skip
    for key, kind in kinds.items():
        if key in ("model", "yaml", "names", "kind") and content.get(key) is None:
            raise UserError(f"{path}: is incomplete: '{key}' is missing")
        if content.get(key) is not None and not isinstance(content[key], kind):
            raise UserError(f"{path}: is damaged: its '{key}' is {what_is(content[key])}")
    try:
        check_plain({k: v for k, v in content.items() if k not in ("model", "training")})
        if not 32 <= (content.get("imgsz") or 32) <= LARGEST_IMAGE:
            raise ValueError(f"its imgsz is not between 32 and {LARGEST_IMAGE}")
        names, nc = content["names"], content["yaml"].get("nc")
        if not is_whole(nc) or nc != len(names) or list(names) != list(range(len(names))):
            raise ValueError("its class names are not numbered from 0 to nc - 1")
        if any(isinstance(name, str) and has_control(name.strip()) for name in names.values()):
            raise ValueError("one of its class names contains a line break or control character")
        for key, value in content["model"].items():
            _check_tensor(key, value)
    except ValueError as e:
        raise UserError(f"{path}: is damaged: {e}") from e


def _check_tensor(key: Any, value: Any) -> None:
    """Raise ValueError unless an entry of a state dict is a finite tensor of a possible dtype, with a name."""
    if not isinstance(key, str) or not isinstance(value, Tensor):
        raise ValueError("its state dict contains something other than named tensors")
    if value.dtype not in FLOATS and not key.endswith("num_batches_tracked"):
        raise ValueError(f"{key[:100]!r} has the dtype {value.dtype}")
    if not value.isfinite().all():
        raise ValueError(f"values of {key[:100]!r} are not finite, its training failed")


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a plain state dict, such as torchvision's. Raises UserError for any other file."""
    content = _read(Path(path))
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path}: is not a state dict (names and tensors); for a checkpoint use --weights")
    return {str(k): v for k, v in content.items()}


def _read(path: Path) -> Any:
    """Read the content of a .pt file; objects in it become `Inert`. Raises UserError if it is unreadable or refused.

    Zip files, which this program writes too, are read by `read_torch_zip`: it is as strict as `weights_only`, supports
    YOLOv5's pickled networks, and its memory and time are bounded by the size of the file.
    """
    if path.is_dir():
        inside = sorted((*path.glob("weights/*.pt"), *path.glob("*.pt")))
        raise UserError(f"{path}: is a folder; give a .pt file" + (f" in it, such as {inside[0]}" if inside else ""))
    if path.exists() and (why := no_file(path)):
        raise UserError(f"{path}: {why}")
    try:
        with open(path, "rb") as f:
            begin = f.read(len(OLD_MAGIC))
        return _read_zip(path) if begin.startswith(b"PK") else _read_old(path, begin)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_nearest(path)}; {_where_from(path.name)}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e


def _read_zip(path: Path) -> Any:
    try:
        return read_torch_zip(path)
    except RefusedPickle as e:
        if str(e).startswith("__torch__"):
            raise UserError(f"{path}: is a TorchScript export; give the checkpoint it was exported from") from e
        raise UserError(f"{path}: asks for {str(e)[:120]!r}, which is neither a tensor nor a part of a network; it is "
                        "not loaded, because that could run arbitrary code") from e  # fmt: skip
    except ValueError as e:
        raise UserError(f"{path}: is damaged or truncated ({str(e)[:200]})") from e


def _read_old(path: Path, begin: bytes) -> Any:
    """Read a state dict in the format of `torch.save` before PyTorch 1.6, which some of torchvision's files have."""
    if not begin:
        raise UserError(f"{path}: is damaged or truncated: the file is empty")
    if begin != OLD_MAGIC:
        raise UserError(f"{path} is not a checkpoint (a web page or another file saved as .pt?)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(f"{path}: contains more than tensors, in the format before PyTorch 1.6; load it with a newer "
                        "PyTorch and save it again") from e  # fmt: skip
    except Exception as e:  # a damaged pickle can raise almost any exception
        raise UserError(f"{path}: is damaged or truncated ({type(e).__name__})") from e


def _nearest(path: Path) -> str:
    """Return a hint at a file in the same folder with a similar name, or an empty string."""
    return did_you_mean(path.name, [p.name for p in path.parent.glob("*.pt*")])


def _where_from(name: str) -> str:
    """Return a hint at where to get a missing file. Nothing is downloaded automatically."""
    if re.fullmatch(r"yolov5[nsmlx]6?\.pt", name):
        return f"YOLOv5's authors publish it: {RELEASES}/{name}; download it and give its path"
    return "give the path of a .pt file, such as one in runs/train"


def model_from_checkpoint(content: dict[str, Any], where: str | Path = "checkpoint") -> DetectionModel:
    """Build the float32 model of a checkpoint, in eval mode. Raises UserError if its weights do not fit its config."""
    try:
        check_fit(content, where)
        cfg = content["yaml"]
        model = DetectionModel({**cfg}, ch=cfg.get("ch", 3))
        model.load_state_dict(content["model"])
        model.names = {int(k): str(v).strip() for k, v in content["names"].items()}
        if content.get("stride", model.stride.tolist()) != model.stride.tolist():
            raise ValueError(f"strides {content['stride']}, but its config gives {model.stride.tolist()}")
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as e:
        raise _misfit(where, e) from e
    return model.float().eval()


def check_fit(content: dict[str, Any], where: str | Path) -> None:
    """Raise UserError unless a checkpoint's weights have the names and shapes that its config requires.

    Call it before the network is built, because a config alone could require any amount of memory.
    """
    cfg, given = content["yaml"], content["model"]
    try:
        check_model_cfg(cfg, "its model config")
        own = outline(cfg, len(given)).state_dict()
        if odd := own.keys() ^ given.keys():
            raise ValueError(f"{min(odd)[:100]!r} is {'missing' if min(odd) in own else 'unexpected'}")
        if odd := [k for k in own if own[k].shape != given[k].shape]:
            raise ValueError(f"{odd[0]} is {tuple(given[odd[0]].shape)}, not {tuple(own[odd[0]].shape)}")
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as e:
        raise _misfit(where, e) from e


def _misfit(where: str | Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{where}: its weights do not fit its own model config ({reason})")
