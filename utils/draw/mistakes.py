"""The mosaic of an evaluation's worst mistakes, `errors.jpg`."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from utils.data.augment import GREY
from utils.draw.boxes import Annotator
from utils.evaluation.mistakes import TILE, Mistake, worst

COLUMNS, CAPTION, HEADING = 8, 40, 34  # tiles per row; heights in pixels
RED, GREEN, PAPER = (40, 40, 230), (60, 190, 60), (255, 255, 255)
HEADINGS = {
    "false": "False: detections (red) with a confidence of 0.25 or more and no label (green) of their class at IoU 0.5",
    "missed": "Missed: the largest labels (green) that no detection with a confidence of 0.25 or more matches",
}


def draw_tile(mistake: Mistake) -> np.ndarray:
    """Return a mistake's crop (h, w, 3) uint8 BGR with its labels in green and its detections in red."""
    painter = Annotator(mistake.tile.copy(), line_width=2)
    for boxes, colour in ((mistake.labels, GREEN), (mistake.detections, RED)):
        for corners in boxes:
            painter.box_label(corners, color=colour)
    return painter.result()


def mistakes_picture(mistakes: Iterable[Mistake]) -> np.ndarray:
    """Return all mistakes in a grid with headings and captions, (h, w, 3) uint8 BGR."""
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
            part[y : y + h, x : x + w] = draw_tile(mistake)
            part = _write(part, (left + 3, top + TILE + 1), mistake.caption, 0.42)
            part = _write(part, (left + 3, top + TILE + 18), _short(mistake.path), 0.36)
        parts.append(part)
    return np.concatenate(parts)


def _short(path: str) -> str:
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name if len(name) <= 32 else f"...{name[-29:]}"


def _write(im: np.ndarray, corner: tuple[int, int], text: str, scale: float) -> np.ndarray:
    """Write one line of text, in any alphabet, with its upper left corner at `corner`."""
    painter = Annotator(im, line_width=1)
    painter.scale = scale
    height = 22 * scale / 0.6
    painter.text((corner[0], round(corner[1] + height)), "".join(c if c.isprintable() else "?" for c in text), PAPER)
    return painter.result()
