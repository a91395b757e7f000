"""Mosaic augmentation (YOLOv4, 2020): four images around a point, cropped and warped to one size.

The large canvas in between is avoided where possible. Images are (h, w, 3) uint8; labels (n, 5) float32: class, then
cx, cy, w, h normalised by their image, or xyxy in pixels of the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from utils.boxes import xywh2xyxy
from utils.data.augment import GREY, affine_matrix, random_perspective, visible_labels
from utils.system.opencv import cv2

Corner = tuple[int, int]  # left, top of an image on the canvas of side 2 * imgsz
Size = tuple[int, int]  # width, height


def mosaic(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], imgsz: int, hyp: Mapping[str, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Place four images, resized to a longer side of imgsz, around a random point and warp them to (imgsz, imgsz).

    Without rotation, shear and perspective, only the visible part of each image is resized, directly to its final place
    in whole pixels; its labels are moved accordingly. Returns the image and the visible labels (m, 5) as xyxy.
    """
    yc, xc = (int(v) for v in rng.uniform(imgsz // 2, 2 * imgsz - imgsz // 2, 2))
    sizes = [size_at(imgsz, im.shape) for im in images]
    corners = [(xc - w if k % 2 == 0 else xc, yc - h if k < 2 else yc) for k, (w, h) in enumerate(sizes)]
    everything = np.concatenate(labels)
    owner = np.repeat(np.arange(4), [len(v) for v in labels])
    boxes = xywh2xyxy(everything[:, 1:])
    before = (boxes * np.tile(sizes, 2)[owner] + np.tile(corners, 2)[owner]).clip(0, 2 * imgsz)
    before = np.concatenate((everything[:, :1], before), 1)
    if hyp["degrees"] or hyp["shear"] or hyp["perspective"]:
        return random_perspective(lay_out(images, corners, sizes, imgsz), before, hyp, rng, (imgsz, imgsz))
    matrix, scale = affine_matrix((2 * imgsz, 2 * imgsz), (imgsz, imgsz), hyp, rng)
    out = np.full((imgsz, imgsz, 3), GREY, np.uint8)
    places = np.array([_place(im, corner, size, matrix, out)
                       for im, corner, size in zip(images, corners, sizes, strict=True)])  # fmt: skip
    after = boxes * np.tile(places[:, 0], 2)[owner] + np.tile(places[:, 1], 2)[owner]
    after = np.concatenate((everything[:, :1], after), 1)
    return out, visible_labels(before, after, scale, (imgsz, imgsz))


def size_at(imgsz: int, shape: Sequence[int]) -> Size:
    """Return the (width, height) of an image of shape (h, w, ...) after resizing its longer side to imgsz."""
    r = imgsz / max(shape[:2])
    return max(int(shape[1] * r), 1), max(int(shape[0] * r), 1)


def lay_out(images: Sequence[np.ndarray], corners: Sequence[Corner], sizes: Sequence[Size], imgsz: int) -> np.ndarray:
    """Place the images on a grey canvas of side 2 * imgsz; parts outside it are cut off."""
    canvas = np.full((2 * imgsz, 2 * imgsz, 3), GREY, np.uint8)
    for im, (left, top), (w, h) in zip(images, corners, sizes, strict=True):
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + w, 2 * imgsz), min(top + h, 2 * imgsz)
        im = cv2.resize(im, (w, h)) if im.shape[1::-1] != (w, h) else im
        canvas[y1:y2, x1:x2] = im[y1 - top : y2 - top, x1 - left : x2 - left]
    return canvas


def _place(
    im: np.ndarray, corner: Corner, size: Size, matrix: np.ndarray, out: np.ndarray
) -> tuple[list[float], list[float]]:
    """Draw the visible part of an image into `out`; return [width, height] and [left, top] of the whole image there.

    corner, size: position and size of the image on the canvas, which `matrix` scales and shifts to `out`.
    """
    side, cuts, sizes, starts = out.shape[0], [], [], []
    for axis in (0, 1):
        scale, shift = matrix[axis, axis], matrix[axis, 2]
        # the matrix maps pixel centres; pixel edges lie half a pixel away from them
        first, end, low, high = (round(scale * (edge - 0.5) + shift + 0.5)
                                 for edge in (corner[axis], corner[axis] + size[axis], 0, 2 * side))  # fmt: skip
        end, length = max(end, first + 1), im.shape[1 - axis]
        source, seen, target = _cut(length, first, end, max(first, low, 0), min(end, high, side))
        ratio = (target[1] - target[0]) / (source[1] - source[0])
        cuts.append((source, seen, target))
        sizes.append(length * ratio)
        starts.append(target[0] - source[0] * ratio)
    (sx, vx, tx), (sy, vy, ty) = cuts
    if vx[0] < vx[1] and vy[0] < vy[1]:
        piece = im[sy[0] : sy[1], sx[0] : sx[1]]
        wanted = tx[1] - tx[0], ty[1] - ty[0]
        if piece.shape[1::-1] != wanted:
            piece = cv2.resize(piece, wanted, interpolation=cv2.INTER_LINEAR)
        out[vy[0] : vy[1], vx[0] : vx[1]] = piece[vy[0] - ty[0] : vy[1] - ty[0], vx[0] - tx[0] : vx[1] - tx[0]]
    return sizes, starts


def _cut(length: int, first: int, end: int, low: int, high: int) -> tuple[tuple[int, int], ...]:
    """Find the visible part, from `low` to `high`, of a row of `length` pixels resized to span `first` to `end`.

    Returns three ranges in whole pixels: the source pixels needed, the visible target pixels, and the target pixels
    that all the needed source pixels cover.
    """
    ratio = (end - first) / length
    if low >= high:
        return (0, length), (0, 0), (first, end)
    a, b = math.floor((low - first) / ratio), min(math.ceil((high - first) / ratio), length)
    return (a, b), (low, high), (round(first + a * ratio), round(first + b * ratio))
