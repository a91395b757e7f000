"""Augmentations of an image together with its boxes: letterbox, affine, perspective, colour, flips, mixup.

Images are (h, w, 3) uint8 BGR; labels (n, 5) float32: class, x1, y1, x2, y2 in pixels. All random numbers come
from the `numpy.random.Generator` passed in. YOLOv5's scripts pass no generator, so the two functions for them
(`jitter_hsv`, `jitter_perspective`) create one seeded from numpy's global state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from utils.errors import UserError
from utils.system.console import LOGGER
from utils.system.opencv import cv2

GREY = 114  # value of padding pixels


def letterbox(
    im: np.ndarray,
    new_shape: int | tuple[int, int] = (640, 640),
    color: tuple[int, int, int] = (GREY, GREY, GREY),
    auto: bool = True,
    scaleFill: bool = False,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Resize an image to fit into new_shape (h, w), keeping its aspect ratio, and pad the rest with grey.

    auto: pad only as far as needed to make the sides multiples of `stride`; scaleFill: stretch instead of padding;
    scaleup: allow enlarging. Returns the image, the ratios (width, height) and the padding (left, top) in pixels.
    """
    height, width = im.shape[:2]
    if isinstance(new_shape, int):
        new_shape = (new_shape, new_shape)
    r = min(new_shape[0] / height, new_shape[1] / width)
    if not scaleup:
        r = min(r, 1.0)
    ratio = (r, r)
    size = (max(round(width * r), 1), max(round(height * r), 1))
    dw, dh = float(new_shape[1] - size[0]), float(new_shape[0] - size[1])
    if scaleFill:
        dw = dh = 0.0
        size = (new_shape[1], new_shape[0])
        ratio = (new_shape[1] / width, new_shape[0] / height)
    elif auto:
        dw, dh = dw % stride, dh % stride
    dw, dh = dw / 2, dh / 2
    if (width, height) != size:
        im = cv2.resize(im, size, interpolation=cv2.INTER_LINEAR)
    # if the padding is odd, the extra pixel goes to the bottom and right
    top, bottom, left, right = round(dh - 0.1), round(dh + 0.1), round(dw - 0.1), round(dw + 0.1)
    if top or bottom or left or right:
        im = cv2.copyMakeBorder(im, top, bottom, left, right, cv2.BORDER_CONSTANT, value=color)
    return im, ratio, (dw, dh)


def make_divisible(x: float, divisor: float) -> int:
    """Round x up to a multiple of `int(divisor)`."""
    return math.ceil(x / int(divisor)) * int(divisor)


def round_to_stride(imgsz: int | Sequence[int], s: float = 32, floor: int = 0) -> int | list[int]:
    """Round an image size (one side or several, in pixels) up to multiples of stride `s`, at least `floor`.

    Returns an int for an int, otherwise a list. Warns if the size changes. Raises UserError for sides below 1.
    """
    sides = [imgsz] if isinstance(imgsz, int) else [int(v) for v in imgsz]
    if not sides or min(sides) < 1:
        raise UserError(f"image size {imgsz}: each side must be at least 1 pixel")
    fitting = [max(make_divisible(v, s), floor) for v in sides]
    rounded = fitting[0] if isinstance(imgsz, int) else fitting
    if fitting != sides:
        LOGGER.warning(f"image size {imgsz} does not fit stride {int(s)}; using {rounded}")
    return rounded


def augment_hsv(im: np.ndarray, rng: np.random.Generator, hgain: float, sgain: float, vgain: float) -> np.ndarray:
    """Multiply hue, saturation and value by random gains from 1 - gain to 1 + gain (`hgain`, `sgain`, `vgain`)."""
    if not (hgain or sgain or vgain):
        return im
    gains = rng.uniform(-1, 1, 3) * (hgain, sgain, vgain) + 1
    hsv = cv2.cvtColor(im, cv2.COLOR_BGR2HSV)
    if gains[0] * 179 < 255:  # fits in uint8; cvtColor takes hues modulo 180
        return cv2.cvtColor(cv2.transform(hsv, np.diag(gains)), cv2.COLOR_HSV2BGR)  # rounds, saturates at 255
    x = np.arange(256)
    tables = ((x * gains[0]).round() % 180, *np.clip(x * gains[1:, None], 0, 255).round())
    table = np.stack(tables, -1).astype(np.uint8).reshape(1, 256, 3)
    return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2BGR)


def jitter_hsv(im: np.ndarray, hgain: float = 0.5, sgain: float = 0.5, vgain: float = 0.5) -> None:
    """`augment_hsv` with the signature used by YOLOv5's scripts; changes the image in place."""
    im[:] = augment_hsv(im, _global_rng(), hgain, sgain, vgain)


def _global_rng() -> np.random.Generator:
    """Return a generator seeded from numpy's global state, so that `np.random.seed` makes it reproducible."""
    return np.random.default_rng(np.random.randint(2**31))


def affine_matrix(
    in_shape: tuple[int, int], out_shape: tuple[int, int], hyp: Mapping[str, float], rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return a random 3x3 matrix (rotation, scale, shear, perspective, translation) and its scale factor.

    It maps the centre of an image of in_shape (h, w) to the centre of out_shape, shifted by up to `translate`, a
    fraction of out_shape.
    """
    p0, p1 = rng.uniform(-1, 1, 2) * hyp["perspective"]
    angle = math.radians(rng.uniform(-1, 1) * hyp["degrees"])
    scale = rng.uniform(1 - hyp["scale"], 1 + hyp["scale"])
    shear_x, shear_y = (math.tan(math.radians(v * hyp["shear"])) for v in rng.uniform(-1, 1, 2))
    fractions = rng.uniform(0.5 - hyp["translate"], 0.5 + hyp["translate"], 2)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turned = np.array([
        [cos - shear_x * sin, sin + shear_x * cos, fractions[0] * out_shape[1]],
        [shear_y * cos - sin, shear_y * sin + cos, fractions[1] * out_shape[0]],
        [0, 0, 1],
    ])  # fmt: skip
    cy, cx = in_shape[0] / 2, in_shape[1] / 2
    return turned @ np.array([[1, 0, -cx], [0, 1, -cy], [p0, p1, 1 - p0 * cx - p1 * cy]]), scale


def random_perspective(
    im: np.ndarray,
    labels: np.ndarray,
    hyp: Mapping[str, float],
    rng: np.random.Generator,
    out_shape: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Warp an image and its labels with a random matrix (see `affine_matrix`) to out_shape (h, w).

    Each new box encloses the four warped corners of the old one and is clipped to the image. Boxes of which too little
    remains are removed (see `box_candidates`).
    """
    out_shape = out_shape or im.shape[:2]
    matrix, scale = affine_matrix(im.shape[:2], out_shape, hyp, rng)
    size = (out_shape[1], out_shape[0])
    if im.shape[:2] != out_shape or (matrix != np.eye(3)).any():
        border = (GREY, GREY, GREY)
        if hyp["perspective"]:
            im = cv2.warpPerspective(im, matrix, dsize=size, borderValue=border)
        else:
            im = cv2.warpAffine(im, matrix[:2], dsize=size, borderValue=border)
    return im, warp_labels(labels, matrix, scale, out_shape)


def warp_labels(labels: np.ndarray, matrix: np.ndarray, scale: float, out_shape: tuple[int, int]) -> np.ndarray:
    """Warp labels (n, 5) with a 3x3 matrix and return the ones (m, 5) that remain visible in out_shape (h, w).

    scale: the scale factor of the matrix.
    """
    if not len(labels):
        return labels
    after = np.concatenate((labels[:, :1], warp_boxes(labels[:, 1:], matrix)), 1)
    return visible_labels(labels, after, scale, out_shape)


def visible_labels(before: np.ndarray, after: np.ndarray, scale: float, out_shape: tuple[int, int]) -> np.ndarray:
    """Clip warped labels (n, 5) to out_shape (h, w) and remove those of which too little remains.

    before: the same labels before the warp; scale: the scale factor of the warp.
    """
    boxes = after[:, 1:].clip(0, (out_shape[1], out_shape[0]) * 2)
    keep = box_candidates(before[:, 1:] * scale, boxes)
    return np.concatenate((after[keep, :1], boxes[keep]), 1).astype(np.float32)


def jitter_perspective(
    im: np.ndarray, targets: np.ndarray | Sequence = (), segments: Sequence = (), degrees: float = 10,
    translate: float = 0.1, scale: float = 0.1, shear: float = 10, perspective: float = 0.0,
    border: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """`random_perspective` with the signature used by YOLOv5's scripts: one argument per hyper-parameter.

    border: pixels (vertical, horizontal) to add on each side; negative values crop. Raises UserError if `segments` is
    not empty.
    """
    if len(segments):
        raise UserError("random_perspective: only boxes can be warped, not polygons; leave segments empty")
    hyp = {"degrees": degrees, "translate": translate, "scale": scale, "shear": shear, "perspective": perspective}
    labels = np.asarray(targets, np.float32).reshape(-1, 5)
    out_shape = (im.shape[0] + 2 * border[0], im.shape[1] + 2 * border[1])
    return random_perspective(im, labels, hyp, _global_rng(), out_shape)


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Warp the corners of boxes (n, 4), xyxy, with a 3x3 matrix and return the enclosing boxes (n, 4)."""
    corners = np.ones((len(boxes) * 4, 3))
    corners[:, :2] = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2)
    corners = corners @ matrix.T
    corners = (corners[:, :2] / corners[:, 2:3]).reshape(-1, 4, 2)
    return np.concatenate((corners.min(1), corners.max(1)), 1)


def box_candidates(
    before: np.ndarray, after: np.ndarray, wh_thr: float = 2, ar_thr: float = 100, area_thr: float = 0.1
) -> np.ndarray:
    """Return which boxes (n, 4) to keep after a warp, as (n,) bool.

    A box is kept if both sides are above wh_thr pixels, its aspect ratio is below ar_thr, and more than area_thr of its
    area before the warp (scaled by the caller) remains.
    """
    w1, h1 = before[:, 2] - before[:, 0], before[:, 3] - before[:, 1]
    w2, h2 = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    proportion = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    return (w2 > wh_thr) & (h2 > wh_thr) & (w2 * h2 / (w1 * h1 + 1e-16) > area_thr) & (proportion < ar_thr)


def flip_up_down(im: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip an image and its labels vertically."""
    labels = labels.copy()
    labels[:, [2, 4]] = im.shape[0] - labels[:, [4, 2]]
    return cv2.flip(im, 0), labels


def flip_left_right(im: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip an image and its labels horizontally."""
    labels = labels.copy()
    labels[:, [1, 3]] = im.shape[1] - labels[:, [3, 1]]
    return cv2.flip(im, 1), labels


def mixup(
    im: np.ndarray, labels: np.ndarray, im2: np.ndarray, labels2: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend two images of the same size about half and half, and keep all labels (Zhang et al., 2018)."""
    share = rng.beta(32.0, 32.0)
    return cv2.addWeighted(im, share, im2, 1 - share, 0), np.concatenate((labels, labels2))
