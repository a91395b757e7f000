"""Draws the embedded data set: pictures of six kinds of shapes on busy grounds, written as a VOC set.

Usage:
    python my_tools/make_shapes.py                                  # the whole set, into ../datasets/shapes/VOCshapes
    python my_tools/make_shapes.py --samples 4 --out data/images    # a few larger pictures without annotations
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.console import LOGGER, progress, run_script
from utils.errors import UserError
from utils.files import DATASETS, ROOT, atomic_write

CLASSES = ("circle", "square", "triangle", "star", "cross", "heart")
IMAGES = 700
SIZE = 224  # pixels of an image's longer side
VERSION = 1  # raise it when the drawing changes, so that an older set is not taken for a new one
OUT = DATASETS / "shapes" / "VOCshapes"
SAMPLES_OUT = ROOT / "data" / "images"

OBJECTS = (1, 6)  # least and most objects in an image
OBJECT_SIZE = (28 / 224, 112 / 224)  # longer side of an object's box, as a share of SIZE
STYLES = ("filled", "gradient", "striped", "bordered", "outlined")
SAMPLE_SHAPES = ((480, 320), (320, 480), (400, 400), (480, 360))  # width, height
MIN_VISIBLE = 0.2  # an object that shows less of itself is not drawn
EASY_VISIBLE = 0.4  # an object that shows less of itself is marked difficult
MAX_IOU = 0.45  # two boxes nearer to each other than this could not survive non-maximum suppression together
OPAQUE = 0.25  # share of a pixel that a shape must cover for the pixel to belong to its box
JPEG_QUALITY = 90
_SUPERSAMPLE, _SHIFT = 4, 4


@dataclass(frozen=True)
class Cutout:
    """A shape cut out of paper: `body` (h, w) float32 0..1 is what it covers, `x`, `y` where its corner lies."""

    body: np.ndarray
    alpha: np.ndarray  # what is painted: the body, or only its rim
    x: int
    y: int
    name: str = ""  # empty: a strip that only hides things
    style: str = "filled"


@dataclass(frozen=True)
class Box:
    """One annotated object; pixels run from `x0`, `y0` up to and without `x1`, `y1`."""

    name: str
    x0: int
    y0: int
    x1: int
    y1: int
    truncated: bool = False
    difficult: bool = False


@dataclass(frozen=True)
class Scene:
    """A drawn picture, (h, w, 3) uint8 BGR, and the boxes of its objects."""

    image: np.ndarray
    boxes: list[Box]


# ---------------------------------------------------------------------------------------------- shapes


def shape_points(name: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """Return the corners (n, 2) of a shape around the origin, turned at random, the longer box side `size` pixels."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if name == "circle":
        points = np.stack((np.cos(angle), np.sin(angle)), 1)
    elif name == "heart":
        y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
        points = np.stack((16 * np.sin(angle) ** 3, -y), 1)
    elif name == "cross":
        arm = rng.uniform(0.28, 0.4)
        quarter = np.array([(arm, arm), (1, arm), (1, -arm)])
        points = np.concatenate([quarter @ _rotation(-k * np.pi / 2).T for k in range(4)])
    else:
        corners = {"triangle": 3, "square": 4, "star": 10}[name]
        angle = np.arange(corners) * 2 * np.pi / corners
        radius = np.where(np.arange(corners) % 2, rng.uniform(0.4, 0.5), 1.0) if name == "star" else np.ones(corners)
        points = np.stack((np.cos(angle), np.sin(angle)), 1) * radius[:, None]
        points = points @ _rotation(np.pi / corners).T
    points = points * (rng.uniform(0.86, 1.16), 1.0) @ _rotation(rng.uniform(0, 2 * np.pi)).T
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (size / (high - low).max())


def _rotation(angle: float) -> np.ndarray:
    return np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])


def rasterise(points: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return the share of each pixel a polygon (n, 2) covers, (h, w) float32, and the pixel x, y of its corner."""
    low = np.floor(points.min(0)).astype(int) - 1
    width, height = np.ceil(points.max(0)).astype(int) + 1 - low
    fine = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), np.uint8)
    corners = ((points - low) * _SUPERSAMPLE - 0.5) * 2**_SHIFT  # OpenCV counts from the middle of a pixel
    cv2.fillPoly(fine, [np.rint(corners).astype(np.int32)], 255, shift=_SHIFT)
    body = cv2.resize(fine, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    return body.astype(np.float32) / 255, int(low[0]), int(low[1])


def cut(name: str, size: float, centre: tuple[float, float], style: str, rng: np.random.Generator) -> Cutout:
    """Return a shape of the class `name` around `centre` (x, y in pixels), its longer side `size` pixels."""
    body, x, y = rasterise(shape_points(name, size, rng) + centre)
    alpha = body - _shrunk(body, max(2, round(size * rng.uniform(0.07, 0.12)))) if style == "outlined" else body
    return Cutout(body, alpha, x, y, name, style)


def _shrunk(body: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.erode(body, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1)))


def box_of(cutout: Cutout, width: int, height: int, visible: float = 1.0) -> Box:
    """Return the box of the whole shape, hidden parts too, clipped to an image of `width` x `height` pixels."""
    covered = cutout.body >= OPAQUE
    xs, ys = np.flatnonzero(covered.any(0)) + cutout.x, np.flatnonzero(covered.any(1)) + cutout.y
    x0, y0, x1, y1 = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
    inside = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return Box(cutout.name, *inside, inside != (x0, y0, x1, y1), visible < EASY_VISIBLE)


# ---------------------------------------------------------------------------------------------- arranging


def visible_shares(cutouts: list[Cutout], width: int, height: int) -> np.ndarray:
    """Return for each cutout, laid in this order, the share of its paint that is inside the image and not covered."""
    top = np.zeros((height, width), np.int64)  # 0: the ground, k + 1: cutout k lies on top
    for k, cutout in enumerate(cutouts):
        rows, columns, part = _window(cutout, width, height)
        top[rows, columns][cutout.alpha[part] > 0.5] = k + 1
    shown = np.bincount(top.ravel(), minlength=len(cutouts) + 1)[1:]
    return shown / [max(np.count_nonzero(c.alpha > 0.5), 1) for c in cutouts]


def _window(cutout: Cutout, width: int, height: int) -> tuple[slice, slice, tuple[slice, slice]]:
    """The rows and columns of the image that a cutout lies on, and the part of the cutout that lies there."""
    h, w = cutout.body.shape
    y0, x0, y1, x1 = max(cutout.y, 0), max(cutout.x, 0), min(cutout.y + h, height), min(cutout.x + w, width)
    part = slice(y0 - cutout.y, max(y1, y0) - cutout.y), slice(x0 - cutout.x, max(x1, x0) - cutout.x)
    return slice(y0, max(y1, y0)), slice(x0, max(x1, x0)), part


def arrange(rng: np.random.Generator, width: int, height: int, objects: int, strips: int) -> list[Cutout]:
    """Lay `objects` shapes and then `strips` over them at random, so that enough of each shape stays visible.

    What finds no place after some tries is left out, but for the first shape.
    """
    unit = max(width, height)
    placed: list[Cutout] = []
    for k in range(objects + strips):
        for _ in range(12):
            new = _random_shape(rng, width, height, unit) if k < objects else _random_strip(rng, width, height, unit)
            shares = [
                s
                for s, c in zip(visible_shares([*placed, new], width, height), [*placed, new], strict=True)
                if c.name
            ]
            bound = MIN_VISIBLE if rng.random() < 0.06 else EASY_VISIBLE
            hard = sum(s < EASY_VISIBLE for s in shares)
            if min(shares) >= bound and hard <= 1 and not _crowded(new, placed, width, height):
                placed.append(new)
                break
    return placed or [cut(CLASSES[0], unit / 4, (width / 2, height / 2), "filled", rng)]


def _random_shape(rng: np.random.Generator, width: int, height: int, unit: int) -> Cutout:
    size = unit * np.exp(rng.uniform(*np.log(OBJECT_SIZE)))
    margin = 0.3 * size  # some shapes may leave the image, none by more than its middle
    centre = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
    return cut(CLASSES[rng.integers(len(CLASSES))], size, centre, STYLES[rng.integers(len(STYLES))], rng)


def _random_strip(rng: np.random.Generator, width: int, height: int, unit: int) -> Cutout:
    half = np.array((rng.uniform(0.25, 0.7), rng.uniform(0.012, 0.032))) * unit
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half @ _rotation(rng.uniform(0, np.pi)).T
    body, x, y = rasterise(corners + (rng.uniform(0, width), rng.uniform(0, height)))
    return Cutout(body, body, x, y, style=STYLES[rng.integers(3)])


def _crowded(new: Cutout, placed: list[Cutout], width: int, height: int) -> bool:
    if not new.name:
        return False
    a = box_of(new, width, height)
    for b in (box_of(c, width, height) for c in placed):
        shared = max(0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0, min(a.y1, b.y1) - max(a.y0, b.y0))
        union = (a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - shared
        if shared > MAX_IOU * union:
            return True
    return False


# ---------------------------------------------------------------------------------------------- painting


def pick_colour(rng: np.random.Generator, *others: np.ndarray, distance: float = 110) -> np.ndarray:
    """Return a BGR colour (3,), of up to 24 tries the first that is `distance` away from all `others`, or the best."""
    tries = rng.uniform(10, 245, (24, 3))
    if not others:
        return tries[0]
    gap = np.linalg.norm(tries[:, None] - np.stack(others)[None], axis=2).min(1)
    return tries[np.argmax(gap >= distance) if (gap >= distance).any() else np.argmax(gap)]


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Distance in pixels along a random direction, (h, w)."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.arange(width) * np.cos(angle) + np.arange(height)[:, None] * np.sin(angle)


def paint(canvas: np.ndarray, cutout: Cutout, rng: np.random.Generator) -> None:
    """Paint a cutout onto `canvas` (h, w, 3) float32 in place, in colours that differ from what lies below it."""
    rows, columns, part = _window(cutout, canvas.shape[1], canvas.shape[0])
    below = canvas[rows, columns]
    if below.size == 0:
        return
    h, w = cutout.body.shape
    ground = below.reshape(-1, 3).mean(0)
    first = pick_colour(rng, ground)
    second = pick_colour(rng, first, ground, distance=80)
    mix = np.zeros((h, w))
    if cutout.style == "gradient":
        ramp = _ramp(rng, h, w)
        mix = (ramp - ramp.min()) / np.ptp(ramp)
    elif cutout.style == "striped":
        period = max(7.0, min(h, w) / rng.uniform(2.5, 5))
        mix = np.clip(np.sin(_ramp(rng, h, w) * 2 * np.pi / period) * period / 4 + 0.5, 0, 1)
    elif cutout.style == "bordered":
        mix = 1 - _shrunk(cutout.body, max(2, round(max(h, w) * 0.07)))
    colour = first + mix[part][..., None] * (second - first)
    canvas[rows, columns] = below + cutout.alpha[part][..., None] * (colour - below)


def draw_ground(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return a busy ground without objects, (h, w, 3) float32 in 0..255."""
    ramp = _ramp(rng, height, width)
    mix = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
    first, second = pick_colour(rng), pick_colour(rng)
    canvas = (first + mix * (0.6 * (second - first))).astype(np.float32)
    if rng.random() < 0.6:
        canvas = _add_blobs(rng, canvas)
    if rng.random() < 0.7:
        canvas = _add_clouds(rng, canvas)
    if rng.random() < 0.6:
        canvas = _add_pattern(rng, canvas)
    return _add_clutter(rng, canvas)


def _add_blobs(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Soft-edged lumps too uneven to be taken for a circle."""
    height, width = canvas.shape[:2]
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    layer = canvas.copy()
    for _ in range(rng.integers(2, 6)):
        radius = 1 + sum(rng.uniform(0.15, 0.3) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5))
        radius = radius * max(width, height) * rng.uniform(0.08, 0.3)
        points = np.stack((np.cos(angle), np.sin(angle)), 1) * radius[:, None]
        points = points + (rng.uniform(0, width), rng.uniform(0, height))
        cv2.fillPoly(layer, [np.rint(points).astype(np.int32)], pick_colour(rng).tolist())
    return cv2.addWeighted(canvas, 0.6, cv2.GaussianBlur(layer, (0, 0), 1.5), 0.4, 0)


def _add_clouds(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Noise of one coarseness, like cloth, gravel or foliage."""
    height, width = canvas.shape[:2]
    grain = rng.uniform(2, 14)
    coarse = rng.normal(0, rng.uniform(8, 22), (int(height / grain) + 2, int(width / grain) + 2, 3))
    return canvas + cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def _add_pattern(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Waves or a fine checker; its fields stay smaller than any object."""
    height, width = canvas.shape[:2]
    pattern = np.sin(_ramp(rng, height, width) * 2 * np.pi / rng.uniform(8, 24))
    if rng.random() < 0.5:
        pattern = np.sign(pattern * np.sin(_ramp(rng, height, width) * 2 * np.pi / rng.uniform(8, 24)))
    return canvas + (pattern[..., None] * rng.uniform(-18, 18, 3)).astype(np.float32)


def _add_clutter(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Lines across the picture, and confetti smaller than any object."""
    height, width = canvas.shape[:2]
    unit = max(width, height) / 224
    layer = np.clip(canvas, 0, 255).astype(np.uint8)  # OpenCV smooths edges on 8-bit pictures only
    for _ in range(rng.integers(0, 9)):
        ends = rng.integers(0, (width, height), (2, 2)).tolist()
        cv2.line(layer, ends[0], ends[1], pick_colour(rng).tolist(), int(rng.integers(1, 4)), cv2.LINE_AA)
    for _ in range(rng.integers(0, 45)):
        points = rng.uniform(-6, 6, (rng.integers(3, 6), 2)) * unit + rng.uniform(0, (width, height))
        points = cv2.convexHull(np.rint(points).astype(np.int32))
        cv2.fillPoly(layer, [points], pick_colour(rng).tolist(), cv2.LINE_AA)
    return cv2.addWeighted(canvas, 0.35, layer.astype(np.float32), 0.65, 0)


def finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Return what a plain camera would see of `canvas`: a little blur, another exposure, noise; (h, w, 3) uint8."""
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.9))
    canvas = canvas * rng.uniform(0.75, 1.1) + rng.uniform(-12, 18)
    canvas = canvas + rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(1, 7))
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def draw_scene(
    rng: np.random.Generator, width: int, height: int, objects: int | None = None, plain: bool = False
) -> Scene:
    """Draw one picture of `width` x `height` pixels; `plain`: on even grey, nothing in the way, no blur or noise."""
    if objects is None:
        objects = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    cutouts = arrange(rng, width, height, objects, strips=0 if plain else int(rng.integers(0, 4)))
    canvas = np.full((height, width, 3), 128, np.float32) if plain else draw_ground(rng, width, height)
    for cutout in cutouts:
        paint(canvas, cutout, rng)
    image = np.rint(canvas).astype(np.uint8) if plain else finish(rng, canvas)
    shares = visible_shares(cutouts, width, height)
    boxes = [box_of(c, width, height, float(s)) for c, s in zip(cutouts, shares, strict=True) if c.name]
    return Scene(image, boxes)


def draw_image(seed: int, index: int, size: int = SIZE) -> Scene:
    """Draw the picture number `index` of the set `seed`: always the same, whichever others are drawn."""
    rng = np.random.default_rng((seed, index))
    short = size * 6 // 7
    width, height = ((size, size), (size, short), (short, size))[rng.choice(3, p=(0.6, 0.2, 0.2))]
    return draw_scene(rng, width, height)


def draw_sample(seed: int, index: int) -> Scene:
    """Draw the sample picture number `index`, larger than those of any set and from random numbers of its own."""
    return draw_scene(np.random.default_rng((seed, index, 1)), *SAMPLE_SHAPES[index % len(SAMPLE_SHAPES)])


def contact_sheet(scenes: list[Scene], size: int, columns: int = 6) -> np.ndarray:
    """Return the pictures side by side in cells of `size` pixels, with boxes and names; `?` marks difficult ones."""
    rows = -(-len(scenes) // columns)
    sheet = np.full((rows * size, columns * size, 3), 255, np.uint8)
    for k, scene in enumerate(scenes):
        image = scene.image.copy()
        for box in scene.boxes:
            label = box.name + "?" * box.difficult
            cv2.rectangle(image, (box.x0, box.y0), (box.x1 - 1, box.y1 - 1), (0, 255, 255), 1)
            for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                at = (box.x0 + 2, max(box.y0 - 3, 10))
                cv2.putText(image, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness, cv2.LINE_AA)
        y, x = k // columns * size, k % columns * size
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


# ---------------------------------------------------------------------------------------------- files


def split_of(index: int) -> str:
    """Return `train`, `val` or `test` for a picture's number: of every ten, seven, one and two."""
    return "train" if index % 10 < 7 else "val" if index % 10 == 7 else "test"


def annotation(filename: str, scene: Scene) -> bytes:
    """Return the VOC xml of a scene; VOC counts pixels from 1 and includes the last one."""
    height, width, depth = scene.image.shape
    root = ET.Element("annotation")
    for tag, text in (("folder", "JPEGImages"), ("filename", filename), ("segmented", "0")):
        ET.SubElement(root, tag).text = text
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", depth)):
        ET.SubElement(size, tag).text = str(value)
    for box in scene.boxes:
        item = ET.SubElement(root, "object")
        flags = ("truncated", str(int(box.truncated))), ("difficult", str(int(box.difficult)))
        for tag, text in (("name", box.name), ("pose", "Unspecified"), *flags):
            ET.SubElement(item, tag).text = text
        corners = ET.SubElement(item, "bndbox")
        for tag, value in (("xmin", box.x0 + 1), ("ymin", box.y0 + 1), ("xmax", box.x1), ("ymax", box.y1)):
            ET.SubElement(corners, tag).text = str(value)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"


def jpeg(image: np.ndarray) -> bytes:
    """Return `image` (h, w, 3) uint8 BGR as the bytes of a JPEG file."""
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise UserError("OpenCV cannot write JPEG pictures: reinstall opencv-python")
    return data.tobytes()


def _is_drawn(out: Path, wanted: dict[str, int]) -> bool:
    """Whether `out` holds the wanted set; UserError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "shapes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{out} exists and is not a set of shapes: choose another --out or remove it") from None
    if found != wanted:
        raise UserError(f"{out} holds another set ({found}, wanted {wanted}): choose another --out or remove the folder")
    return True


def _draw_set(folder: Path, wanted: dict[str, int]) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    shown: list[Scene] = []
    for index in progress(range(wanted["images"]), desc="drawing shapes"):
        scene, stem = draw_image(wanted["seed"], index, wanted["size"]), f"{index:06d}"
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg(scene.image))
        (folder / "Annotations" / f"{stem}.xml").write_bytes(annotation(f"{stem}.jpg", scene))
        splits[split_of(index)].append(stem)
        if index < 24:
            shown.append(scene)
    for name, stems in splits.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
    (folder / "contact_sheet.jpg").write_bytes(jpeg(contact_sheet(shown, wanted["size"])))
    (folder / "shapes.json").write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def make_set(out: Path, images: int, size: int, seed: int) -> None:
    """Draw the VOC set into `out`, whole or not at all; leave it alone if it is there already.

    It is drawn beside `out` and renamed at the end. Raises UserError if `out` holds anything else.
    """
    wanted = {"version": VERSION, "seed": seed, "images": images, "size": size}
    if _is_drawn(out, wanted):
        LOGGER.info(f"{out} is already there")
        return
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")  # own name: two runs do not meet in it
    try:
        folder.mkdir(parents=True)
        _draw_set(folder, wanted)
        if out.exists():
            out.rmdir()  # an empty folder; not every system renames onto one
        os.replace(folder, out)
    except OSError as e:
        if not _is_drawn(out, wanted):  # otherwise another run was first, and drew the same
            raise UserError(f"cannot write the set {out}: {e.strerror}; choose another --out") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    LOGGER.info(f"{images} images of {len(CLASSES)} classes drawn into {out} (look at contact_sheet.jpg)")


def make_samples(out: Path, count: int, seed: int) -> None:
    """Draw `count` sample pictures `shapes1.jpg`, ... into `out`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            with atomic_write(out / f"shapes{index + 1}.jpg") as f:
                f.write(jpeg(draw_sample(seed, index).image))
    except OSError as e:
        raise UserError(f"cannot write samples into {out}: {e.strerror}; choose another --out") from e
    LOGGER.info(f"{count} sample pictures drawn into {out}")


def run(out: str | Path = "", images: int = IMAGES, size: int = SIZE, seed: int = 0, samples: int = 0) -> Path:
    """Draw the VOC set, or with `samples` that many single pictures, and return the folder they are in.

    Raises UserError for values out of range and for a folder that holds something else.
    """
    for name, value, low, high in (("images", images, 10, 999_999), ("size", size, 96, 1024), ("seed", seed, 0, 2**32)):
        if not low <= value <= high:
            raise UserError(f"--{name} {value}: must be from {low} to {high}")
    if samples < 0:
        raise UserError(f"--samples {samples}: must be 0 or more")
    folder = Path(out) if out else SAMPLES_OUT if samples else OUT
    if samples:
        make_samples(folder, samples, seed)
    else:
        make_set(folder, images, size, seed)
    return folder


def parse_opt(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="draw the embedded data set of shapes in VOC format")
    parser.add_argument("--out", default="", help=f"folder to write (default {OUT}, with --samples {SAMPLES_OUT})")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of images in the set")
    parser.add_argument("--size", type=int, default=SIZE, help="longer side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another set")
    parser.add_argument("--samples", type=int, default=0, help="draw this many larger pictures instead of the set")
    return parser.parse_args(argv)


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, parse_opt())
