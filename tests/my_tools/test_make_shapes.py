"""The drawn data set: the same every time, boxes that follow the pixels, a set that is whole or not there."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from defusedxml.ElementTree import fromstring

from my_tools import make_shapes
from my_tools.make_shapes import run
from utils.errors import UserError
from utils.voc import shapes
from utils.voc.shapes import CLASSES, SAMPLES_OUT, annotation, cut, draw_image, draw_scene, shape_points

IMAGES = 12


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its relative name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(out=tmp_path_factory.mktemp("set") / "VOCshapes", images=IMAGES)


@pytest.fixture(scope="module")
def scenes() -> list[shapes.Scene]:
    return [draw_image(0, index) for index in range(100)]


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    again = run(out=tmp_path / "deeper" / "again", images=IMAGES)
    assert contents(again) == contents(drawn)


def test_another_seed_draws_other_pictures(drawn: Path, tmp_path: Path) -> None:
    here, there = contents(drawn), contents(run(out=tmp_path / "other", images=IMAGES, seed=1))
    assert here.keys() == there.keys()
    assert not any(here[name] == there[name] for name in here if name.startswith("JPEGImages"))


def test_a_picture_does_not_depend_on_how_many_are_drawn(drawn: Path, tmp_path: Path) -> None:
    here, there = contents(drawn), contents(run(out=tmp_path / "few", images=10))
    assert all(there[name] == here[name] for name in there if name.startswith(("JPEGImages", "Annotations")))


def test_the_set_is_voc(drawn: Path) -> None:
    stems = [p.stem for p in sorted((drawn / "JPEGImages").iterdir())]
    assert len(stems) == IMAGES
    for stem in stems:
        root = fromstring((drawn / "Annotations" / f"{stem}.xml").read_bytes())
        image = cv2.imread(str(drawn / "JPEGImages" / f"{stem}.jpg"))
        assert root.findtext("filename") == f"{stem}.jpg"
        width, height = int(root.findtext("size/width")), int(root.findtext("size/height"))
        assert image.shape == (height, width, 3)
        for item in root.findall("object"):
            assert item.findtext("name") in CLASSES
            assert {item.findtext("difficult"), item.findtext("truncated")} <= {"0", "1"}
            xmin, ymin, xmax, ymax = (int(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= xmin < xmax <= width and 1 <= ymin < ymax <= height
    assert cv2.imread(str(drawn / "contact_sheet.jpg")).shape == (2 * 160, 6 * 160, 3)


def test_splits_are_disjoint_and_complete(drawn: Path) -> None:
    splits = {p.stem: p.read_text().split() for p in (drawn / "ImageSets" / "Main").iterdir()}
    assert {name: len(stems) for name, stems in splits.items()} == {"train": 10, "val": 1, "test": 1}
    assert sorted(sum(splits.values(), [])) == [f"{k:06d}" for k in range(IMAGES)]


def test_classes_are_balanced_and_few_objects_difficult(scenes: list[shapes.Scene]) -> None:
    boxes = [box for scene in scenes for box in scene.boxes]
    counts = Counter(box.name for box in boxes)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) > 0.6 * max(counts.values())
    assert all(1 <= len(scene.boxes) <= 6 for scene in scenes)
    assert sum(box.difficult for box in boxes) < 0.03 * len(boxes)
    assert 0.05 * len(boxes) < sum(box.truncated for box in boxes) < 0.4 * len(boxes)
    longer = [max(b.x1 - b.x0, b.y1 - b.y0) for b in boxes if not b.truncated]
    assert min(longer) >= 24 and max(longer) <= 120


def test_boxes_are_inside_the_image_and_apart(scenes: list[shapes.Scene]) -> None:
    for scene in scenes:
        height, width = scene.image.shape[:2]
        for k, box in enumerate(scene.boxes):
            assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
            assert all(shapes.iou(box, other) <= shapes.MAX_IOU for other in scene.boxes[:k])


@pytest.mark.parametrize("seed", range(40))
def test_a_box_follows_the_drawn_pixels(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed), 200, 160, objects=1, plain=True)
    (box,) = scene.boxes
    changed = np.abs(scene.image.astype(int) - 128).max(2)
    ys, xs = np.nonzero(changed > 0.2 * changed.max())
    extent = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    assert np.abs(np.subtract(extent, (box.x0, box.y0, box.x1, box.y1))).max() <= 1


def test_a_box_is_exact_to_the_pixel_and_clipped() -> None:
    rectangle = np.array([(10, 20), (50, 20), (50, 45), (10, 45)], float)
    assert cut(rectangle, 100, 80, "square", "filled").box == ("square", 10, 20, 50, 45, False, False)
    outside = cut(rectangle - (30, 0), 100, 30, "square", "filled")
    assert outside.box == ("square", 0, 20, 20, 30, True, False)
    assert outside.painted == 40 * 25
    assert outside.body.shape == (outside.rows.stop - outside.rows.start, outside.columns.stop)


@pytest.mark.parametrize("name", CLASSES)
def test_a_shape_has_the_size_asked_for(name: str) -> None:
    for seed in range(10):
        points = shape_points(name, 50, np.random.default_rng(seed))
        assert np.ptp(points, axis=0).max() == pytest.approx(50)
        assert points.max(0) == pytest.approx(-points.min(0))


def test_a_shape_mostly_hidden_is_marked_difficult() -> None:
    rng = np.random.default_rng(3)
    hidden = [c for _ in range(150) for c in shapes.arrange(rng, 224, 224, 6, 3) if c.box.difficult]
    assert hidden and all(c.box.name for c in hidden)


def test_coordinates_in_the_xml_count_from_one() -> None:
    box = shapes.Box("star", 0, 5, 30, 40, truncated=True, difficult=True)
    root = fromstring(annotation("a&b.jpg", shapes.Scene(np.zeros((40, 30, 3), np.uint8), [box])))
    assert root.findtext("filename") == "a&b.jpg"
    assert [e.text for e in root.find("object/bndbox")] == ["1", "6", "30", "40"]
    assert root.findtext("object/truncated") == root.findtext("object/difficult") == "1"


def test_a_finished_set_is_left_alone(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_draw_set", lambda *_: pytest.fail("drawn again"))
    assert run(out=drawn, images=IMAGES) == drawn


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interrupted_drawing_is_completed_by_the_next(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    out = tmp_path / "VOCshapes"

    def interrupt(seed: int, index: int, size: int) -> shapes.Scene:
        if index == 5:
            raise stop(28, "No space left on device")
        return draw_image(seed, index, size)

    with monkeypatch.context() as m, pytest.raises(UserError if stop is OSError else stop):
        m.setattr(shapes, "draw_image", interrupt)
        run(out=out, images=IMAGES)
    assert not list(tmp_path.iterdir())  # neither a part of the set nor a temporary folder
    left = tmp_path / ".VOCshapes.00000000.part"  # what a killed drawing leaves
    (left / "JPEGImages").mkdir(parents=True)
    (left / "JPEGImages" / "000000.jpg").write_bytes(b"half")
    out.mkdir()
    assert contents(run(out=out, images=IMAGES)) == contents(drawn)


def test_a_second_drawing_at_the_same_time_does_no_harm(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, draw = tmp_path / "VOCshapes", shapes._draw_set

    def overtaken(folder: Path, wanted: dict[str, int]) -> None:
        draw(folder, wanted)
        draw(out, wanted)

    monkeypatch.setattr(shapes, "_draw_set", overtaken)
    run(out=out, images=IMAGES)
    assert contents(out) == contents(drawn)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("change", [{"images": IMAGES + 1}, {"seed": 5}, {"size": 128}])
def test_another_set_is_not_overwritten(drawn: Path, change: dict[str, int]) -> None:
    before = contents(drawn)
    with pytest.raises(UserError, match="another --out"):
        run(**{"out": drawn, "images": IMAGES} | change)
    assert contents(drawn) == before


@pytest.mark.parametrize("name, text", [("notes.txt", "mine"), ("shapes.json", "{"), ("shapes.json", json.dumps([1]))])
def test_a_folder_of_the_user_is_not_overwritten(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="another --out"):
        run(out=tmp_path, images=IMAGES)
    assert contents(tmp_path) == {name: text.encode()}


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, samples in ((tmp_path / "file", 0), (tmp_path / "file" / "below", 0), (tmp_path / "file", 1)):
        with pytest.raises(UserError, match="another --out"):
            run(out=out, images=IMAGES, samples=samples)


@pytest.mark.parametrize("bad", [{"images": 9}, {"size": 95}, {"seed": -1}, {"samples": -1}])
def test_values_out_of_range_are_told(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(bad))}"):
        run(out=tmp_path / "set", **bad)


def test_the_sample_pictures_are_small_and_can_be_redrawn(tmp_path: Path) -> None:
    files = sorted(SAMPLES_OUT.glob("shapes*.jpg"))
    assert len(files) == 4 and sum(f.stat().st_size for f in files) < 300_000
    run(out=tmp_path, samples=4)
    for file in files:
        image, again = cv2.imread(str(file)), cv2.imread(str(tmp_path / file.name))
        assert max(image.shape) >= 400 and image.shape == again.shape
        assert np.abs(image.astype(int) - again).mean() < 4  # another version's JPEG coder may round otherwise


def test_command_line_defaults() -> None:
    opt = make_shapes.parse_opt([])
    assert (opt.images, opt.size, opt.seed, opt.samples) == (shapes.IMAGES, shapes.SIZE, 0, 0)
    assert shapes.OUT.parts[-3:] == ("datasets", "shapes", "VOCshapes")
