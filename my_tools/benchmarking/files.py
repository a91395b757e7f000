"""The file-based cases of benchmark.py: all of detect.py, and datasets of 1000 to 100,000 images."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import detect
from models.inference.engine import load_fastest
from models.inference.runtime import AnyRuntime
from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import DetectionModel
from my_tools.benchmarking.cases import INFERRED, Conditions, Row, compared, quiet, turns
from utils.boxes import scale_boxes
from utils.data.dataset import DetectionDataset
from utils.data.labels import index_split, load_labels
from utils.data.loader import collate, create_loader
from utils.data.sources import LoadImages
from utils.evaluation.nms import non_max_suppression
from utils.settings.config import load_hyp
from utils.system.background import calls_at_a_time, side_by_side
from utils.system.console import LOGGER
from utils.system.opencv import cv2
from utils.system.profiling import time_in_turns

PICTURES = 500
SIZES = (1_000, 10_000, 100_000)
MOST_LINKS = 10_000  # hard links to one file; file systems have a limit


def detecting(c: Conditions) -> list[Row]:
    """Time all of detect.py, from loading weights to writing the last image, against the slowest of its steps alone."""
    index = index_split(c.data, "val")
    with tempfile.TemporaryDirectory() as folder:
        weights = c.weights
        if not weights:
            weights = Path(folder) / "untrained.pt"
            save_checkpoint(weights, weights_content(DetectionModel(c.cfgs[0], nc=c.data.nc), INFERRED))
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        for k in range(PICTURES):
            source = Path(index.file(k % len(index)))
            os.symlink(source, pictures / f"{k}{source.suffix}")
        runtime = load_fastest(Path(weights), c.device, amp="auto", imgsz=INFERRED,
                               frames=lambda most: most)  # fmt: skip
        with quiet():
            source = LoadImages(str(pictures), INFERRED, runtime.stride)
            frames = list(detect.read_frames(source, 1))
            found = [look(runtime, f) for f in frames]
            out = detect.Output(Path(folder) / "out", runtime.names)
            out.folder.mkdir()

            def read() -> None:
                for _ in detect.read_frames(LoadImages(str(pictures), INFERRED, runtime.stride), 1):
                    pass

            def network(at_a_time: int) -> None:
                for _ in side_by_side(partial(look, runtime), frames, at_a_time):
                    pass

            def write() -> None:
                for f, boxes in zip(frames, found, strict=True):
                    out.add(boxes, f.originals[0], f.paths[0], f.mode, f.number, f.fps)

            def whole() -> None:
                detect.run(weights=str(weights), source=str(pictures), imgsz=INFERRED, device=str(c.device),
                           project=folder, name="exp", exist_ok=True)  # fmt: skip

            calls = [whole, read, partial(network, calls_at_a_time(c.device)), write, partial(network, 1)]
            seconds = time_in_turns(calls, c.rounds, budget=1e9, each=turns("detect.py and its steps"), before=1)
    slowest = 1 + int(np.median(seconds[:, 1:4], 0).argmax())
    names = ("", "reading", "the network and NMS", "drawing and writing", "the network and NMS one by one")
    per = (PICTURES,) * 2
    rows = [compared("detect", f"{PICTURES} images, all of detect.py", f"{names[slowest]} alone",
                     seconds[:, [0, slowest]], per, target=1.2)]  # fmt: skip
    rows += [compared("detect", f"{names[k]} alone", f"{names[slowest]} alone", seconds[:, [k, slowest]], per)
             for k in range(1, 5) if k != slowest]  # fmt: skip
    return rows


def look(runtime: AnyRuntime, frames: detect.Frames) -> torch.Tensor:
    """Return the detections in an image, (m, 6), in pixels of the original image."""
    found = non_max_suppression(runtime.predict(frames.batch), max_det=1000)[0]
    scale_boxes(tuple(frames.batch.shape[2:]), found[:, :4], frames.originals[0].shape[:2])
    return found


def scaling(c: Conditions) -> list[Row]:
    """Time an image of datasets of 10^4 and 10^5 images against one of 10^3; logs start-up times and memory."""
    with contextlib.ExitStack() as stack:
        calls = [linked_set(Path(stack.enter_context(tempfile.TemporaryDirectory())), size, c) for size in SIZES]
        seconds = time_in_turns(calls, 60, budget=1e9, each=turns("an image of each"))
    what = [f"an image of a dataset of {size}" for size in SIZES]
    return [compared("scale", what[k], what[0], seconds[:, [k, 0]], (c.batch_size,) * 2, target=1.1)
            for k in range(1, len(SIZES))]  # fmt: skip


def linked_set(folder: Path, size: int, c: Conditions) -> Callable[[], object]:
    """Return a function that builds the next batch of a dataset of `size` hard links; logs its start-up times."""
    make_links(folder, size)
    start = time.perf_counter()
    load_labels((folder / "images",), 1, f"{size}: ")
    scanned, start = time.perf_counter() - start, time.perf_counter()
    index = load_labels((folder / "images",), 1, f"{size}: ")
    cached = time.perf_counter() - start
    arrays = sum(a.nbytes for a in (index.files, index.shapes, index.values, index.offsets))
    dataset = DetectionDataset(index, 64, c.batch_size, load_hyp("hyp.scratch-low"))
    sampler = create_loader(dataset, c.batch_size, 0, shuffle=True).batch_sampler
    start = time.perf_counter()
    next(iter(sampler))
    begun = time.perf_counter() - start
    LOGGER.info(f"{size} images: first scan {scanned:.1f} s, from its cache {cached:.2f} s, {arrays / 2**20:.1f} "
                f"MiB shared by all workers, {begun * 1e3:.0f} ms to begin an epoch")  # fmt: skip
    batches = itertools.chain.from_iterable(iter(sampler) for _ in itertools.count())
    return lambda: collate(dataset.__getitems__(next(batches)))


def make_links(folder: Path, count: int) -> None:
    """Create a dataset of `count` hard links to a few images, each with a label file."""
    images, labels = folder / "images", folder / "labels"
    images.mkdir()
    labels.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for k in range(count):
        one = folder / f"{k // MOST_LINKS}.jpg"
        if k % MOST_LINKS == 0:
            cv2.imwrite(str(one), picture)
        os.link(one, images / f"{k:06d}.jpg")
        (labels / f"{k:06d}.txt").write_text("0 0.5 0.5 0.4 0.4\n", encoding="ascii")
