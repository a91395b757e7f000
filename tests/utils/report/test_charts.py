"""The charts of a comparison: which there are, what stands in them, and that several SVGs stand in one page."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from comparisons import comparison, entry

from utils.draw.place_labels import place_labels
from utils.report.charts import DARK, LIGHT, MARKERS, SERIES, Chart, charts, png, svg
from utils.report.comparison import Comparison

NASTY = ("<b>&\"'", "_hidden $x^2$", "轻量检测器", "n" * 300)
COSTS = ["map_by_size_mib", "map_by_gflops", "map_by_ms_1"]
CURVES = ["map_by_epoch", "map_by_time", "loss_by_epoch"]


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Chart, str]]:
    """The charts of four models with names that are hard to write."""
    return {chart.name: (chart, svg(chart)) for chart in charts(comparison(NASTY))}


def texts(source: str) -> list[str]:
    return ["".join(t.itertext()) for t in ElementTree.fromstring(source).iter("text")]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (comparison(), [*COSTS, "precision_recall", *CURVES, "map_by_class"]),
        (comparison(("one",)), ["precision_recall", *CURVES, "map_by_class"]),  # one point is no comparison
        (comparison(batches=()), [*COSTS[:2], "precision_recall", *CURVES, "map_by_class"]),
        (comparison(trained=False), [*COSTS, "precision_recall", "map_by_class"]),
        (comparison(scored=False), CURVES),
        (comparison(scored=False, trained=False), []),
        (Comparison("", [entry("a", 0), entry("b", 1, scored=False), entry("c", 2)], {}), None),
    ],
)
def test_charts_without_figures_are_left_out(made: Comparison, expected: list[str] | None) -> None:
    named = [chart.name for chart in charts(made)]
    assert named == expected if expected is not None else len(named) == 8


def test_a_run_of_one_epoch_has_no_curve() -> None:
    made = comparison()
    for one in made.entries:
        object.__setattr__(one.training, "curves", {k: v[:1] for k, v in one.training.curves.items()})
    assert not {chart.name for chart in charts(made)} & set(CURVES)


def test_time_is_counted_from_the_start_of_the_training(drawn: dict) -> None:
    assert "after 105 min" in drawn["map_by_time"][0].text  # 6300 s


def test_ids_differ_and_references_lead_somewhere(drawn: dict) -> None:
    page = "".join(source for _, source in drawn.values())
    ids = re.findall(r'\bid="([^"]+)"', page)
    used = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert len(ids) == len(set(ids)) and used and set(used) <= set(ids)


def test_nothing_of_an_svg_rules_the_page_or_asks_for_another(drawn: dict) -> None:
    for _, source in drawn.values():
        assert not re.search(r"<style|<script|<metadata|<image|https?:|xmlns|@import", source)


def test_colours_are_the_pages(drawn: dict) -> None:
    for name, (_, source) in drawn.items():
        assert not re.search(r"#[0-9a-fA-F]{6}\b", source), name
        assert "var(--ink)" in source and all(f"var(--s{k})" in source for k in range(len(NASTY)))
        assert "font-family" not in source and not re.search(r"\bfont:", source)


def test_labels_stand_in_the_charts_as_they_are(drawn: dict) -> None:
    for name, (_, source) in drawn.items():
        shown = texts(source)
        for label in NASTY[:3]:
            assert label in shown, name
        assert any(t.startswith("nnn") and "..." in t and len(t) < 40 for t in shown), name


def test_a_chart_comes_out_the_same_twice(drawn: dict) -> None:
    chart = charts(comparison(NASTY))[3]
    assert svg(chart) == drawn[chart.name][1]


def test_png_is_on_white_and_legible() -> None:
    picture = cv2.imdecode(np.frombuffer(png(charts(comparison())[0]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert (picture[0, 0][:3] == 255).all() and picture.shape[1] > 700 and (picture[..., :3] < 100).any()


def test_each_is_told_to_those_who_do_not_see_it(drawn: dict) -> None:
    made = comparison(NASTY)
    for chart, source in drawn.values():
        root = ElementTree.fromstring(source)
        assert root.get("role") == "img" and root.get("aria-label") == chart.text and chart.title
    best = made.entries[3].results.summary[3]
    assert f"{best:.3f} at 4" in drawn["map_by_size_mib"][0].text


def test_the_front_is_filled_and_the_others_hollow() -> None:
    made = comparison(("cheap and good", "dear and bad", "dear and best"))
    for one, mean in zip(made.entries, (0.5, 0.4, 0.6), strict=True):
        one.results.ap[:] = mean
    source = svg(charts(made)[0])
    hollow = re.findall(r"fill: var\(--paper\); stroke: var\(--s(\d)\)", source)
    filled = re.findall(r"fill: var\(--s\d\); stroke: var\(--s(\d)\)", source)
    assert set(hollow) == {"1"} and {"0", "2"} <= set(filled)


@pytest.mark.parametrize(("sizes", "logarithmic"), [((1, 19), False), ((1, 21), True)])
def test_wide_ranges_are_logarithmic(sizes: tuple[int, int], logarithmic: bool) -> None:
    made = comparison()
    for one, size in zip(made.entries, sizes, strict=True):
        one.gflops = float(size)
    chart = next(c for c in charts(made) if c.name == "map_by_gflops")
    assert ({"1", "2", "5", "10", "20"} <= set(texts(svg(chart)))) == logarithmic


def test_classes_are_in_the_order_of_the_data() -> None:
    made = comparison()
    made.names = {2: "pottedplant", 0: "cat", 1: "dog"}
    shown = texts(svg(charts(made)[-1]))
    assert [t for t in shown if t in made.names.values()] == ["pottedplant", "cat", "dog"]


def test_colour_and_marker_together_are_no_two_models() -> None:
    assert len({(k % SERIES, k % len(MARKERS)) for k in range(3 * SERIES)}) == 3 * SERIES
    assert len(LIGHT.series) == len(DARK.series) == SERIES


@pytest.mark.parametrize("style", [LIGHT, DARK])
def test_colours_stand_out_from_the_ground(style) -> None:
    def luminance(colour: str) -> float:
        c = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))

    for colours, least in ((style.series, 2.8), ((style.ink, style.soft), 4.5)):
        for colour in colours:
            low, high = sorted((luminance(colour), luminance(style.paper)))
            assert (high + 0.05) / (low + 0.05) >= least, colour


@pytest.mark.parametrize("points", [
    [(100, 100)], [(100, 100), (104, 102), (98, 97)], [(20, 20), (280, 20), (20, 180), (280, 180)],
    [(150 + 25 * k, 100 + 3 * k) for k in range(6)],
])  # fmt: skip
def test_labels_cover_neither_points_nor_one_another(points: list) -> None:
    frame = np.array([0, 0, 300, 200.0])
    points = np.array(points, float)
    sizes = np.tile((60.0, 10.0), (len(points), 1))
    corners = place_labels(points, sizes, frame, np.zeros((0, 4)))
    boxes = np.concatenate((corners, corners + sizes), 1)
    for a, b in itertools.combinations(boxes, 2):
        assert (a[2:] <= b[:2]).any() or (b[2:] <= a[:2]).any()
    for x, y in points:
        assert not ((boxes[:, 0] < x) & (x < boxes[:, 2]) & (boxes[:, 1] < y) & (y < boxes[:, 3])).any()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (300, 200)).all()
