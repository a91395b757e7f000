"""The dataset functions that YOLOv5's scripts call: `check_dataset` (data yaml) and `create_dataloader` (images)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils.data.dataset import Batch, DetectionDataset
from utils.data.labels import load_labels
from utils.data.loader import create_loader
from utils.errors import UserError
from utils.settings.config import MOST_CLASSES
from utils.settings.dataset import load_data


def check_dataset(data: str | Path, autodownload: bool = False) -> dict[str, Any]:
    """Read a data yaml with `load_data` and return it as a dict.

    Keys: `path`; `train`, `val`, `test`: a path, a list of paths, or None; `nc`; `names` {index: class name};
    `yaml_file`. `autodownload` is ignored: nothing is downloaded. Raises UserError if the `val` images do not exist.
    """
    config = load_data(data)
    if config.val:
        config.existing("val")
    splits = {split: [str(p) for p in getattr(config, split)] for split in ("train", "val", "test")}
    return {
        "path": config.path, "nc": config.nc, "names": dict(config.names), "yaml_file": str(config.yaml_file),
        **{k: v if len(v) > 1 else v[0] if v else None for k, v in splits.items()},
    }  # fmt: skip


class EpochLoader:
    """A loader that advances to the next epoch after each pass; other attributes are those of the wrapped loader."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self.loader
        finally:
            self.loader.batch_sampler.epoch += 1

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet, as while the object is being copied
            raise AttributeError(name)
        return getattr(self.loader, name)


def create_dataloader(
    path: str | Path | Sequence[str | Path], imgsz: int, batch_size: int, stride: int, single_cls: bool = False,
    hyp: Mapping[str, float] | None = None, augment: bool = False, cache: bool | str = False, pad: float = 0.0,
    rect: bool = False, rank: int = -1, workers: int = 8, image_weights: bool = False, quad: bool = False,
    prefix: str = "", shuffle: bool = False, seed: int = 0,
) -> tuple[EpochLoader, DetectionDataset]:  # fmt: skip
    """Open the images of folders or .txt lists with their labels; return the loader and the dataset.

    The loader yields `Batch`: images (b, 3, h, w) uint8 RGB, targets (n, 6) image, class, cx, cy, w, h normalised,
    paths, shapes. augment: use the hyper-parameters in `hyp`. rect: batches of similar aspect ratio, never shuffled.
    cache: True or "ram", or "disk". Raises UserError for image_weights and rank above 0, which only train.py supports.
    """
    if rank not in (-1, 0) or image_weights:
        raise UserError("create_dataloader: several processes (rank) and image_weights are supported in train.py only")
    if augment and hyp is None:
        raise UserError("create_dataloader: augment needs hyp, such as the result of utils.settings.config.load_hyp")
    sources = [path] if isinstance(path, (str, Path)) else path
    # scripts do not pass the number of classes, so labels may have any valid class index
    index = load_labels(tuple(Path(p) for p in sources), MOST_CLASSES, prefix)
    batch_size = min(batch_size, len(index))
    dataset = DetectionDataset(index, imgsz, batch_size, hyp if augment else None, rect, int(stride), pad,
                               "ram" if cache is True else cache or "", single_cls, seed, quad)  # fmt: skip
    loader = create_loader(dataset, batch_size, workers, shuffle and not rect, torch.cuda.is_available())
    return EpochLoader(loader), dataset
