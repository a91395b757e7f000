"""Drawing on images: boxes with labels, class colours, mosaics of a batch."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.boxes import xywh2xyxy
from utils.data.augment import GREY
from utils.data.images import write_image
from utils.files import unused_path
from utils.system.opencv import cv2

# twenty clearly different colours, as RGB
PALETTE = (
    "FF3838 FF9D97 FF701F FFB21D CFD231 48F90A 92CC17 3DDB86 1A9334 00D4BB "
    "2C99A8 00C2FF 344593 6473FF 0018EC 8438FF 520085 CB38FF FF95C8 FF37C7"
).split()


def color_of(cls: int) -> tuple[int, int, int]:
    """Return the BGR colour of a class."""
    value = int(PALETTE[int(cls) % len(PALETTE)], 16)
    return value & 255, value >> 8 & 255, value >> 16


def colors(i: int, bgr: bool = False) -> tuple[int, int, int]:
    """Return the colour of class i as RGB, or as BGR with `bgr`; YOLOv5's interface of `color_of`."""
    return color_of(i) if bgr else color_of(i)[::-1]


@functools.lru_cache(maxsize=16)
def _font(size: int):
    """Load matplotlib's own font, for characters that OpenCV's fonts do not have (nothing is downloaded)."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def count_text(classes: Iterable[float], names: Mapping[int, str]) -> str:
    """Return the number of objects per class as `4 persons, 1 bus`; empty if there are none."""
    counts = Counter(int(c) for c in classes)
    return ", ".join(f"{n} {plural(names[c]) if n > 1 else names[c]}" for c, n in sorted(counts.items()))


def plural(name: str) -> str:
    """Return the plural of an English class name, formed by its ending."""
    return name + ("es" if name.endswith(("s", "x", "z", "ch", "sh")) else "s")


class Annotator:
    """Draws on a copy of an image (h, w, 3) uint8 BGR; `result()` returns it.

    line_width: pixels; if None, it depends on the image size. font_size, font, pil and example are accepted for
    compatibility with YOLOv5 and have no effect: each label is drawn in a font that has its characters.
    """

    def __init__(
        self, im: np.ndarray, line_width: int | None = None, font_size: float | None = None, font: str = "",
        pil: bool = False, example: str = "",
    ) -> None:  # fmt: skip
        self.im = np.ascontiguousarray(im).copy()
        self.lw = line_width or max(round(sum(im.shape[:2]) / 2 * 0.003), 2)
        self.scale = max(self.lw / 3, 0.35)

    def box_label(
        self, box: Sequence[float], label: str | None = "", color: tuple[int, int, int] = (128, 128, 128),
        txt_color: tuple[int, int, int] | None = None,
    ) -> None:  # fmt: skip
        """Draw one box (x1, y1, x2, y2 in pixels) with its label above it, or inside it if there is no room above.

        txt_color: colour of the text; black or white if None.
        """
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(self.im, (x1, y1), (x2, y2), color, self.lw)
        if label:
            self.text((x1, y1), label, color, txt_color)

    def text(
        self, corner: tuple[int, int], label: str, color: tuple[int, int, int],
        txt_color: tuple[int, int, int] | None = None,
    ) -> None:  # fmt: skip
        """Write a label on a coloured background above `corner`, or below it at the top of the image."""
        w, h = self._text_size(label)
        x = max(min(corner[0], self.im.shape[1] - w - 2), 0)
        y = corner[1] - h - 4 if corner[1] - h - 4 >= 0 else corner[1]
        cv2.rectangle(self.im, (x, y), (x + w + 2, y + h + 4), color, -1)
        light = color[0] * 0.114 + color[1] * 0.587 + color[2] * 0.299 > 140
        ink = txt_color or ((0, 0, 0) if light else (255, 255, 255))
        if label.isascii():
            cv2.putText(self.im, label, (x + 1, y + h + 1), 0, self.scale, ink, self._stroke, cv2.LINE_AA)
        else:
            self._unicode_text((x + 1, y), label, ink)

    @property
    def _stroke(self) -> int:
        return max(self.lw - 1, 1)

    def _text_size(self, label: str) -> tuple[int, int]:
        if label.isascii():
            (w, h), _ = cv2.getTextSize(label, 0, self.scale, self._stroke)
            return w, h
        left, top, right, bottom = _font(max(round(self.scale * 30), 8)).getbbox(label)
        return int(right - left), int(bottom)

    def _unicode_text(self, corner: tuple[int, int], label: str, ink: tuple[int, int, int]) -> None:
        from PIL import Image, ImageDraw

        picture = Image.fromarray(self.im)
        ImageDraw.Draw(picture).text(corner, label, fill=ink, font=_font(max(round(self.scale * 30), 8)))
        self.im = np.array(picture)

    def result(self) -> np.ndarray:
        """Return the image with everything drawn on it, (h, w, 3) uint8 BGR."""
        return self.im


def crop_box(
    im: np.ndarray, box: Sequence[float], gain: float = 1.02, pad: int = 10, square: bool = False
) -> np.ndarray:
    """Crop a box (x1, y1, x2, y2 in pixels) from an image.

    square: make the box square first. gain, pad: the sides are multiplied by `gain` and lengthened by `pad` pixels.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    w, h = (max(x2 - x1, y2 - y1),) * 2 if square else (x2 - x1, y2 - y1)
    cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, w * gain + pad, h * gain + pad
    left, top = max(int(cx - w / 2), 0), max(int(cy - h / 2), 0)
    return im[top : int(cy + h / 2) + 1, left : int(cx + w / 2) + 1]


def save_one_box(
    xyxy: Sequence[float], im: np.ndarray, file: str | Path = "im.jpg", gain: float = 1.02, pad: int = 10,
    square: bool = False, BGR: bool = False, save: bool = True,
) -> np.ndarray:  # fmt: skip
    """Crop a box as `crop_box` does, write it as a JPEG file and return it as (h, w, 3) BGR; YOLOv5's interface.

    BGR: the image is BGR, as OpenCV reads it; otherwise RGB. No file is overwritten: `im.jpg`, `im2.jpg`, ...
    """
    crop = np.ascontiguousarray(crop_box(im, xyxy, gain, pad, square)[..., :: 1 if BGR else -1])
    if save:
        file = Path(file).with_suffix(".jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_image(unused_path(file), crop)
    return crop


def draw_batch(
    images: Tensor,
    targets: np.ndarray,
    paths: Sequence[str],
    names: Mapping[int, str],
    conf_thres: float = 0.25,
    max_images: int = 16,
    max_side: int = 1920,
) -> np.ndarray:
    """Return a mosaic (h, w, 3) BGR of the first images of a batch with their boxes and file names.

    images: (b, 3, h, w) uint8 RGB; targets: labels (n, 6) image, class, cx, cy, w, h normalised, or detections (n, 7)
    in pixels with the confidence last. Detections below conf_thres are not drawn.
    """
    count = min(len(images), max_images)
    h, w = images.shape[2:]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = min(max_side / max(columns * w, rows * h), max(1.0, 320 / max(h, w)))
    tile_h, tile_w = math.ceil(h * scale), math.ceil(w * scale)
    canvas = np.full((rows * tile_h, columns * tile_w, 3), 255, np.uint8)
    for k in range(count):
        im = np.ascontiguousarray(images[k].cpu().numpy().transpose(1, 2, 0)[..., ::-1])
        painter = Annotator(cv2.resize(im, (tile_w, tile_h)), line_width=max(round(tile_w / 320), 1))
        for row in targets[targets[:, 0] == k]:
            _draw_target(painter, row, (tile_w, tile_h), scale, names, conf_thres)
        top, left = divmod(k, columns)
        name = Path(paths[k]).name.encode("ascii", "replace").decode()[:40]
        tile = painter.result()
        cv2.putText(tile, name, (4, tile_h - 6), 0, 0.4, (GREY,) * 3, 2, cv2.LINE_AA)
        cv2.putText(tile, name, (4, tile_h - 6), 0, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        cv2.rectangle(tile, (0, 0), (tile_w - 1, tile_h - 1), (255, 255, 255), 1)
        canvas[top * tile_h : (top + 1) * tile_h, left * tile_w : (left + 1) * tile_w] = tile
    return canvas


def _draw_target(
    painter: Annotator, row: np.ndarray, size: tuple[int, int], scale: float, names: Mapping[int, str], conf: float
) -> None:
    predicted = len(row) == 7
    if predicted and row[6] < conf:
        return
    unit = np.array([scale] * 4) if predicted else np.array(size * 2)
    cls = int(row[1])
    label = names.get(cls, str(cls)) + (f" {row[6]:.1f}" if predicted else "")
    painter.box_label(xywh2xyxy(row[2:6] * unit), label, color_of(cls))
