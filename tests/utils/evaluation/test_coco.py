"""COCO files: read, and refused with a line if they are damaged; COCO's figures; the missing package."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.errors import UserError
from utils.evaluation.coco import read_annotations, score_coco, split_annotations
from utils.settings.dataset import DataConfig

NAMES = {0: "cat", 1: "dog"}
CONTENT = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
               {"id": 9, "file_name": "b.jpg", "width": 50, "height": 60}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 150, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 4, 5], "iscrowd": 1, "difficult": 1},
    ],
    "categories": [{"id": 5, "name": "cat"}, {"id": 3, "name": "dog"}],
}  # fmt: skip


def write(path: Path, change: Callable[[dict], Any] = lambda c: None) -> Path:
    content = copy.deepcopy(CONTENT)
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    found = read_annotations(write(tmp_path / "x.json"), NAMES)
    assert set(found) == {"a.jpg", "b.jpg"}
    assert (found["a.jpg"].image_id, found["a.jpg"].shape) == (7, (30, 40))
    np.testing.assert_array_equal(found["a.jpg"].objects, [[1, 1, 2, 11, 22, 150, 0], [0, 0, 0, 4, 5, 20, 1]])
    assert found["b.jpg"].objects.shape == (0, 7)


def test_categories_are_known_by_number_if_the_names_were_changed(tmp_path: Path) -> None:
    def number(content: dict) -> None:
        content["categories"] = [{"id": 0, "name": "Katze"}, {"id": 1, "name": "Hund"}]
        for k, entry in enumerate(content["annotations"]):
            entry["category_id"] = k

    assert read_annotations(write(tmp_path / "x.json", number), NAMES)["a.jpg"].objects[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "'images' is missing"),
        (lambda c: c.update(annotations={}), "'annotations' is missing or is not a list"),
        (lambda c: c.update(categories=[1]), "'categories' is missing or is not a list"),
        (lambda c: c["categories"][0].update(name="cow"), "category 'cow' is not one of the data yaml's names"),
        (lambda c: c["categories"][0].update(id=3), "every entry of 'categories' needs a unique id"),
        (lambda c: c["images"][1].update(id=7), r"images\[1\]"),
        (lambda c: c["images"][1].update(width="50"), r"images\[1\]"),
        (lambda c: c["images"][0].pop("file_name"), r"images\[0\]"),
        (lambda c: c["annotations"][1].update(image_id=8), r"annotations\[1\]"),
        (lambda c: c["annotations"][1].update(category_id=4), r"annotations\[1\]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"annotations\[0\]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), r"annotations\[0\]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), r"annotations\[0\]"),
        (lambda c: c["annotations"][0].update(iscrowd="no"), r"annotations\[0\]"),
        (lambda c: c["annotations"][0].update(area=None), r"annotations\[0\]"),
    ],
)
def test_damage_is_one_line_that_names_file_and_entry(change: Callable, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as e:
        read_annotations(write(tmp_path / "x.json", change), NAMES)
    assert "x.json" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_coco_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match="x.json"):
        read_annotations(tmp_path / "x.json", NAMES)


def test_a_split_of_two_folders_of_which_one_has_a_file(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    write(tmp_path / "annotations/instances_one.json")
    parts = (tmp_path / "images/one", tmp_path / "images/two")
    found = split_annotations(DataConfig(tmp_path / "d.yaml", NAMES, tmp_path, val=parts), "val")
    assert set(found) == {str(tmp_path / "images/one" / name) for name in ("a.jpg", "b.jpg")}


def test_figures_of_perfect_detections_and_of_none() -> None:
    pytest.importorskip("faster_coco_eval")
    truth = np.array([[0, 0, 0, 20, 20, 400, 0], [1, 0, 0, 200, 200, 40000, 0], [1, 300, 0, 320, 20, 400, 1.0]])
    found = np.array([[0, 0, 20, 20, 0.9, 0], [0, 0, 200, 200, 0.8, 1], [300, 0, 320, 20, 0.95, 1]])
    score = score_coco([found, found[:0]], [truth, truth[:0]], 3)
    np.testing.assert_allclose(score.ap, 1)
    assert (score.classes.tolist(), score.objects.tolist(), score.difficult.tolist()) == ([0, 1], [1, 1], [0, 1])
    assert score.figures["AP"] == pytest.approx(1) and np.isnan(score.figures["APmedium"])
    nothing = score_coco([found[:0]], [truth], 3)
    assert nothing.figures["AP"] == 0 and not nothing.ap.any()


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="pip install faster-coco-eval") as e:
        score_coco([np.zeros((0, 6))], [np.zeros((0, 7))], 1)
    assert "\n" not in str(e.value)
