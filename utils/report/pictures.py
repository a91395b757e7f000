"""Drawing of one image with a model's hits, false detections and missed labels, marked by colour, line and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from utils.boxes import box_iou
from utils.data.images import ImageError
from utils.draw.boxes import Annotator, color_of
from utils.evaluation.metrics import process_batch
from utils.report.content import elide, printable
from utils.system.opencv import cv2

HIT, FALSE, MISSED = (50, 150, 30), (40, 40, 220), (0, 190, 255)  # BGR
INK, PAPER, SOFT = (255, 255, 255), (38, 32, 28), (210, 205, 200)  # colours of the strip below the image, BGR
OVERLAP = 0.5  # least IoU at which a detection matches a label of its class
SIDES = 320, 640  # pixels: images are resized so that the longer side is within these limits
QUALITY = 85  # of the JPEG files
LEGEND = (
    "If an image has labels, a green box is a hit (it matches a label: same class, IoU 0.5 or more), a red box marked "
    "“false” matches no label, and a dashed yellow box marked “missed” is a label without a match. If it has none, "
    "each box has the colour of its class."
)


class Verdict(NamedTuple):
    """Matches of one image: hit (m,) bool for its detections, missed (k,) bool for its labels."""

    hit: np.ndarray
    missed: np.ndarray


def judge(found: np.ndarray, true: np.ndarray) -> Verdict:
    """Match detections to labels, one to one.

    found: (m, 6) corners, confidence, class, best first; true: (k, 5) class, corners, in the same pixels.
    """
    detections, labels = (torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in (found, true))
    hit = process_batch(detections, labels, torch.tensor([OVERLAP]))[:, 0].numpy()
    missed = np.ones(len(true), bool)
    if hit.any():
        same = labels[:, 0:1] == detections[:, 5]
        iou = torch.where(same, box_iou(labels[:, 1:], detections[:, :4]), torch.tensor(-1.0)).numpy()
        for d in np.flatnonzero(hit):
            # a hit matches the label with the highest IoU; hits on identical labels are shared out among them
            missed[np.where(missed, iou[:, d], -2).argmax()] = False
    return Verdict(hit, missed)


def draw_verdict(
    image: np.ndarray, found: np.ndarray, true: np.ndarray | None, names: Mapping[int, str], conf_thres: float,
    title: str,
) -> np.ndarray:  # fmt: skip
    """Draw a model's detections on an image, with a strip below it that shows `title` and the counts.

    image: (h, w, 3) uint8 BGR; found: (m, 6) corners in its pixels, confidence, class; true: (k, 5) class, corners,
    or None if there are no labels. Returns (h', w', 3) uint8 BGR, whose size depends only on the size of `image`.
    """
    image, scale = _fit(image)
    sure = found[found[:, 4] >= conf_thres]
    sure = sure[np.argsort(-sure[:, 4], kind="stable")]
    painter = Annotator(image, line_width=max(round(max(image.shape[:2]) / 320), 1))
    painter.scale = sum(image.shape[:2]) / 1800  # the report shows all images at the same width
    if true is None:
        for row in sure[::-1]:
            painter.box_label(row[:4] * scale, _label(names, row), color_of(int(row[5])))
        counts = f"{len(sure)} object{'s' * (len(sure) != 1)}"
    else:
        verdict = judge(sure, true)
        for k in np.flatnonzero(verdict.missed):
            _dashed(painter, true[k, 1:] * scale, f"missed: {_name(names, true[k, 0])}")
        # the most confident is drawn last, and hits after false detections, so that they are not hidden
        for row in sure[~verdict.hit][::-1]:
            painter.box_label(row[:4] * scale, f"false: {_label(names, row)}", FALSE)
        for row in sure[verdict.hit][::-1]:
            painter.box_label(row[:4] * scale, _label(names, row), HIT)
        hits = int(verdict.hit.sum())
        counts = f"{hits} hit{'s' * (hits != 1)}, {len(sure) - hits} false, {int(verdict.missed.sum())} missed"
    picture = painter.result()
    return np.concatenate((picture, _strip(picture.shape[1], title, counts)))


def encode(picture: np.ndarray) -> bytes:
    """Encode an image (h, w, 3) uint8 BGR as a JPEG file. Raises ImageError."""
    done, content = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    if not done:
        raise ImageError("an image cannot be encoded as JPEG")
    return content.tobytes()


def _fit(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Resize an image so that its longer side is within SIDES and text stays legible; returns it and the factor."""
    side = max(image.shape[:2])
    scale = min(max(side, SIDES[0]), SIDES[1]) / side
    if scale == 1:
        return image, 1.0
    size = [max(round(v * scale), 1) for v in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), scale


def _name(names: Mapping[int, str], cls: float) -> str:
    return printable(names.get(int(cls), str(int(cls))))


def _label(names: Mapping[int, str], row: np.ndarray) -> str:
    return f"{_name(names, row[5])} {row[4]:.2f}"


def _dashed(painter: Annotator, box: np.ndarray, label: str) -> None:
    """Draw a dashed box over a thin dark one, visible on any background, with its label at the lower edge."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    cv2.rectangle(painter.im, (x1, y1), (x2, y2), PAPER, painter.lw)
    dash = 5 * painter.lw
    for a, b in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2))):
        start, end = np.array(a, float), np.array(b, float)
        length = float(np.hypot(*(end - start)))
        for at in np.arange(0, length, 2 * dash):
            p, q = (start + (end - start) * min(t / max(length, 1), 1) for t in (at, at + dash))
            cv2.line(painter.im, p.round().astype(int).tolist(), q.round().astype(int).tolist(), MISSED, painter.lw)
    # detections have their labels at the upper edge, where both labels would overlap
    painter.text((x1, y2), label, MISSED)


def _strip(width: int, title: str, counts: str) -> np.ndarray:
    """Return a strip with two lines of text, (h, width, 3), of the same height for every text.

    A line that does not fit is shortened in the middle.
    """
    scale = min(max(width / 1000, 0.4), 0.6)
    line = round(44 * scale)
    painter = Annotator(np.full((2 * line + 8, width, 3), PAPER, np.uint8), line_width=1)
    painter.scale = scale
    for number, (text, ink) in enumerate(((printable(title), INK), (counts, SOFT))):
        painter.text((4, (number + 1) * line + 2), _shorten(painter, text, width - 10), PAPER, ink)
    return painter.result()


def _shorten(painter: Annotator, text: str, width: int) -> str:
    lengths = range(min(len(text), 200), 0, -1)
    return next((t for t in (elide(text, n) for n in lengths) if painter._text_size(t)[0] <= width), "")
