"""What is drawn of one image: hits, false detections and missed objects, told by colour, line and the counts below."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from utils.draw.boxes import Annotator, color_of
from utils.report import pictures as compare_pictures
from utils.report.pictures import FALSE, HIT, MISSED, draw_verdict, encode, judge

NAMES = {0: "cat", 1: "dog"}
A, NEAR_A, HALF_A, B = (20, 30, 120, 130), (22, 30, 122, 130), (20, 30, 120, 70), (180, 60, 280, 200)


def found(*rows: tuple) -> np.ndarray:
    return np.array([[*box, confidence, cls] for box, confidence, cls in rows], np.float32).reshape(-1, 6)


def labels(*rows: tuple) -> np.ndarray:
    return np.array([[cls, *box] for box, cls in rows], np.float32).reshape(-1, 5)


def near(picture: np.ndarray, box: tuple, colour: tuple) -> float:
    """The share of a box's lower half of the left edge that has about this colour."""
    x, top, bottom = box[0], (box[1] + box[3]) // 2, box[3]
    strip = picture[top:bottom, x - 1 : x + 2].astype(int)
    return float((np.abs(strip - colour).sum(2).min(1) < 60).mean())


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is written on the picture."""
    written: list[str] = []
    text = Annotator.text

    def note(self: Annotator, corner: tuple, label: str, *args: object) -> None:
        written.append(label)
        text(self, corner, label, *args)

    monkeypatch.setattr(Annotator, "text", note)
    return written


@pytest.mark.parametrize(
    ("detections", "true", "hit", "missed"),
    [
        (found((A, 0.9, 0)), labels((A, 0)), [True], [False]),
        (found((A, 0.9, 1)), labels((A, 0)), [False], [True]),
        (found((HALF_A, 0.9, 0)), labels((A, 0)), [False], [True]),
        (found((A, 0.9, 0), (NEAR_A, 0.8, 0)), labels((A, 0)), [True, False], [False]),
        (found((B, 0.9, 1), (A, 0.8, 0)), labels((A, 0), (B, 1)), [True, True], [False, False]),
        (found((B, 0.9, 1)), labels((A, 0), (B, 1)), [True], [True, False]),
        (found(), labels((A, 0)), [], [True]),
        (found((A, 0.9, 0)), labels(), [False], []),
    ],
)
def test_each_detection_and_each_label_counts_once(detections, true, hit: list, missed: list) -> None:
    verdict = judge(detections, true)
    assert (verdict.hit.tolist(), verdict.missed.tolist()) == (hit, missed)


def test_of_equal_labels_as_many_are_missed_as_nothing_hit() -> None:
    verdict = judge(found(*[(A, 0.9, 0)] * 12), labels(*[(A, 0)] * 12))
    assert verdict.hit.sum() + verdict.missed.sum() == 12 and verdict.hit[0]


@pytest.mark.parametrize(
    ("detections", "true", "counts", "colour", "label"),
    [
        (found((A, 0.9, 0)), labels((A, 0)), "1 hit, 0 false, 0 missed", HIT, "cat 0.90"),
        (found((A, 0.9, 1)), labels(), "0 hits, 1 false, 0 missed", FALSE, "false: dog 0.90"),
        (found(), labels((A, 0)), "0 hits, 0 false, 1 missed", MISSED, "missed: cat"),
        (found((A, 0.24, 0)), labels((A, 0)), "0 hits, 0 false, 1 missed", MISSED, "missed: cat"),
        (found((A, 0.9, 0)), None, "1 object", color_of(0), "cat 0.90"),
        (found((A, 0.9, 1), (B, 0.25, 7)), None, "2 objects", color_of(1), "dog 0.90"),
        (found(), None, "0 objects", None, None),
    ],
)
def test_colour_text_and_counts(detections, true, counts: str, colour, label, texts: list[str]) -> None:
    picture = draw_verdict(np.full((240, 320, 3), 128, np.uint8), detections, true, NAMES, 0.25, "model")
    assert texts[-2:] == ["model", counts]
    if colour:
        assert label in texts and near(picture, A, colour) > 0.3
        assert not any(near(picture, A, other) > 0.3 for other in {HIT, FALSE, MISSED} - {colour})


def test_only_what_is_missed_is_dashed() -> None:
    grey = np.full((240, 320, 3), 128, np.uint8)
    missed = draw_verdict(grey, found(), labels((A, 0)), NAMES, 0.25, "")
    hit = draw_verdict(grey, found((A, 0.9, 0)), labels((A, 0)), NAMES, 0.25, "")
    assert near(missed, A, MISSED) < 0.9 and near(hit, A, HIT) > 0.95


@pytest.mark.parametrize(("size", "drawn"), [((1280, 1920), (427, 640)), ((96, 128), (240, 320)),
                                            ((400, 300), (400, 300)), ((2000, 20), (640, 6))])  # fmt: skip
def test_pictures_have_one_size_whatever_is_on_them(size: tuple, drawn: tuple) -> None:
    image = np.zeros((*size, 3), np.uint8)
    before = image.copy()
    plain = draw_verdict(image, found(), None, NAMES, 0.25, "a")
    full = draw_verdict(image, found((A, 0.9, 0)), labels((B, 1)), NAMES, 0.25, "轻量 " + "very_long_name" * 40)
    assert plain.shape == full.shape and plain.dtype == np.uint8
    assert plain.shape[1] == drawn[1] and drawn[0] + 30 < plain.shape[0] < drawn[0] + 80
    assert (image == before).all()


def test_boxes_go_with_the_scaled_image() -> None:
    big = tuple(4 * v for v in A)
    grey = np.full((960, 1280, 3), 128, np.uint8)
    picture = draw_verdict(grey, found((big, 0.9, 0)), labels((big, 0)), NAMES, 0.25, "")
    assert near(picture, tuple(2 * v for v in A), HIT) > 0.9


@pytest.mark.parametrize("title", ["yolov5n", "轻量检测器", "a" * 500, "tab\tand\x01", ""])
def test_the_title_stands_over_the_counts(title: str) -> None:
    strip = draw_verdict(np.zeros((240, 320, 3), np.uint8), found(), labels(), NAMES, 0.25, title)[240:]
    bright = (strip > 150).all(2)
    half = len(strip) // 2 + 2
    assert bright[half:].any() and bright[:half].any() == bool(title)
    assert not bright[:, -2:].any()  # nothing runs out of the picture


def test_encoded_it_is_a_jpeg_of_the_same_picture() -> None:
    picture = draw_verdict(np.full((240, 320, 3), 128, np.uint8), found((A, 0.9, 0)), None, NAMES, 0.25, "m")
    content = encode(picture)
    back = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert content[:2] == b"\xff\xd8" and np.abs(back.astype(int) - picture).mean() < 4


def test_the_legend_names_what_is_drawn() -> None:
    for word in ("green", "red", "dashed yellow", "false", "missed", "0.5"):
        assert word in compare_pictures.LEGEND
