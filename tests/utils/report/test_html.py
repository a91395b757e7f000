"""The report of a comparison: one page that asks for nothing, the same in Markdown and csv, written whole."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from comparisons import comparison, entry, published

from utils.errors import UserError
from utils.evaluation.bootstrap import Interval
from utils.report import html as report
from utils.report.comparison import Comparison, Difference
from utils.report.content import elide, pairs_sentence, short_labels, signed, table_rows, tile_entries
from utils.report.html import page, write_report
from utils.report.markdown import markdown, table_csv

NASTY = ("<b>&\"'|`*x*", "轻量检测器", "n" * 300)
VOID = {"meta", "link", "img", "br", "wbr"}


class Page(HTMLParser):
    """What is in a page: tags with their attributes, and the text of each table's cells, row by row."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open or "script" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def headings(self) -> list[str | None]:
        return [a["id"] for a in self.all("h2") if a.get("id")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of everything, of models with names that are hard to write."""
    made = comparison(NASTY, pictures=2)
    made.title, made.command = "<i>title</i>", "python x.py --name '<b>' ```"
    made.notes, made.facts = ["epochs <differ>"], [("device", "GPU & more"), ("accuracy", "protocol\nyolov5")]
    made.references = [published(map50=0.5, size_mib="about 2", gflops=None)]
    path = tmp_path_factory.mktemp("runs") / "new" / "x"
    assert write_report(made, path) == path / "report.html"
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_asks_for_no_other_file(whole: Page, folder: Path) -> None:
    for _, attributes in whole.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
    assert not re.search(r"@import|url\((?!#)", (folder / "report.html").read_text(encoding="utf-8"))
    (policy,) = [a["content"] for a in whole.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert {"viewport", "color-scheme"} <= {a.get("name") for a in whole.all("meta")}


def test_pictures_are_in_the_page_and_told(whole: Page) -> None:
    images = whole.all("img")
    assert len(images) == 6
    for image in images:
        content = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"), validate=True)
        assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3)
        assert (image["width"], image["height"]) == ("64", "48")
    assert [i["alt"] for i in images[:3]] == [f"{label}: 0.jpg" for label in NASTY]


def test_ids_differ_and_links_lead_somewhere(whole: Page) -> None:
    ids = [a["id"] for _, a in whole.tags if a.get("id")]
    links = {a["href"][1:] for _, a in whole.tags if (a.get("href") or "").startswith("#")}
    assert len(ids) == len(set(ids)) and links <= set(ids) and "note-1" in links
    assert {a["aria-labelledby"] for a in whole.all("section")} <= set(ids)


def test_parts_come_in_order(whole: Page) -> None:
    assert whole.headings == ["table", "pairs", "charts", "pictures", "conditions"]
    assert [tag for tag, _ in whole.tags].index("aside") < [tag for tag, _ in whole.tags].index("table")
    assert len(whole.all("svg")) == 8


def test_what_comes_from_outside_is_text(whole: Page) -> None:
    assert {a.get("class") for a in whole.all("i")} == {"dot"}  # that is, none of a title or label
    for text in (*NASTY, "<i>title</i>", "epochs <differ>", "GPU & more", "python x.py --name '<b>' ```"):
        assert text in whole.text.replace("\n", " ")


def test_tables_have_heads_and_captions(whole: Page) -> None:
    assert len(whole.all("caption")) == len(whole.all("thead")) == len(whole.tables) == 2
    assert all(a.get("scope") in ("col", "row") for a in whole.all("th"))


def test_cells_of_the_table(whole: Page) -> None:
    heads, *rows = whole.tables[0]
    values = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert list(values) == [*NASTY, "article1as published"]
    first, last = values[NASTY[0]], values["article1as published"]
    assert (first["parameters"], first["file, MiB"], first["strides"], first["batch 1, ms"]) == (
        "1,000", "1.00", "8/16/32", "12.0")  # fmt: skip
    assert first["epochs"] == "4" and first["training"] == "2.0 h"
    assert re.fullmatch(r"0\.\d{3}\[-?0\.\d{3}, 0\.\d{3}\]", first["mAP50-95"])
    assert (last["mAP50"], last["file, MiB"], last["GFLOPs"], last["P"]) == ("0.500", "about 2", "-", "-")
    assert "AP small" not in heads  # not worked out here


@pytest.mark.parametrize(
    ("key", "values", "best"),
    [
        ("gflops", (2.0, 3.0, 1.0), [2]),
        ("gflops", (1.001, 3.0, 1.002), [0, 2]),  # they look the same
        ("gflops", (1.0, 1.0, 1.0), []),
        ("imgsz", (320, 640, 416), []),
    ],
)
def test_best_of_a_column(key: str, values: tuple, best: list[int]) -> None:
    made = comparison(("a", "b", "c"), scored=False)
    for one, value in zip(made.entries, values, strict=True):
        setattr(one, key, value)
    column = [c.key for c in report.shown_columns(made)].index(key)
    assert [k for k, row in enumerate(table_rows(made)) if row.cells[column].best] == best


def test_more_accuracy_and_less_time_are_better() -> None:
    made = comparison(("a", "b"))
    made.entries[1].results = made.entries[0].results
    made.entries[0].results = entry("x", 3).results
    made.references = [published(map=0.999, ms_1=0.1)]  # what is published takes no part
    columns = [c.key for c in report.shown_columns(made)]
    rows = table_rows(made)
    for key in ("map", "ms_1", "size_mib"):
        assert [row.cells[columns.index(key)].best for row in rows] == [True, False, False], key


def test_pairs_are_row_minus_column_both_ways(whole: Page) -> None:
    heads, *rows = whole.tables[1]
    assert [row[0] for row in rows] == list(NASTY) and heads[1:] == [elide(label, 60) for label in NASTY]
    assert rows[0][2] == "−0.100[−0.150, −0.050]mAP50 +0.013[−0.020, +0.030]"
    assert rows[1][1] == "+0.100[+0.050, +0.150]mAP50 −0.013[−0.030, +0.020]"
    verdicts = [a["class"] for a in whole.all("div") if a.get("class") in ("better", "worse", "undecided")]
    assert sorted(verdicts) == ["better"] * 3 + ["undecided"] * 6 + ["worse"] * 3
    assert [rows[k][k + 1] for k in range(3)] == ["·"] * 3


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-0.2, -0.1, "1 of 1 pair is decided"), (-0.1, 0.1, "0 of 1 pair are decided")]
)
def test_how_many_pairs_are_decided(low: float, high: float, expected: str) -> None:
    made = Comparison("", [entry("a"), entry("b")], {}, [Difference(0, 1, "mAP50-95", Interval(0.0, low, high))])
    assert expected in pairs_sentence(made) and "randomness of training" in pairs_sentence(made)


@pytest.mark.parametrize(
    ("made", "headings", "gone"),
    [
        (comparison(("one",), pictures=0), ["table"], "Bold"),
        (comparison(scored=False), ["table"], "mAP50"),
        (comparison(trained=False), ["table", "pairs", "pictures"], "epochs"),
        (comparison(batches=(1,)), ["table", "pairs", "pictures"], "batch 32"),
        (comparison(batches=()), ["table", "pairs", "pictures"], "Latency"),
    ],
)
def test_parts_with_nothing_to_show_are_left_out(made: Comparison, headings: list[str], gone: str) -> None:
    shown = Page(page(made, []))
    assert shown.headings == headings
    assert gone not in shown.text and gone not in markdown(made, [])
    assert "aside" not in {tag for tag, _ in shown.tags} and "{" not in shown.text


def test_an_interval_that_was_not_drawn_is_not_shown() -> None:
    made = comparison()
    nan = float("nan")
    for one in made.entries:
        one.map = one.map50 = Interval(0.5, nan, nan)
    made.differences = [Difference(0, 1, "mAP50-95", Interval(0.01, nan, nan))]
    shown = Page(page(made, []))
    assert "nan" not in shown.text + markdown(made, []) + table_csv(made)
    assert shown.tables[1][1][2] == "+0.010 undecided"


def test_a_model_that_was_not_evaluated_is_in_the_table_alone() -> None:
    made = comparison(("a", "b", "c"), pictures=1)
    made.entries[1] = entry("b", 1, scored=False)
    made.differences = [d for d in made.differences if 1 not in (d.first, d.second)]
    made.pictures[0] = type(made.pictures[0])("x", made.pictures[0].tiles[:2])
    assert tile_entries(made, made.pictures[0]) == [0, 2]
    shown = Page(page(made, []))
    assert [row[0] for row in shown.tables[0]] == ["model", "a", "b", "c"] and shown.tables[1][0][1:] == ["a", "c"]
    assert [i["alt"] for i in shown.all("img")] == ["a: x", "c: x"]


def test_markdown_links_to_files_that_are_there(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) == len(set(links)) == 8 + 6
    for link in links:
        assert cv2.imdecode(np.fromfile(folder / link, np.uint8), cv2.IMREAD_COLOR) is not None
    there = {str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file()}
    assert there == {*links, "report.html", "report.md", "table.csv"}


def test_markdown_says_the_same(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "\\<b\\>\\&\"'\\|\\`\\*x\\*" in text and "epochs \\<differ\\>" in text and "轻量检测器" in text
    assert "**−0.100** [−0.150, −0.050]" in text and "+0.013 [−0.020, +0.030] undecided" in text
    assert "````sh\npython x.py --name '<b>' ```\n````" in text
    for lines in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}
        assert len(widths) == 1
    assert "yolov5_stem is \\_x\\_" in markdown(Comparison("yolov5_stem is _x_", [], {}), [])


def test_csv_reads_back_to_the_values(folder: Path) -> None:
    with open(folder / "table.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    made = comparison(NASTY)
    assert [r["model"] for r in rows] == [*NASTY, "article"]
    assert [r["kind"] for r in rows] == ["measured"] * 3 + ["published"]
    for row, one in zip(rows, made.entries, strict=False):
        expected = [*one.results.summary, one.map50.low, one.map50.high, one.map.low, one.map.high]
        keys = "precision recall map50 map map50_low map50_high map_low map_high".split()
        assert [float(row[k]) for k in keys] == pytest.approx(expected, abs=0)
        assert row["strides"] == "8/16/32" and row["ap_small"] == "" and int(row["parameters"]) == one.parameters
    assert (rows[3]["map50"], rows[3]["size_mib"], rows[3]["gflops"]) == ("0.5", "about 2", "")


def test_names_alike_become_different_files(tmp_path: Path) -> None:
    made = comparison(("a/b", "A b", "a_b", "x" * 90 + "1", "x" * 90 + "2"))
    made.entries = [entry(e.label, k, scored=False, trained=False) for k, e in enumerate(made.entries)]
    made.differences = []
    write_report(made, tmp_path)
    names = [p.name for p in (tmp_path / "pictures").iterdir()]
    assert len({n.lower() for n in names}) == 5 and max(map(len, names)) < 70


def test_what_is_not_written_whole_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = comparison(scored=False, trained=False)
    (tmp_path / "report.html").write_text("old")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written there .No space left"):
        patch.setattr(report.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        write_report(made, tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("report.html", "old")]
    write_report(made, tmp_path)
    assert "a title" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md", "table.csv"]


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --project"):
        write_report(comparison(scored=False, trained=False), tmp_path / "file")


@pytest.mark.parametrize(("value", "text"), [(0.1, "+0.100"), (-0.1, "−0.100"), (0.0, "0.000"), (-0.0004, "0.000")])
def test_signed(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(
    ("length", "text"), [(20, "yolov5_shufflenet"), (11, "yolo...enet"), (8, "yol...et"), (1, "y")]
)
def test_elide(length: int, text: str) -> None:
    assert elide("yolov5_shufflenet", length) == text and len(text) <= max(length, 1)


def test_short_labels_are_no_two_alike() -> None:
    short = short_labels(["a" * 30 + str(k) + "b" * 30 for k in range(12)], 20)
    assert len(set(short)) == 12 and max(map(len, short)) <= 22
