"""Rows of label files: boxes, polygons, oriented boxes, and boxes with keypoints, told apart."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.data.label_rows import CLIPPED, KEYPOINTS, POLYGONS, Rows, parse_labels, parse_rows, settled_kinds
from utils.data.labels import load_labels
from utils.errors import UserError

FACE = "0 0.50 0.30 0.04 0.07 0.49 0.29 0.51 0.29 0.505 0.30 0.495 0.31 0.51 0.31"  # yolov5-face: five points
HIDDEN_FACE = "0 0.50 0.30 0.04 0.07" + " -1" * 10
HALF_HIDDEN_FACE = "0 0.50 0.30 0.04 0.07 0.49 0.29 -1 -1 0.505 0.30 -1 -1 0.51 0.31"
PLATE = "0 0.50 0.60 0.20 0.08 0.41 0.57 0.59 0.57 0.59 0.63 0.41 0.63"  # four corners
POSE = "0 0.64 0.55 0.10 0.06 0.60 0.52 1 0.65 0.53 1 0.68 0.55 1 0.69 0.57 1"  # x, y, visibility
POSE_17 = "0 .5 .5 .4 .8" + " .5 .5 2 0 0 0" * 8 + " .45 .3 1"  # COCO's 17 points, an even number of columns
LARGE_POSE = "0 0.40 0.48 0.39 0.96 0.34 0.04 1 0.32 0.68 1"
ONE_POINT = "0 0.5 0.5 0.2 0.2 0.52 0.51"
POLYGON = "1 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3"
SMALL_POLYGON = "1 .6 .6 .65 .58 .68 .65 .62 .7 .58 .65"  # its points lie in a box of centre (.6, .6), size (.65, .58)
ORIENTED = "1 .3 .3 .4 .35 .35 .45 .25 .4"
CLOSE_FACE = "0 0.5 0.5 0.5 0.6 0.35 0.3 0.65 0.3 0.5 0.5 0.4 0.7 0.6 0.7"  # the size could be a point of a polygon


@pytest.mark.parametrize(
    ("row", "box", "kind"),
    [
        (FACE, (0, 0.5, 0.3, 0.04, 0.07), KEYPOINTS),
        (HIDDEN_FACE, (0, 0.5, 0.3, 0.04, 0.07), KEYPOINTS),
        (HALF_HIDDEN_FACE, (0, 0.5, 0.3, 0.04, 0.07), KEYPOINTS),
        (PLATE, (0, 0.5, 0.6, 0.2, 0.08), KEYPOINTS),
        (POSE, (0, 0.64, 0.55, 0.1, 0.06), KEYPOINTS),
        (POSE_17, (0, 0.5, 0.5, 0.4, 0.8), KEYPOINTS),
        (LARGE_POSE, (0, 0.4, 0.48, 0.39, 0.96), KEYPOINTS),
        (ONE_POINT, (0, 0.5, 0.5, 0.2, 0.2), KEYPOINTS),
        (POLYGON, (1, 0.3, 0.2, 0.4, 0.2), POLYGONS),
        (SMALL_POLYGON, (1, 0.63, 0.64, 0.1, 0.12), POLYGONS),
        (ORIENTED, (1, 0.325, 0.375, 0.15, 0.15), POLYGONS),
    ],
)
def test_long_rows(row: str, box: tuple, kind: str) -> None:
    rows = parse_rows(row, 2)
    np.testing.assert_allclose(rows.values, [box], atol=1e-6)
    assert rows.counts == {kind: 1}


@pytest.mark.parametrize("row", [FACE, HIDDEN_FACE, PLATE, POSE, LARGE_POSE, CLOSE_FACE, "0 .5 .5 .2 .2 .5"])
def test_with_kpt_shape_the_box_is_in_the_first_columns(row: str) -> None:
    np.testing.assert_allclose(parse_labels(row, 1, keypoints=True), [[float(v) for v in row.split()[:5]]], atol=1e-6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 .5 .5 .2 .2 .9", "line 1: 6 columns, 5 expected .*a confidence"),
        ("0 .5 .5 .2 .2 .9 .9 .9", "line 1: 8 columns"),
        ("0 .5 .5 .2 .2 .9 .9 3", "line 1: 8 columns"),  # no visibility
        ("0 .5 .5 .2 .2 .9 .9 1", "line 1: 8 columns"),  # a point outside the box
        ("0 -1 -1 .2 .2 -1 -1", "line 1: coordinates"),
        ("7 .5 .5 .2 .2 .5 .5", "line 1: class 7"),
    ],
)
def test_what_is_no_row_of_any_kind(row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_labels(row, 2)


@pytest.mark.parametrize(
    ("row", "box"),
    [
        ("0 0.5 0.5 1.0005 0.2", (0, 0.5, 0.5, 1, 0.2)),
        ("0 0.5 0.5 1.001 1.0009", (0, 0.5, 0.5, 1, 1)),
        ("0 -0.0005 0.5 0.2 0.2", (0, 0.05, 0.5, 0.1, 0.2)),
        ("0 0.1 0.1 1.0001 0.1 1.0001 0.3 0.1 0.3", (0, 0.55, 0.2, 0.9, 0.2)),
    ],
)
def test_a_hair_outside_is_clipped_and_counted(row: str, box: tuple) -> None:
    rows = parse_rows(row, 1)
    np.testing.assert_allclose(rows.values, [box], atol=1e-4)
    assert rows.counts[CLIPPED] == 1


@pytest.mark.parametrize("row", ["0 0.5 0.5 1.002 0.2", "0 -0.002 0.5 0.2 0.2", "0 1.5 0.5 0.2 0.2"])
def test_more_than_a_hair_is_refused(row: str) -> None:
    with pytest.raises(ValueError, match="coordinates must be fractions"):
        parse_labels(row, 1)


def test_unsure_rows_are_what_the_sure_ones_of_their_length_are() -> None:
    unsure, face, polygon = parse_rows(CLOSE_FACE, 1), parse_rows(FACE, 1), parse_rows(POLYGON, 2)
    assert unsure.unsure == {(15, POLYGONS): 1} and unsure.counts == {POLYGONS: 1}
    assert settled_kinds([unsure, parse_rows(HALF_HIDDEN_FACE, 1), polygon]) == {15: KEYPOINTS}
    assert settled_kinds([unsure, *[face] * 4]) == {15: KEYPOINTS} and settled_kinds([unsure, face]) == {15: POLYGONS}
    assert settled_kinds([unsure, polygon]) == {15: POLYGONS}
    both = Rows(np.zeros((0, 5)), sure=parse_rows(HIDDEN_FACE, 1).sure + type(face.sure)({(15, POLYGONS): 3}))
    assert settled_kinds([unsure, both]) == {15: POLYGONS}


def write_set(folder: Path, rows: list[str]) -> Path:
    """A dataset of one grey image for each label file."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for k, row in enumerate(rows):
        cv2.imwrite(str(folder / f"images/{k}.png"), np.full((40, 60, 3), 90, np.uint8))
        (folder / f"labels/{k}.txt").write_text(row)
    return folder / "images"


def test_a_face_dataset_is_read_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [FACE, HIDDEN_FACE, CLOSE_FACE, HALF_HIDDEN_FACE]
    for _ in range(2):  # scanned, then from the cache
        caplog.clear()
        index = load_labels((write_set(tmp_path, rows) if not caplog.records else tmp_path / "images",), 1)
        expected = [[float(v) for v in row.split()[:5]] for row in rows]
        np.testing.assert_allclose(index.values, expected, atol=1e-6)
        assert [r.getMessage() for r in caplog.records if "keypoints" in r.getMessage()] == [
            "4 rows are a box with keypoints: only the box is used"
        ]


def test_a_polygon_dataset_stays_one(tmp_path: Path) -> None:
    index = load_labels((write_set(tmp_path, [POLYGON, SMALL_POLYGON, ORIENTED]),), 2)
    np.testing.assert_allclose(index.values[:, 1:3], [[0.3, 0.2], [0.63, 0.64], [0.325, 0.375]], atol=1e-6)
    assert index.notes == ()


@pytest.mark.parametrize(
    "corners",
    [[(-1, -1), (1, -1), (0, 1)], [(0, -1), (1, 1), (-1, 1)], [(0, -1), (1, 0), (0, 1), (-1, 0)],
     [(-1, -1), (1, -1), (1, 1), (-1, 1)], [(0, -1), (1, -0.3), (0.6, 1), (-0.6, 1), (-1, -0.3)]],
    ids=["triangle", "upright triangle", "diamond", "square", "pentagon"],
)  # fmt: skip
@pytest.mark.parametrize("start", range(3))
def test_a_dataset_of_small_polygons_is_none_of_keypoints(corners: list, start: int, tmp_path: Path) -> None:
    rng, rows, boxes = np.random.default_rng(0), [], []
    for _ in range(30):
        (cx, cy), side = rng.uniform(0.4, 0.7, 2), rng.uniform(0.03, 0.09)
        points = np.array(corners[start:] + corners[:start]) * side + (cx, cy)
        rows.append("0 " + " ".join(f"{v:.6f}" for v in points.flatten()))
        low, high = points.min(0), points.max(0)
        boxes.append([*(low + high) / 2, *(high - low)])
    index = load_labels((write_set(tmp_path, rows),), 1)
    order = sorted(range(30), key=str)  # images are sorted by name
    np.testing.assert_allclose(index.values[:, 1:], np.array(boxes)[order], atol=1e-5)
    assert index.notes == ()


def test_a_polygon_at_the_border_has_no_visibilities() -> None:
    row = "0 .8 .9 .85 .8 .95 .8 1 .9 .95 1"
    np.testing.assert_allclose(parse_labels(row, 1), [[0, 0.9, 0.9, 0.2, 0.2]], atol=1e-6)


def test_refused_rows_still_name_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable image"):
        load_labels((write_set(tmp_path, [f"{FACE}\n0 .5 .5 .2 .2 .9 .9 .9"]),), 1)
    problems = load_labels((write_set(tmp_path, [f"{FACE}\n0 .5 .5 .2 .2 .9 .9 .9", FACE]),), 1).problems
    assert len(problems) == 1 and "0.txt: line 2: 8 columns" in problems[0]
