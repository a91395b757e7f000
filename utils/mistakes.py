"""The worst mistakes of an evaluation, kept as small pictures: what was made up, and what was missed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.augment import GREY
from utils.draw import Annotator
from utils.metrics import process_batch
from utils.protocols import overlap

CONFIDENCE = 0.25  # a detection below is no mistake, and finds nothing
OVERLAP = 0.5  # IoU from which a detection finds a label
BESIDE = 0.1  # IoU below which a detection lies on background
KEPT = 16
COLUMNS, TILE, CAPTION, HEADING = 8, 220, 40, 34  # of the picture: tiles a row, and pixels
RED, GREEN, INK, PAPER = (40, 40, 230), (60, 190, 60), (30, 30, 30), (255, 255, 255)
HEADINGS = {
    "false": "Made up: detections (red) of confidence 0.25 and more without a label (green) of their class at IoU 0.5",
    "missed": "Missed: the biggest labels (green) that no detection of confidence 0.25 finds",
}


class Mistake(NamedTuple):
    """kind: a key of HEADINGS; weight: confidence, or square pixels; number: of the detection or label in its image;
    tile: (h, w, 3) uint8 BGR."""  # fmt: skip

    kind: str
    weight: float
    path: str
    number: int
    caption: str
    tile: np.ndarray


class Mistakes:
    """Keeps the worst mistakes of the images added; memory does not grow with their number."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.kept: list[Mistake] = []

    def add(self, image: Tensor, found: np.ndarray, labels: np.ndarray, ignored: np.ndarray, path: str) -> None:
        """Look through one image, all boxes in its pixels.

        image: (3, h, w) uint8 RGB, on any device; found: (m, 6) corners, confidence, class, best first; labels: (k, 5)
        and ignored: (j, 5) class, corners; a detection on one of `ignored` is no mistake.
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
        red: np.ndarray, green: np.ndarray,
    ) -> None:  # fmt: skip
        others = [m for m in self.kept if m.kind == kind]
        if len(others) == KEPT and (-weight, path, number) > _rank(others[-1]):
            return
        tile = draw_tile(image, box, red[:, :4], green[:, 1:])
        self.kept = worst([*self.kept, Mistake(kind, weight, path, number, caption, tile)])


def _rank(mistake: Mistake) -> tuple[float, str, int]:
    return -mistake.weight, mistake.path, mistake.number


def worst(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """The KEPT weightiest of each kind, in an order that does not depend on theirs."""
    ranked = sorted(mistakes, key=_rank)
    return [m for kind in HEADINGS for m in [m for m in ranked if m.kind == kind][:KEPT]]


def false_detections(
    found: np.ndarray, labels: np.ndarray, ignored: np.ndarray, names: Mapping[int, str]
) -> list[tuple[int, str]]:
    """The detections that hit nothing, as (row, caption); arguments as for `Mistakes.add`.

    The caption says what lies there: "duplicate" of a better detection, "poor box" of a label of its class with its
    IoU, "on" a label of another class, or "background".
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
    """The labels that no detection of CONFIDENCE finds, as (row, caption); arguments as for `Mistakes.add`."""
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


def draw_tile(image: Tensor, box: np.ndarray, red: np.ndarray, green: np.ndarray) -> np.ndarray:
    """Cut a box with as much again around it out of an image (3, h, w) RGB and draw boxes: at most TILE px a side, BGR.

    box (4,), red (m, 4), green (k, 4): corners in pixels of the image.
    """
    height, width = image.shape[1:]
    half = max(*(box[2:] - box[:2]), 24.0)
    # a detection may lie beside the image
    cx, cy = np.clip((box[0] + box[2]) / 2, 0, width), np.clip((box[1] + box[3]) / 2, 0, height)
    left, right = (int(np.clip(v, 0, width)) for v in (cx - half, cx + half + 1))
    top, bottom = (int(np.clip(v, 0, height)) for v in (cy - half, cy + half + 1))
    cut = image[:, top:bottom, left:right].cpu().numpy().transpose(1, 2, 0)[..., ::-1]
    scale = TILE / max(cut.shape[:2])
    size = [max(round(side * scale), 1) for side in cut.shape[1::-1]]
    painter = Annotator(cv2.resize(np.ascontiguousarray(cut), size), line_width=2)
    for boxes, colour in ((green, GREEN), (red, RED)):
        for corners in boxes:
            painter.box_label((corners - (left, top, left, top)) * scale, color=colour)
    return painter.result()


def mistakes_picture(mistakes: Iterable[Mistake]) -> np.ndarray:
    """All mistakes in a grid with headings and captions, (h, w, 3) uint8 BGR."""
    kept = worst(mistakes)
    parts = []
    for kind, heading in HEADINGS.items():
        tiles = [m for m in kept if m.kind == kind]
        rows = max(math.ceil(len(tiles) / COLUMNS), 1)
        part = np.full((HEADING + rows * (TILE + CAPTION) * bool(tiles), COLUMNS * TILE, 3), PAPER, np.uint8)
        part = _write(part, (6, 4), heading if tiles else f"{heading}: none", 0.6)
        for n, mistake in enumerate(tiles):
            row, column = divmod(n, COLUMNS)
            top, left = HEADING + row * (TILE + CAPTION), column * TILE
            h, w = mistake.tile.shape[:2]
            part[top : top + TILE, left + 1 : left + TILE - 1] = GREY
            y, x = top + (TILE - h) // 2, left + (TILE - w) // 2
            part[y : y + h, x : x + w] = mistake.tile
            part = _write(part, (left + 3, top + TILE + 1), mistake.caption, 0.42)
            part = _write(part, (left + 3, top + TILE + 18), _short(mistake.path), 0.36)
        parts.append(part)
    return np.concatenate(parts)


def _short(path: str) -> str:
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name if len(name) <= 32 else f"...{name[-29:]}"


def _write(im: np.ndarray, corner: tuple[int, int], text: str, scale: float) -> np.ndarray:
    """Write one line with its upper left at `corner`, in any alphabet."""
    painter = Annotator(im, line_width=1)
    painter.scale = scale
    height = 22 * scale / 0.6
    painter.text((corner[0], round(corner[1] + height)), "".join(c if c.isprintable() else "?" for c in text), PAPER)
    return painter.result()
