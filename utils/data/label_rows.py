"""The rows of a label file: boxes, polygons, and boxes followed by the keypoints of face, plate or pose datasets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

LEAST_SIDE = 1e-6  # of a box, as a fraction of the image's side
HAIR = 1e-3  # a coordinate this little outside 0 to 1 is clipped
BORDER = 0.02  # a box with keypoints extends at most this far beyond the image
QUOTE = " in '"  # precedes the quoted text of a label file in an error message
KEYPOINTS, POLYGONS, CLIPPED = "keypoints", "polygons", "clipped"  # what `Rows.counts` counts


@dataclass
class Rows:
    """The rows of a label file.

    values: (n, 5) float32 class, cx, cy, w, h normalised, clipped to the image, without duplicates. counts: rows with
    keypoints, with polygons, and with clipped values. sure: of the long rows, by columns and kind, those whose numbers
    can only be of that kind. unsure: the others, with the likelier kind.
    """

    values: np.ndarray
    counts: Counter[str] = field(default_factory=Counter)
    sure: Counter[tuple[int, str]] = field(default_factory=Counter)
    unsure: Counter[tuple[int, str]] = field(default_factory=Counter)


def parse_labels(text: str, nc: int, keypoints: bool = False) -> np.ndarray:
    """Parse and check the content of a label file: rows of class, cx, cy, w, h normalised, or class and a polygon.

    keypoints: every row is a box with keypoints, as `kpt_shape` in a data yaml says. Without it, a long row whose
    further points lie inside the box of its first columns is taken for one. Returns (n, 5) float32, clipped to the
    image, without duplicate rows; a polygon becomes its bounding box. Raises ValueError with the line number.
    """
    return parse_rows(text, nc, keypoints).values


def parse_rows(text: str, nc: int, keypoints: bool = False, kinds: dict[int, str] | None = None) -> Rows:
    """`parse_labels`, with what is to be reported. kinds: the kind of unsure rows, by their number of columns."""
    rows: dict[tuple[float, ...], None] = {}
    parsed = Rows(np.zeros((0, 5), np.float32))
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            if "_" in line or not line.isascii():  # float() also accepts 1_0 and the digits of other alphabets
                raise ValueError
            values = [float(v) for v in fields]
        except ValueError:
            raise ValueError(f"line {number}: not a number{QUOTE}{line.strip()[:60]}'") from None
        values = _box(values, number, keypoints, kinds or {}, parsed)
        rows[_checked_row([values[0], *_clipped(values[1:], parsed)], nc, number)] = None
    parsed.values = np.array(list(rows), np.float32).reshape(-1, 5)
    return parsed


def _box(values: list[float], number: int, keypoints: bool, kinds: dict[int, str], parsed: Rows) -> list[float]:
    """The class and box of a row of any kind; what kind it is is counted in `parsed`."""
    columns = len(values)
    if columns == 5:
        return values
    if keypoints and columns > 5:
        parsed.counts[KEYPOINTS] += 1
        return values[:5]
    kind, sure = _kind(values) if columns > 6 else ("", False)
    if not kind:
        hint = "; is the last one a confidence? remove it" if columns == 6 else ""
        raise ValueError(f"line {number}: {columns} columns, 5 expected (class cx cy w h){hint}")
    if sure:
        parsed.sure[columns, kind] += 1
    else:
        parsed.unsure[columns, kind] += 1
        kind = kinds.get(columns, kind)
    parsed.counts[kind] += 1
    if kind == KEYPOINTS:
        return values[:5]
    corners = _clipped(values[1:], parsed)
    xs, ys = corners[0::2], corners[1::2]
    x1, x2, y1, y2 = min(xs), max(xs), min(ys), max(ys)
    return [values[0], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def _clipped(coordinates: list[float], parsed: Rows) -> list[float]:
    """The coordinates, those a hair outside the image moved to its border; others are left for `_checked_row`."""
    if all(0 <= v <= 1 for v in coordinates) or not all(-HAIR <= v <= 1 + HAIR for v in coordinates):
        return coordinates
    parsed.counts[CLIPPED] += 1
    return [min(max(v, 0.0), 1.0) for v in coordinates]


def _kind(values: list[float]) -> tuple[str, bool]:
    """Whether a row of more than six columns is a box with keypoints or a polygon, and whether that is sure.

    With keypoints, the box lies in the image and all points lie in the box, hidden ones aside: (-1, -1), (0, 0), or a
    visibility of 0. The points of a small polygon may do so too: then it counts whether (width, height) would be a
    point near the others, and what the other rows of the dataset are (`settled_kinds`).
    """
    columns = len(values)
    points, flagged = _points(values[5:])
    cx, cy, w, h = values[1:5]
    visible = [p for p in points if p not in ((-1.0, -1.0), (0.0, 0.0))]
    in_image = 0 < w <= 1 + HAIR and 0 < h <= 1 + HAIR and all(
        -BORDER <= centre - side / 2 and centre + side / 2 <= 1 + BORDER for centre, side in ((cx, w), (cy, h))
    )  # fmt: skip
    in_box = all(abs(x - cx) <= 0.55 * w + HAIR and abs(y - cy) <= 0.55 * h + HAIR for x, y in visible)
    if not points or not in_image or not in_box:
        return (POLYGONS, True) if columns % 2 else ("", False)
    if columns % 2 == 0 or len(visible) < len(points) or flagged and len(points) > 2:
        return KEYPOINTS, True  # polygons have an odd number of columns, no hidden points and no visibilities
    xs, ys = [cx, *(x for x, _ in visible)], [cy, *(y for _, y in visible)]
    reach = 2 * max(max(xs) - min(xs), max(ys) - min(ys))
    near = all(min(v) - reach <= side <= max(v) + reach for side, v in ((w, xs), (h, ys)))
    return (KEYPOINTS if flagged or not near else POLYGONS), False


def _points(values: list[float]) -> tuple[list[tuple[float, float]], bool]:
    """The points (x, y) after a box, and whether each has a visibility of 0, 1 or 2; none if the values are neither."""
    if len(values) % 3 == 0 and all(v in (0.0, 1.0, 2.0) for v in values[2::3]):
        triples = zip(values[0::3], values[1::3], values[2::3], strict=True)
        return [(x, y) if v else (0.0, 0.0) for x, y, v in triples], True
    return (list(zip(values[0::2], values[1::2], strict=True)) if len(values) % 2 == 0 else []), False


def _checked_row(values: list[float], nc: int, number: int) -> tuple[float, ...]:
    cls, cx, cy, w, h = values
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"line {number}: a value is not finite")
    if cls != int(cls) or not 0 <= cls < nc:
        raise ValueError(f"line {number}: class {cls:g} is not one of 0 to {nc - 1}")
    if not (0 <= cx <= 1 and 0 <= cy <= 1 and 0 < w <= 1 and 0 < h <= 1):
        raise ValueError(f"line {number}: coordinates must be fractions of the image, from 0 to 1, and w, h above 0")
    x1, x2 = max(cx - w / 2, 0.0), min(cx + w / 2, 1.0)
    y1, y2 = max(cy - h / 2, 0.0), min(cy + h / 2, 1.0)
    if min(x2 - x1, y2 - y1) < LEAST_SIDE:
        raise ValueError(f"line {number}: a box without area: {w:g} x {h:g} of the image")
    return (cls, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)


def total(counts: Iterable[Counter]) -> Counter:
    """Return the sum of many counters, most of them empty."""
    summed: Counter = Counter()
    for count in filter(None, counts):
        summed.update(count)
    return summed


def settled_kinds(files: list[Rows]) -> dict[int, str]:
    """Decide what the unsure rows of a dataset are, by their number of columns.

    They are as the sure rows, if those are of one kind. Without sure rows, they are keypoints only if four of five
    look like it; otherwise polygons.
    """
    sure, unsure = total(rows.sure for rows in files), total(rows.unsure for rows in files)
    settled = {}
    for columns in {columns for columns, _ in unsure}:
        kinds = {kind for n, kind in sure if n == columns}
        likely = unsure[columns, KEYPOINTS] >= 0.8 * (unsure[columns, KEYPOINTS] + unsure[columns, POLYGONS])
        settled[columns] = kinds.pop() if len(kinds) == 1 else KEYPOINTS if likely and not kinds else POLYGONS
    return settled
