"""The worst mistakes of an evaluation, kept as image crops: false detections and missed labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.evaluation.metrics import process_batch
from utils.evaluation.protocols import overlap
from utils.system.opencv import cv2

CONFIDENCE = 0.25  # detections below it count neither as mistakes nor as matches
OVERLAP = 0.5  # least IoU at which a detection matches a label
BESIDE = 0.1  # IoU below which a detection is on background
KEPT = 16
TILE = 220  # pixels: longer side of a mistake's crop
KINDS = ("false", "missed")


class Mistake(NamedTuple):
    """One false detection or missed label, with a crop of the image around it.

    kind: one of KINDS. weight: the detection's confidence, or the missed label's area in square pixels. number: row of
    the detection or label in its image. tile: the crop, (h, w, 3) uint8 BGR. detections (m, 4), labels (k, 4): corners
    in pixels of the crop.
    """

    kind: str
    weight: float
    path: str
    number: int
    caption: str
    tile: np.ndarray
    detections: np.ndarray
    labels: np.ndarray


class Mistakes:
    """Collects the worst mistakes of the images added, at most KEPT of each kind."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.kept: list[Mistake] = []

    def add(self, image: Tensor, found: np.ndarray, labels: np.ndarray, ignored: np.ndarray, path: str) -> None:
        """Add the mistakes of one image; all boxes are in pixels of `image`.

        image: (3, h, w) uint8 RGB, on any device; found: (m, 6) corners, confidence, class, best first; labels: (k, 5)
        and ignored: (j, 5) class, corners. A detection that matches one of `ignored` is not a mistake.
        """
        sure = found[found[:, 4] >= CONFIDENCE]
        for d, caption in false_detections(sure, labels, ignored, self.names):
            self._enter(image, "false", float(sure[d, 4]), path, d, caption, sure[d, :4], sure[d : d + 1], labels)
        for k, caption in missed_labels(found, labels, self.names):
            box = labels[k, 1:]
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            around = sure[overlap(sure[:, :4], box[None])[:, 0] >= BESIDE]
            self._enter(image, "missed", area, path, k, caption, box, around, labels[k : k + 1])

    def _enter(
        self, image: Tensor, kind: str, weight: float, path: str, number: int, caption: str, box: np.ndarray,
        found: np.ndarray, labels: np.ndarray,
    ) -> None:  # fmt: skip
        others = [m for m in self.kept if m.kind == kind]
        if len(others) == KEPT and (-weight, path, number) > _rank(others[-1]):
            return
        crop = cut_tile(image, box, found[:, :4], labels[:, 1:])
        self.kept = worst([*self.kept, Mistake(kind, weight, path, number, caption, *crop)])


def _rank(mistake: Mistake) -> tuple[float, str, int]:
    return -mistake.weight, mistake.path, mistake.number


def worst(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Return the KEPT mistakes of each kind with the highest weight, in an order independent of the input's."""
    ranked = sorted(mistakes, key=_rank)
    return [m for kind in KINDS for m in [m for m in ranked if m.kind == kind][:KEPT]]


def false_detections(
    found: np.ndarray, labels: np.ndarray, ignored: np.ndarray, names: Mapping[int, str]
) -> list[tuple[int, str]]:
    """Return the false positives as (row, caption); arguments as for `Mistakes.add`.

    The caption gives the cause: "duplicate" (the label has a better detection), "poor box" (the IoU with a label of the
    same class is too low), "on" a label of another class, or "background".
    """
    correct = process_batch(torch.from_numpy(found), torch.from_numpy(labels), torch.tensor([OVERLAP]))[:, 0].numpy()
    iou = overlap(found[:, :4], labels[:, 1:])
    same = found[:, 5:6] == labels[None, :, 0]
    excused = (overlap(found[:, :4], ignored[:, 1:]) >= OVERLAP) & (found[:, 5:6] == ignored[None, :, 0])
    captions = []
    for d in np.flatnonzero(~correct & ~excused.any(1)):
        there = "background"
        if (iou[d] * same[d]).max(initial=0) >= OVERLAP:
            there = "duplicate"
        elif iou[d].max(initial=0) >= BESIDE:
            k = int(iou[d].argmax())
            there = f"poor box {iou[d, k]:.2f}" if same[d, k] else f"on {_name(names, labels[k, 0])}"
        captions.append((int(d), f"{_name(names, found[d, 5])} {found[d, 4]:.2f}: {there}"))
    return captions


def missed_labels(found: np.ndarray, labels: np.ndarray, names: Mapping[int, str]) -> list[tuple[int, str]]:
    """Return the labels that no detection of at least CONFIDENCE matches, as (row, caption); see `Mistakes.add`."""
    over = overlap(found[:, :4], labels[:, 1:]) >= OVERLAP
    same, sure = found[:, 5:6] == labels[None, :, 0], found[:, 4:5] >= CONFIDENCE
    captions = []
    for k in np.flatnonzero(~(over & same & sure).any(0)):
        faint, other = np.flatnonzero((over & same)[:, k]), np.flatnonzero((over & sure)[:, k])
        there = "nothing found"
        if len(other):
            there = f"called {_name(names, found[other[0], 5])} {found[other[0], 4]:.2f}"
        elif len(faint):
            there = f"only {math.floor(found[faint, 4].max() * 100) / 100:.2f}"
        captions.append((int(k), f"{_name(names, labels[k, 0])}: {there}"))
    return captions


def _name(names: Mapping[int, str], cls: float) -> str:
    return names.get(int(cls), str(int(cls)))[:18]


def cut_tile(image: Tensor, box: np.ndarray, *boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Crop a square of twice the longer side of `box` around it from an image (3, h, w) uint8 RGB.

    box (4,) and each of boxes (m, 4): corners in pixels of the image. Returns the crop (h, w, 3) uint8 BGR, resized to
    a longer side of TILE pixels, and the boxes in pixels of the crop.
    """
    height, width = image.shape[1:]
    half = max(*(box[2:] - box[:2]), 24.0)
    # test-time augmentation can place a detection outside the image
    cx, cy = np.clip((box[0] + box[2]) / 2, 0, width), np.clip((box[1] + box[3]) / 2, 0, height)
    left, right = (int(np.clip(v, 0, width)) for v in (cx - half, cx + half + 1))
    top, bottom = (int(np.clip(v, 0, height)) for v in (cy - half, cy + half + 1))
    cut = image[:, top:bottom, left:right].cpu().numpy().transpose(1, 2, 0)[..., ::-1]
    scale = TILE / max(cut.shape[:2])
    size = [max(round(side * scale), 1) for side in cut.shape[1::-1]]
    tile = cv2.resize(np.ascontiguousarray(cut), size)
    return tile, *((corners - (left, top, left, top)) * scale for corners in boxes)
