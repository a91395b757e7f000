"""The dataset of images and labels, its caching and augmentation, and the batch sampler.

An item depends only on the seed, the epoch and the index, never on the worker process or on earlier items.
A mosaic combines images that are near each other in the epoch's order, so that each image is decoded once and reused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.data.augment import (
    GREY,
    augment_hsv,
    flip_left_right,
    flip_up_down,
    letterbox,
    mixup,
    random_perspective,
)
from utils.data.images import ImageError, read_image, shrink
from utils.data.labels import LabelIndex
from utils.data.mosaic import mosaic
from utils.errors import UserError
from utils.files import atomic_write
from utils.system.console import LOGGER, progress
from utils.system.device import available_memory
from utils.system.granted import granted_cores
from utils.system.opencv import cv2
from utils.system.processes import local_world_size

GROUP = 16  # images from which a mosaic is drawn
KEPT = 64  # decoded images to keep in memory, at least
MOST_LOST = 32  # unreadable images in a row at which loading stops

# (h0, w0) of the file, ((ratio_h, ratio_w), (padw, padh)) as `scale_boxes` takes them; None after augmentation
Shapes = tuple[tuple[int, int], tuple[tuple[float, float], tuple[float, float]]] | None
Item = tuple[Tensor, Tensor, str, Shapes]
# epoch, index, and the indices of the images that the item's mosaics may use
Key = tuple[int, int, tuple[int, ...]]
Batch = tuple[Tensor, Tensor, tuple[str, ...], tuple[Shapes, ...]]


class ImagesLost(UserError):
    """Too many images in a row are unreadable for single damaged files to be the cause."""


class DetectionDataset(Dataset):
    """Items are (image (3, h, w) uint8 RGB, labels (n, 6) 0, class, cx, cy, w, h normalised, path, shapes).

    hyp: augmentation hyper-parameters, None for no augmentation. rect: sort the images by aspect ratio and give each
    batch a shape with little padding; `pad` is extra padding in units of the stride. cache: "", "ram" or "disk".
    quad: combine every four images of a batch into one of twice the side. colours: False leaves colour augmentation
    and flips to `augment_batch`. mosaics: number of the first epochs that use mosaics, None for all.
    """

    def __init__(
        self, index: LabelIndex, imgsz: int, batch_size: int, hyp: Mapping[str, float] | None = None,
        rect: bool = False, stride: int = 32, pad: float = 0.0, cache: str = "", single_cls: bool = False,
        seed: int = 0, quad: bool = False, colours: bool = True, mosaics: int | None = None,
    ) -> None:  # fmt: skip
        self.imgsz, self.hyp, self.rect, self.single_cls, self.seed = imgsz, hyp, rect, single_cls, seed
        self.batch_size, self.quad, self.colours, self.mosaics = batch_size, quad, colours, mosaics
        if rect:
            index, self.rect_shapes = sort_by_proportion(index, imgsz, batch_size, stride, pad)
        self.index = index
        self._ram: list[np.ndarray] | None = None
        self._disk = cache == "disk"
        self._decoded: dict[int, np.ndarray] = {}
        self._lost: set[int] = set()  # images that cannot be read
        self._lost_in_a_row: set[int] = set()
        if cache == "ram" and self._fits_memory():
            self._ram = self._preload()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Key | int) -> Item:
        """Return the item of a key. With a plain index, mosaics may use any image."""
        epoch, i, group = key if isinstance(key, tuple) else (0, key, ())
        if self.hyp is None:
            return self._plain_item(i)
        rng = np.random.default_rng((self.seed, epoch, i))
        mosaics = not self.rect and (self.mosaics is None or epoch < self.mosaics)
        im, labels = self._augmented(i, group or range(len(self)), rng, mosaics)
        return self._to_item(im, labels, i, None)

    def __getitems__(self, keys: list[Key]) -> list[Item]:
        """Return the items of a batch (the DataLoader requests all of them in one call)."""
        if self.hyp is not None and self._ram is None:
            near = {i for key in keys for i in key[2]}
            self._decoded = {i: im for i, im in self._decoded.items() if i in near}
        items = [self[key] for key in keys]
        if not self.quad:
            return items
        groups = range(0, len(items) - 3, 4)
        return [quad_item(items[k : k + 4], np.random.default_rng((self.seed, *keys[k][:2], 4))) for k in groups]

    def _plain_item(self, i: int) -> Item:
        """Return image i letterboxed, without augmentation."""
        im, (h0, w0) = self._load(i)
        h, w = im.shape[:2]
        shape = tuple(self.rect_shapes[i // self.batch_size]) if self.rect else (self.imgsz, self.imgsz)
        im, ratio, pad = letterbox(im, shape, auto=False, scaleup=False)
        shapes = ((h0, w0), ((h / h0 * ratio[1], w / w0 * ratio[0]), pad))
        return self._to_item(im, self._pixel_labels(i, w * ratio[0], h * ratio[1], *pad), i, shapes)

    def _augmented(
        self, i: int, group: Sequence[int], rng: np.random.Generator, mosaics: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        hyp = self.hyp
        if mosaics and rng.random() < hyp["mosaic"]:
            im, labels = self._mosaic(i, group, rng)
            if rng.random() < hyp["mixup"]:
                other = group[rng.integers(len(group))]
                im, labels = mixup(im, labels, *self._mosaic(other, group, rng), rng)
        else:
            im, _ = self._load(i)
            h, w = im.shape[:2]
            shape = tuple(self.rect_shapes[i // self.batch_size]) if self.rect else (self.imgsz, self.imgsz)
            im, ratio, pad = letterbox(im, shape, auto=False)
            labels = self._pixel_labels(i, w * ratio[0], h * ratio[1], *pad)
            im, labels = random_perspective(im, labels, hyp, rng)
        if not self.colours:
            return im, labels
        im = augment_hsv(im, rng, hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"])
        if rng.random() < hyp["flipud"]:
            im, labels = flip_up_down(im, labels)
        if rng.random() < hyp["fliplr"]:
            im, labels = flip_left_right(im, labels)
        return im, labels

    def _mosaic(self, i: int, group: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen = [i, *(group[k] for k in rng.integers(len(group), size=3))]
        rng.shuffle(chosen)
        images = [self._load(k)[0] for k in chosen]
        labels = [self._labels(k) for k in chosen]
        return mosaic(images, labels, self.imgsz, self.hyp, rng)

    def _labels(self, i: int) -> np.ndarray:
        """Return the labels of image i, (n, 5) class, cx, cy, w, h normalised; in training none if it is unreadable."""
        values = self.index.labels(i)
        if i in self._lost and self.hyp is not None:
            values = values[:0]
        return np.concatenate((np.zeros_like(values[:, :1]), values[:, 1:]), 1) if self.single_cls else values

    def _pixel_labels(self, i: int, w: float, h: float, padw: float = 0, padh: float = 0) -> np.ndarray:
        """Return the labels of image i, (n, 5) class, xyxy in pixels, for the image at (padw, padh) with size w x h."""
        values = self._labels(i)
        return np.concatenate((values[:, :1], xywhn2xyxy(values[:, 1:], w, h, padw, padh)), 1)

    def _to_item(self, im: np.ndarray, labels: np.ndarray, i: int, shapes: Shapes) -> Item:
        h, w = im.shape[:2]
        target = np.zeros((len(labels), 6), np.float32)
        if len(labels):
            corners = labels[:, 1:].clip(0, (w - 1e-3, h - 1e-3) * 2)
            target[:, 1] = labels[:, 0]
            target[:, 2:] = xyxy2xywhn(corners, w, h)
        image = torch.from_numpy(cv2.cvtColor(im, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)  # channels-last in memory
        return image, torch.from_numpy(target), self.index.file(i), shapes

    def _load(self, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Return image i with its longer side imgsz (in training at most imgsz), and the file's own (height, width).

        If the file has become unreadable, warn and return a grey image.
        """
        h0, w0 = self.index.shapes[i].tolist()
        if self._ram is not None:
            return self._ram[i], (h0, w0)
        if i not in self._decoded:
            im = self._load_from_disk(i) if self._disk else self._read(i)
            if self.hyp is None:  # in validation each image is used once
                return im, (h0, w0)
            if len(self._decoded) >= max(self.batch_size, KEPT):
                del self._decoded[next(iter(self._decoded))]
            self._decoded[i] = im
        return self._decoded[i], (h0, w0)

    def _read(self, i: int) -> np.ndarray:
        h0, w0 = self.index.shapes[i].tolist()
        # in training, large images are decoded at 1/2, 1/4 or 1/8 of their size
        reduce = next((f for f in (8, 4, 2) if self.hyp is not None and max(h0, w0) >= f * self.imgsz), 1)
        try:
            im = read_image(self.index.file(i), reduce)
            self._found(i)
            if max(abs(im.shape[0] * reduce - h0), abs(im.shape[1] * reduce - w0)) >= 2 * reduce:
                LOGGER.warning(f"{self.index.file(i)} has changed its size since the labels were read: it was "
                               f"{w0}x{h0} px and is now {im.shape[1] * reduce}x{im.shape[0] * reduce} px")  # fmt: skip
        except ImageError as e:
            im = self._stand_in(i, e)
        size = self._size(i)
        if im.shape[1::-1] != size:
            im = cv2.resize(im, size) if self.hyp is not None or size[0] > w0 else shrink(im, size)
        return im

    def _found(self, i: int) -> None:
        self._lost.discard(i)
        self._lost_in_a_row.clear()

    def _stand_in(self, i: int, reason: ImageError) -> np.ndarray:
        """Warn and return a grey image for an unreadable one. Raises ImagesLost if all images seem to be unreadable."""
        self._lost.add(i)
        self._lost_in_a_row.add(i)
        lost = len(self._lost_in_a_row)
        folder_gone = isinstance(reason.__cause__, FileNotFoundError) and not Path(self.index.file(i)).parent.is_dir()
        if folder_gone or lost >= min(MOST_LOST, len(self)):
            count = "an image" if lost == 1 else f"{lost} images in a row"
            raise ImagesLost(f"{count} cannot be read ({self.index.file(i)}: {reason}): is the disk that holds the "
                             "dataset still there?")  # fmt: skip
        found = "its labels are ignored" if self.hyp is not None else "its objects count as missed"
        LOGGER.warning(f"{self.index.file(i)}: {reason}; a grey image takes its place and {found}")
        return np.full((*self._size(i)[::-1], 3), GREY, np.uint8)

    def _size(self, i: int) -> tuple[int, int]:
        """Return the (width, height) at which image i is kept; in training small images are enlarged only later."""
        h0, w0 = self.index.shapes[i].tolist()
        r = self.imgsz / max(h0, w0)
        return (max(int(w0 * r), 1), max(int(h0 * r), 1)) if r < 1 or self.hyp is None else (w0, h0)

    def _load_from_disk(self, i: int) -> np.ndarray:
        """Return image i from the .npy file beside it, which is written at first use."""
        source = Path(self.index.file(i))
        kind = "train" if self.hyp is not None else "val"
        file = source.with_name(f"{source.name}.{kind}{self.imgsz}.npy")
        try:
            if file.stat().st_mtime_ns >= source.stat().st_mtime_ns:
                im = np.load(file, mmap_mode="r", allow_pickle=False)  # allocates nothing for a false header
                if im.dtype == np.uint8 and im.shape == (*self._size(i)[::-1], 3):
                    self._found(i)
                    return np.array(im)
        except (OSError, ValueError, EOFError):
            pass  # missing or damaged: written again
        im = self._read(i)
        if i in self._lost:
            return im
        try:
            with atomic_write(file) as f:
                np.save(f, im)
        except OSError as e:
            LOGGER.warning(f"--cache disk: {file} cannot be written ({e.strerror}); continuing without the disk cache")
            self._disk = False
        return im

    def _fits_memory(self) -> bool:
        needed = int(len(self) * self.imgsz**2 * 3 * 0.8) * local_world_size()  # each process has its own cache
        free = available_memory()
        if free is None or needed < 0.7 * free:
            return True
        LOGGER.warning(f"--cache ram needs {needed / 2**30:.1f} GiB, only {free / 2**30:.1f} GiB are free: not caching")
        return False

    def _preload(self) -> list[np.ndarray]:
        with ThreadPoolExecutor(min(granted_cores(), 8)) as pool:
            images = pool.map(self._read, range(len(self)))
            return list(progress(images, "caching images in memory", total=len(self)))


def quad_item(items: list[Item], rng: np.random.Generator) -> Item:
    """Combine four items into one of twice the side: a 2x2 grid or, half of the time, the first item enlarged."""
    image, target, path, _ = items[0]
    if rng.random() < 0.5:
        large = torch.nn.functional.interpolate(image[None].float(), scale_factor=2.0, mode="bilinear")[0]
        return large.round().to(image.dtype), target, path, None
    images = [item[0] for item in items]
    canvas = torch.cat((torch.cat(images[:2], 2), torch.cat(images[2:], 2)), 1)
    targets = []
    for k, item in enumerate(items):
        moved = item[1].clone()
        moved[:, 2:] /= 2
        moved[:, 2:4] += torch.tensor([k % 2, k // 2]) / 2
        targets.append(moved)
    return canvas, torch.cat(targets), path, None


def sort_by_proportion(
    index: LabelIndex, imgsz: int, batch_size: int, stride: int, pad: float
) -> tuple[LabelIndex, np.ndarray]:
    """Sort images by aspect ratio; return the sorted index and the (height, width) of each batch."""
    proportion = index.shapes[:, 0] / index.shapes[:, 1]
    order = np.argsort(proportion, kind="stable")
    labels = [index.labels(i) for i in order]
    counts = [len(v) for v in labels]
    ordered = LabelIndex(
        index.files[order], index.shapes[order], np.concatenate(labels),
        np.concatenate(([0], np.cumsum(counts))).astype(np.int64), index.problems,
    )  # fmt: skip
    proportion = proportion[order]
    shapes = []
    for start in range(0, len(order), batch_size):
        lowest, highest = proportion[start], proportion[start : start + batch_size][-1]
        if highest < 1:
            shape = (highest, 1.0)
        elif lowest > 1:
            shape = (1.0, 1 / lowest)
        else:
            shape = (1.0, 1.0)
        shapes.append([int(np.ceil(side * imgsz / stride + pad)) * stride for side in shape])
    return ordered, np.array(shapes)


class EpochBatches(Sampler):
    """Yields batches as lists of keys, in an order that depends only on the seed, the epoch and `weights`.

    Set `epoch` before each pass. start: number of batches to skip in the next pass, because an earlier run has done
    them. weights: (length,) sampling weights of the images; None to use each image once. Each of `world` processes gets
    its share of every batch or, with `whole`, every world-th batch. A last batch with fewer than `least` images per
    process is dropped.
    """

    def __init__(
        self, length: int, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1,
        whole: bool = False, least: int = 1,
    ) -> None:  # fmt: skip
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.rank, self.world, self.whole = rank, world, whole
        self.epoch, self.start = 0, 0
        self.weights: np.ndarray | None = None
        self.batches = math.ceil(length / batch_size)
        if not whole and self.batches > 1 and 0 < length % batch_size < least * world:
            self.batches -= 1

    def __len__(self) -> int:
        """Return the number of batches in a full pass of this process."""
        return len(range(self.rank, self.batches, self.world)) if self.whole else self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        start, self.start = self.start, 0
        order = self._order()
        chosen = range(self.rank, self.batches, self.world) if self.whole else range(self.batches)
        for k in chosen[start:]:
            batch = range(k * self.batch_size, min((k + 1) * self.batch_size, self.length))
            own = batch if self.whole else batch[self.rank :: self.world]
            yield [(self.epoch, order[p], self._near(p, order)) for p in own]

    def _near(self, place: int, order: list[int]) -> tuple[int, ...]:
        """Return the images that the mosaics of the item at `place` may use.

        These are about GROUP images from its batch or, if batches are smaller, from a few batches. In a large batch
        they are evenly spaced, so that each process's share of the batch contains whole groups.
        """
        size = self.batch_size * math.ceil(GROUP / self.batch_size)
        start = place // size * size
        step = max(size // GROUP, 1)
        return tuple(order[start + place % step : start + size : step])

    def _order(self) -> list[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.weights is not None:
            return rng.choice(self.length, self.length, p=self.weights / self.weights.sum()).tolist()
        order = np.arange(self.length)
        if self.shuffle:
            rng.shuffle(order)
        return order.tolist()


def rescale(images: Tensor, imgsz: int, stride: int, rng: np.random.Generator) -> Tensor:
    """Resize a batch (b, 3, h, w) float to a random size, for `--multi-scale`.

    The longer side becomes 0.5 to 1.5 times imgsz; both sides are multiples of `stride`.
    """
    lowest, highest = math.ceil(imgsz * 0.5 / stride), math.floor(imgsz * 1.5 / stride)
    side = int(rng.integers(lowest, highest + 1)) * stride
    h, w = images.shape[2:]
    size = [math.ceil(v * side / max(h, w) / stride) * stride for v in (h, w)]
    if size == [h, w]:
        return images
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
