"""The figures do not depend on how the images were split; records, json rows, tables."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detections import HEIGHT, WIDTH, random_set

from utils.evaluation.coco import Annotated
from utils.evaluation.metrics import IOU_THRESHOLDS, process_batch
from utils.evaluation.mistakes import Mistake
from utils.evaluation.scoring import (
    ImageRecord,
    Part,
    Results,
    Scorer,
    Settings,
    confusion_of,
    json_rows,
    merge,
    record_of,
    results_of,
    results_table,
)

NAMES = {0: "cat", 1: "dog", 2: "cow"}


def records(images: int, **flags) -> tuple[list[ImageRecord], dict[str, Annotated]]:
    """A synthetic set as records, and what a COCO file of it would say."""
    found, truths = random_set(images, len(NAMES), **flags)
    rows, annotations = [], {}
    for k, (f, t) in enumerate(zip(found, truths, strict=True)):
        true = t[t[:, 6] == 0, :5].astype(np.float32)
        correct = process_batch(torch.tensor(f), torch.tensor(true), torch.tensor(IOU_THRESHOLDS)).numpy()
        rows.append(ImageRecord(f"/set/{k:03d}.jpg", f, true, correct))
        annotations[rows[-1].path] = Annotated(1000 + k, (HEIGHT, WIDTH), t)
    return rows, annotations


def part(images: list[ImageRecord]) -> Part:
    losses = [(i.path, [float(len(i.found)), 0.1 * len(i.true), 1 / 3]) for i in images[::2]]
    return Part(images, losses, np.full(3, 0.25 * len(images)), [])


def figures(results: Results) -> dict[str, np.ndarray]:
    plain = {k: np.asarray(v) for k, v in vars(results).items() if k not in ("curves", "score", "speed")}
    plain.update({f"curve {k}": v for k, v in vars(results.curves).items()})
    plain.update({f"score {k}": np.asarray(v) for k, v in vars(results.score or object()).items() if k != "figures"}
                 if results.score else {})  # fmt: skip
    return {**plain, "speed": np.array(list(results.speed.values()))}


@pytest.mark.parametrize("protocol", ["yolov5", "voc07", "voc12", "coco"])
def test_one_process_and_two_give_the_same_arrays(protocol: str) -> None:
    if protocol == "coco":
        pytest.importorskip("faster_coco_eval")
    images, annotations = records(40, difficult=0.2, steps=10)  # equal confidences: their order would show
    settings = Settings(protocol=protocol, annotations=annotations)
    whole = results_of(merge([part(images)]), NAMES, settings)
    shuffled = images.copy()
    random.Random(0).shuffle(shuffled)
    for halves in ([images[1::2], images[::2]], [shuffled[:7], shuffled[7:], []]):
        shared = pickle.loads(pickle.dumps([part(half) for half in halves]))
        shared = [p._replace(losses=[x for x in part(images).losses if x[0] in {i.path for i in p.images}])
                  for p in shared]  # fmt: skip
        merged = merge(shared)
        again = figures(results_of(merged, NAMES, settings))
        for name, value in figures(whole).items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)
        np.testing.assert_array_equal(confusion_of(merged, 3), confusion_of(merge([part(images)]), 3))
        assert json_rows(merged, settings) == json_rows(part(images), settings)
    assert 0.1 < whole.summary[3] < 0.9 and whole.losses[2] == pytest.approx(1 / 3)
    assert list(whole.speed.values()) == pytest.approx([250.0] * 3)  # milliseconds per image


def test_an_image_that_two_processes_saw_counts_once() -> None:
    images, _ = records(6)
    twice = merge([part(images), part(images[:2])])
    assert [i.path for i in twice.images] == [i.path for i in images]
    assert results_of(twice, NAMES, Settings()).speed["NMS"] == pytest.approx(250)
    mistake = Mistake("false", 0.9, "/set/000.jpg", 3, "cat", np.zeros((2, 2, 3), np.uint8), *np.zeros((2, 1, 4)))
    assert len(merge([part([])._replace(mistakes=[mistake])] * 2).mistakes) == 1


def test_difficult_objects_are_not_punished_by_voc() -> None:
    box, hard = [10.0, 10, 50, 50], [100.0, 100, 150, 150]
    found = np.array([[*hard, 0.9, 0], [*box, 0.8, 0]], np.float32)
    true = np.array([[0, *box]], np.float32)
    image = ImageRecord("/a.jpg", found, true, np.array([[False] * 10, [True] * 10]))
    note = {"/a.jpg": Annotated(1, (200, 200), np.array([[0, *box, 1600, 0], [0, *hard, 2500, 1]]))}
    got = {p: results_of(part([image]), NAMES, Settings(protocol=p, annotations=a))
           for p, a in (("yolov5", note), ("voc12", note), ("voc07", {}))}  # fmt: skip
    assert got["voc12"].score.figures["mAP50"] == 1 and got["voc07"].score.figures["mAP50"] == pytest.approx(0.5)
    assert got["yolov5"].summary[2] < 0.8
    assert [got[p].difficult for p in got] == [1, 1, None]
    for protocol, words in (("yolov5", "1 images, 1 objects, and 1 difficult ones, whose"),
                            ("voc12", "1 images, 1 objects, and 1 difficult ones, ignored"),
                            ("voc07", "it is not known which objects are difficult")):  # fmt: skip
        text = results_table(got[protocol], NAMES, per_class=True)
        assert f"protocol {protocol}" in text and words in text
    # class, images, objects, difficult ones, AP50
    assert results_table(got["voc12"], NAMES, True).splitlines()[2].split() == ["cat", "1", "1", "1", "1"]


def test_table_in_yolov5s_columns() -> None:
    images, _ = records(30)
    results = results_of(part(images), NAMES, Settings())
    lines = results_table(results, NAMES, per_class=True).splitlines()
    assert lines[0].split() == ["Class", "Images", "Instances", "P", "R", "mAP50", "mAP50-95"]
    assert [line.split()[0] for line in lines[1:5]] == ["all", "cat", "dog", "cow"]
    assert [float(v) for v in lines[1].split()[3:]] == pytest.approx(results.summary, rel=0.01)
    counts = [int(v) for v in lines[5].replace("(", " ").split() if v.isdigit()]
    assert lines[5].startswith("AP50-95 by COCO's rule") and counts == results.size_objects.tolist()
    assert len(results_table(results, NAMES).splitlines()) == 4


def test_nothing_at_all_scores_nothing() -> None:
    results = results_of(merge([part([])]), NAMES, Settings(protocol="voc07"))
    assert results.summary.tolist() == [0] * 4 and results.losses == (0, 0, 0) and results.score.ap.shape == (0, 1)
    assert "small - (0 objects)" in results_table(results, NAMES, True)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({}, [12, "dog"]),  # a name that is a number, or the name
        ({"/a/12.jpg": 5, "/b/dog.jpg": 6}, [5, 6]),
        ({"/a/12.jpg": 5, "/b/dog.jpg": 5}, [12, "dog"]),  # two COCO files with the same ids
    ],
)
def test_json_rows(ids: dict[str, int], expected: list) -> None:
    found = np.array([[1.00049, 2, 11, 22, 0.1234567, 2]], np.float32)
    images = [ImageRecord(p, found, np.zeros((0, 5)), np.zeros((1, 10), bool)) for p in ("/a/12.jpg", "/b/dog.jpg")]
    notes = {path: Annotated(number, (30, 30), np.zeros((0, 7)), {2: 18}) for path, number in ids.items()}
    rows = json_rows(part(images), Settings(annotations=notes))
    assert [r["image_id"] for r in rows] == expected
    category = 18 if expected == [5, 6] else 2  # ids of images and categories are of one file, or none is
    box = [1.0, 2.0, 10.0, 20.0]
    assert rows[0] == {"image_id": expected[0], "category_id": category, "bbox": box, "score": 0.12346}


def test_a_scorer_moves_boxes_to_the_files_pixels(tmp_path: Path) -> None:
    """A 100 x 200 px image seen at half its size in a 64 x 128 px input, 7 px above and 14 px left of it grey."""
    (tmp_path / "labels").mkdir()
    scorer = Scorer(NAMES, Settings(folder=tmp_path, save_txt=True, save_conf=True, single_cls=True))
    found = torch.tensor([[14.0, 7, 64, 32, 0.5, 2]])
    labels = torch.tensor([[0, 39 / 128, 19.5 / 64, 50 / 128, 25 / 64]])
    shapes = ((100, 200), ((0.5, 0.5), (14, 7)))
    image = record_of((64, 128), found, labels, "/set/x.jpg", shapes, single_cls=True)
    scorer.add_image(torch.zeros(3, 64, 128, dtype=torch.uint8), found, labels, image, shapes)
    assert scorer.images == [image]
    np.testing.assert_allclose(image.found, [[0, 0, 100, 50, 0.5, 0]], atol=1e-4)
    np.testing.assert_allclose(image.true, [[0, 0, 0, 100, 50]], atol=1e-4)
    assert image.correct.all() and found[0, 5] == 2  # what was given stays as it is
    assert (tmp_path / "labels/x.txt").read_text() == "0 0.25 0.25 0.5 0.5 0.5\n"


def test_equal_names_in_two_folders_have_label_files_of_their_own(tmp_path: Path) -> None:
    """Whatever the order in which the images come, and also if they are of several processes."""
    (tmp_path / "labels").mkdir()
    paths = ["/b/x.jpg", "/a/x.jpg", "/a/X.png", "/a/x_2.jpg", "/a/y.jpg"]
    settings = Settings(folder=tmp_path, save_txt=True, files=np.array([p.encode() for p in paths]))
    for cls, path in enumerate(paths):
        scorer = Scorer(NAMES, settings)
        found = np.array([[0, 0, 10, 10, 0.5, cls]], np.float32)
        record = ImageRecord(path, found, np.zeros((0, 5)), np.zeros((1, 10), bool))
        scorer.add_image(torch.zeros(3, 8, 8), torch.zeros(0, 6), torch.zeros(0, 5), record, ((10, 10), None))
    written = {p.name: int(p.read_text().split()[0]) for p in (tmp_path / "labels").iterdir()}
    assert written == {"X.txt": 2, "x_3.txt": 1, "x_4.txt": 0, "x_2.txt": 3, "y.txt": 4}
