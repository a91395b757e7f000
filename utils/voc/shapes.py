"""Drawing of the default dataset: images of five kinds of shapes on cluttered backgrounds, in VOC format."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from utils.errors import UserError
from utils.files import DATASETS, ROOT, atomic_write
from utils.system.console import LOGGER, progress
from utils.system.opencv import cv2

CLASSES = ("circle", "square", "triangle", "star", "cross")
IMAGES = 800
SIZE = 160  # pixels of an image's longer side
VERSION = 1  # to be increased when the drawing changes, so that older datasets are recognised
OUT = DATASETS / "shapes" / "VOCshapes"
SAMPLES_OUT = ROOT / "data" / "images"
SPLITS = (*("train",) * 4, "test", *("train",) * 4, "val", *("train",) * 4, "test", *("train",) * 4, "test")
OBJECTS = (1, 4)  # minimum and maximum number of objects in an image
OBJECT_SIZE = (0.28, 0.6)  # longer side of an object's box, as a fraction of the image's longer side
STYLES = ("filled", "gradient", "striped", "bordered")
TURN = 20  # maximum rotation of a shape in degrees
SAMPLE_SHAPES = ((480, 320), (320, 480), (400, 400), (480, 360))  # width, height
MIN_VISIBLE = 0.4  # minimum visible fraction of every object
EASY_VISIBLE = 0.6  # objects with a smaller visible fraction are marked difficult
WELL_VISIBLE = 0.85  # minimum visible fraction of most objects
MAX_IOU = 0.15  # maximum IoU of two boxes, since boxes that overlap more could be taken for one object
OPAQUE = 0.3  # fraction of a pixel that a shape must cover for the pixel to belong to its box
JPEG_QUALITY = 90
_FINE, _SHIFT = 4, 4  # supersampling factor of shapes, and number of fractional bits of their corners


class Box(NamedTuple):
    """One annotated object; its pixels run from `x0`, `y0` (inclusive) to `x1`, `y1` (exclusive)."""

    name: str
    x0: int
    y0: int
    x1: int
    y1: int
    truncated: bool = False
    difficult: bool = False


class Cutout(NamedTuple):
    """The mask of a shape and its place in the image, `rows` and `columns`; clipped to the image."""

    rows: slice
    columns: slice
    body: np.ndarray  # (h, w) float32 0..1: fraction of each pixel that the shape covers
    painted: int  # number of pixels, including those outside the image
    style: str
    box: Box  # without a name for a strip that only occludes objects


class Scene(NamedTuple):
    """A drawn image, (h, w, 3) uint8 BGR, and the boxes of its objects."""

    image: np.ndarray
    boxes: list[Box]


def shape_points(name: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """Return the corners (n, 2) of a randomly rotated shape, centred on the origin, with a longer side of `size` px."""
    corners = {"square": 4, "triangle": 3, "star": 10}.get(name, 96)
    if name == "cross":
        arm = rng.uniform(0.28, 0.4)
        z = np.concatenate([np.array((arm + arm * 1j, 1 + arm * 1j, 1 - arm * 1j)) * 1j**-k for k in range(4)])
    else:
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        z = np.exp(1j * (angle + np.pi / corners))  # a square is axis-aligned before it is stretched and rotated
        z[1::2] *= rng.uniform(0.4, 0.5) if name == "star" else 1
    points = _turned(z.real * rng.uniform(0.86, 1.16) + 1j * z.imag, rng.uniform(-TURN, TURN))
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (size / (high - low).max())


def _turned(z: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate corners given as complex numbers (n,); returns (n, 2)."""
    return (z * np.exp(1j * np.deg2rad(degrees))).view(float).reshape(-1, 2)


def cut(points: np.ndarray, width: int, height: int, name: str, style: str) -> Cutout:
    """Rasterise a polygon (n, 2), in pixels, for an image of `width` x `height`."""
    low = np.floor(points.min(0)).astype(int) - 1
    (x, y), (w, h) = low.tolist(), (np.ceil(points.max(0)).astype(int) + 1 - low).tolist()
    fine = np.zeros((h * _FINE, w * _FINE), np.uint8)
    corners = ((points - low) * _FINE - 0.5) * 2**_SHIFT  # OpenCV's coordinates refer to pixel centres
    cv2.fillPoly(fine, [np.rint(corners).astype(np.int32)], 255, shift=_SHIFT)
    body = cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    xs, ys = (np.flatnonzero((body >= OPAQUE).any(axis)) for axis in (0, 1))
    whole = (x + int(xs[0]), y + int(ys[0]), x + int(xs[-1]) + 1, y + int(ys[-1]) + 1)
    inside = (max(whole[0], 0), max(whole[1], 0), min(whole[2], width), min(whole[3], height))
    rows, columns = (slice(*np.clip((a, a + n), 0, limit).tolist()) for a, n, limit in ((y, h, height), (x, w, width)))
    part = slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x)
    box, painted = Box(name, *inside, truncated=inside != whole), int(np.count_nonzero(body > 0.5))
    return Cutout(rows, columns, body[part], painted, style, box)


def _shrunk(body: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.erode(body, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1)))


def iou(a: Box, b: Box) -> float:
    """Return the IoU of two boxes."""
    shared = max(0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0, min(a.y1, b.y1) - max(a.y0, b.y0))
    return shared / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - shared)


def arrange(rng: np.random.Generator, width: int, height: int, objects: int, strips: int) -> list[Cutout]:
    """Place `objects` shapes and then `strips` over them at random, so that enough of each shape stays visible.

    Shapes and strips for which no place is found after some tries are left out.
    """
    shapes, over = list[Cutout](), list[Cutout]()  # over: the strips
    seen = painted = np.zeros(0, int)  # numbers of visible pixels and of all pixels of each shape
    top = np.zeros((height, width), np.uint8)  # topmost layer: 0 for the background or a strip, k + 1 for shape k
    for k in range(objects + strips):
        for _ in range(12):
            new = _random_shape(rng, width, height) if k < objects else _random_strip(rng, width, height)
            below, mask = top[new.rows, new.columns], new.body > 0.5
            left, whole = seen - np.bincount(below[mask], minlength=len(seen) + 1)[1:], painted
            if k < objects:
                left, whole = np.append(left, np.count_nonzero(mask)), np.append(whole, new.painted)
            enough = rng.choice((MIN_VISIBLE, EASY_VISIBLE, WELL_VISIBLE), p=(0.1, 0.25, 0.65))
            crowded = k < objects and any(iou(new.box, c.box) > MAX_IOU for c in shapes)
            if (left >= enough * whole).all() and not crowded:
                below[mask], seen, painted = len(left) if k < objects else 0, left, whole
                (shapes if k < objects else over).append(new)
                break
    hard = (seen < EASY_VISIBLE * painted).tolist()
    return [c._replace(box=c.box._replace(difficult=h)) for c, h in zip(shapes, hard, strict=True)] + over


def _random_shape(rng: np.random.Generator, width: int, height: int) -> Cutout:
    name, style = CLASSES[rng.integers(len(CLASSES))], STYLES[rng.integers(len(STYLES))]
    size = max(width, height) * np.exp(rng.uniform(*np.log(OBJECT_SIZE)))
    margin = 0.42 * size  # some shapes extend slightly beyond the image
    points = shape_points(name, size, rng) + rng.uniform(margin, (width - margin, height - margin))
    return cut(points, width, height, name, style)


def _random_strip(rng: np.random.Generator, width: int, height: int) -> Cutout:
    long, wide = max(width, height) * rng.uniform((0.25, 0.012), (0.7, 0.032))
    points = _turned(np.array((-1, 1, 1, -1)) * long + 1j * np.array((-1, -1, 1, 1)) * wide, rng.uniform(0, 180))
    return cut(points + rng.uniform(0, (width, height)), width, height, "", STYLES[rng.integers(3)])


def pick_colour(rng: np.random.Generator, *others: np.ndarray, distance: float = 160) -> np.ndarray:
    """Return the first of 24 random BGR colours (3,) at least `distance` from all `others`, or else the farthest."""
    tries = rng.uniform(10, 245, (24, 3))
    return tries[np.argmax(np.linalg.norm(tries[:, None] - others, axis=2).min(1, initial=distance))]


def _ramp(rng: np.random.Generator, height: int, width: int, period: float = 2 * np.pi) -> np.ndarray:
    """Return the distance along a random direction, (h, w) float32, scaled to 2 pi per `period` pixels."""
    angle, scale = rng.uniform(0, 2 * np.pi), 2 * np.pi / period
    x, y = np.arange(width) * (scale * np.cos(angle)), np.arange(height) * (scale * np.sin(angle))
    return np.add.outer(y.astype(np.float32), x.astype(np.float32))


def _mixed(mix: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Blend two colours, (h, w, 3) float32: the first where `mix` (h, w) is 0, the second where it is 1."""
    return cv2.transform(mix, np.column_stack((second - first, first)))


def paint(canvas: np.ndarray, cutout: Cutout, rng: np.random.Generator) -> None:
    """Paint a cutout onto `canvas` (h, w, 3) float32 in place, in colours that differ from those below it."""
    below = canvas[cutout.rows, cutout.columns]
    (h, w), ground = cutout.body.shape, np.array(cv2.mean(below)[:3])
    first = pick_colour(rng, ground)
    second = pick_colour(rng, first, ground, distance=90)
    mix = np.zeros((h, w), np.float32)  # only the first colour
    if cutout.style == "gradient":
        mix = cv2.normalize(_ramp(rng, h, w), None, 0, 1, cv2.NORM_MINMAX)
    elif cutout.style == "striped":
        period = max(7.0, min(h, w) / rng.uniform(2.5, 5))
        mix = np.clip(np.sin(_ramp(rng, h, w, period)) * (period / 4) + 0.5, 0, 1)
    elif cutout.style == "bordered":
        mix = 1 - _shrunk(cutout.body, max(2, round(max(h, w) * 0.07)))
    below += cv2.merge([cutout.body] * 3) * (_mixed(mix, first, second) - below)


def draw_ground(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return a cluttered background without objects, (h, w, 3) float32 in 0..255."""
    mix = cv2.normalize(_ramp(rng, height, width), None, 0, 0.6, cv2.NORM_MINMAX)
    canvas = _mixed(mix, *rng.uniform(10, 245, (2, 3)))
    if rng.random() < 0.6:  # faint blobs, too irregular to be taken for circles
        angle, layer = np.linspace(0, 2 * np.pi, 48, endpoint=False), canvas.copy()
        for _ in range(rng.integers(2, 6)):
            radius = 1 + sum(rng.uniform(0.15, 0.3) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5))
            radius *= max(width, height) * rng.uniform(0.08, 0.3)
            points = _turned(radius * np.exp(1j * angle), rng.uniform(0, 360))
            points = np.rint(points + rng.uniform(0, (width, height))).astype(np.int32)
            cv2.fillPoly(layer, [points], rng.uniform(10, 245, 3).tolist())
        canvas = cv2.addWeighted(canvas, 0.6, cv2.blur(layer, (3, 3)), 0.4, 0)
    if rng.random() < 0.7:  # noise of a random grain size, like cloth, gravel or foliage
        grain = rng.uniform(2, 14)
        coarse = rng.normal(0, rng.uniform(8, 20), (int(height / grain) + 2, int(width / grain) + 2, 3))
        canvas += cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.6:  # waves or a checkerboard, with fields smaller than any object
        pattern = np.sin(_ramp(rng, height, width, rng.uniform(8, 24)))
        if rng.random() < 0.5:
            pattern = np.sign(pattern * np.sin(_ramp(rng, height, width, rng.uniform(8, 24))))
        canvas += _mixed(pattern, np.zeros(3), rng.uniform(-18, 18, 3))
    return _add_clutter(rng, canvas)


def _add_clutter(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Draw lines across the image, and polygons smaller than any object."""
    height, width = canvas.shape[:2]
    reach = 6 * max(width, height) / SIZE
    layer = cv2.add(canvas, 0.0, dtype=cv2.CV_8U)  # OpenCV supports anti-aliasing for 8-bit images only
    for _ in range(rng.integers(0, 9)):
        ends, colour = rng.integers(0, (width, height), (2, 2)).tolist(), rng.uniform(10, 245, 3).tolist()
        cv2.line(layer, *ends, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    for _ in range(rng.integers(0, 45)):
        points = rng.uniform(-reach, reach, (rng.integers(3, 6), 2)) + rng.uniform(0, (width, height))
        hull = cv2.convexHull(np.rint(points).astype(np.int32))
        cv2.fillConvexPoly(layer, hull, rng.uniform(10, 245, 3).tolist(), cv2.LINE_AA)
    return cv2.addWeighted(canvas, 0.35, layer, 0.65, 0, dtype=cv2.CV_32F)


def draw_scene(rng: np.random.Generator, width: int, height: int, objects: int = 0, plain: bool = False) -> Scene:
    """Draw an image of `width` x `height` pixels with shapes.

    objects: number of shapes, random if 0. plain: on grey, without strips, blur or noise.
    """
    objects = objects or int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    cutouts = arrange(rng, width, height, objects, strips=0 if plain else int(rng.integers(0, 2)))
    canvas = np.full((height, width, 3), 128, np.float32) if plain else draw_ground(rng, width, height)
    for cutout in cutouts:
        paint(canvas, cutout, rng)
    boxes = [c.box for c in cutouts if c.box.name]
    if plain:
        return Scene(np.rint(canvas).astype(np.uint8), boxes)
    # simulate a camera: slight blur, random exposure, noise
    blur, gain, offset, noise = rng.uniform((0.3, 0.75, -12, 0.01), (0.9, 1.1, 18, 0.09))
    grain, canvas = rng.integers(0, 256, canvas.shape, np.uint8), cv2.GaussianBlur(canvas, (5, 5), blur)
    return Scene(cv2.addWeighted(canvas, gain, grain, noise, offset - 127.5 * noise, dtype=cv2.CV_8U), boxes)


def draw_image(seed: int, index: int, size: int = SIZE) -> Scene:
    """Draw image number `index` of the dataset with this seed; it does not depend on the other images."""
    rng = np.random.default_rng((seed, index))
    return draw_scene(rng, *rng.permutation((size, size * rng.choice((7, 6), p=(0.6, 0.4)) // 7)).tolist())


def contact_sheet(scenes: list[Scene], size: int, columns: int = 6) -> np.ndarray:
    """Return the images in a grid of cells of `size` pixels, with boxes and names; `?` marks difficult objects."""
    sheet = np.full((-(-len(scenes) // columns) * size, columns * size, 3), 255, np.uint8)
    for k, scene in enumerate(scenes):
        image = scene.image.copy()
        for box in scene.boxes:
            at = box.x0 + 2, max(box.y0 - 3, 10)
            cv2.rectangle(image, (box.x0, box.y0), (box.x1 - 1, box.y1 - 1), (0, 255, 255), 1)
            for colour, width in ((0, 0, 0), 3), ((255, 255, 255), 1):
                cv2.putText(image, box.name + "?" * box.difficult, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, width)
        y, x = k // columns * size, k % columns * size
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def annotation(filename: str, scene: Scene) -> str:
    """Return the VOC xml of a scene; VOC counts pixels from 1, and boxes include their last pixel."""
    height, width, depth = scene.image.shape
    objects = "".join(
        f"  <object>\n    <name>{escape(b.name)}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>{b.truncated:d}</truncated>\n    <difficult>{b.difficult:d}</difficult>\n"
        f"    <bndbox>\n      <xmin>{b.x0 + 1}</xmin>\n      <ymin>{b.y0 + 1}</ymin>\n"
        f"      <xmax>{b.x1}</xmax>\n      <ymax>{b.y1}</ymax>\n    </bndbox>\n  </object>\n"
        for b in scene.boxes
    )
    size = f"<width>{width}</width><height>{height}</height><depth>{depth}</depth>"
    head = f"  <folder>JPEGImages</folder>\n  <filename>{escape(filename)}</filename>\n  <size>{size}</size>\n"
    return f"<annotation>\n{head}  <segmented>0</segmented>\n{objects}</annotation>\n"


def jpeg(image: np.ndarray) -> bytes:
    """Return `image` (h, w, 3) uint8 BGR as the bytes of a JPEG file."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _is_drawn(out: Path, wanted: dict[str, int]) -> bool:
    """Return whether `out` contains the wanted dataset. Raises UserError if it contains anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "shapes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{out} exists and is not a dataset of shapes: choose another --out or remove it") from None
    if found != wanted:
        raise UserError(f"{out} contains another dataset ({found}, not {wanted}): choose another --out or remove it")
    return True


def _draw_set(folder: Path, wanted: dict[str, int]) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for index in progress(range(wanted["images"]), desc="drawing shapes"):
        scene, stem = draw_image(wanted["seed"], index, wanted["size"]), f"{index:06d}"
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg(scene.image))
        (folder / "Annotations" / f"{stem}.xml").write_text(annotation(f"{stem}.jpg", scene), "utf-8")
    for name in sorted(set(SPLITS)):
        stems = [f"{index:06d}" for index in range(wanted["images"]) if SPLITS[index % len(SPLITS)] == name]
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join([*stems, ""]), "utf-8")
    shown = [draw_image(wanted["seed"], index, wanted["size"]) for index in range(min(24, wanted["images"]))]
    (folder / "contact_sheet.jpg").write_bytes(jpeg(contact_sheet(shown, wanted["size"])))
    (folder / "shapes.json").write_text(json.dumps(wanted), "utf-8")


def make_set(out: Path, images: int = IMAGES, size: int = SIZE, seed: int = 0) -> None:
    """Draw the dataset in VOC format into `out`, atomically; do nothing if it already exists.

    It is drawn into a temporary folder beside `out`, which is renamed at the end. Raises UserError if `out` contains
    anything else.
    """
    wanted = {"version": VERSION, "seed": seed, "images": images, "size": size}
    if _is_drawn(out, wanted):
        LOGGER.info(f"{out} already exists")
        return
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")  # unique name for each run
    try:
        _draw_set(folder, wanted)
        if out.exists():
            out.rmdir()  # it is empty; not every system can rename onto an existing folder
        os.replace(folder, out)
    except OSError as e:
        if not _is_drawn(out, wanted):  # otherwise another run was faster and drew the same dataset
            raise UserError(f"cannot write the dataset {out}: {e.strerror}; choose another --out") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    LOGGER.info(f"{images} images of {len(CLASSES)} classes drawn into {out} (see contact_sheet.jpg)")


def make_samples(out: Path, count: int, seed: int) -> None:
    """Draw `count` sample images `shapes1.jpg`, ... into `out`; they differ from the images of the dataset."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            scene = draw_scene(np.random.default_rng((seed, index, 1)), *SAMPLE_SHAPES[index % len(SAMPLE_SHAPES)])
            with atomic_write(out / f"shapes{index + 1}.jpg") as f:
                f.write(jpeg(scene.image))
    except OSError as e:
        raise UserError(f"cannot write samples into {out}: {e.strerror}; choose another --out") from e
    LOGGER.info(f"{count} sample images drawn into {out}")
