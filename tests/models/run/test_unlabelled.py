"""Images that the teacher labels: boxes in the image's own frame, the cache, and what is left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml

from models.run import unlabelled
from models.run.unlabelled import teacher_labels, with_unlabelled
from utils.data.labels import load_labels
from utils.errors import UserError
from utils.losses.distillation import Taught
from utils.settings.dataset import load_data


class BrightSpots:
    """A teacher that sees one object of class 1, the bright part of an image, and is unsure of another."""

    strides, size, known = (8, 16, 32), None, torch.tensor([True, True])
    precision = SimpleNamespace(device=torch.device("cpu"), amp="off")

    def __init__(self, name: str = "a") -> None:
        self.digest, self.calls = name, 0

    def close(self) -> None:
        pass

    def __call__(self, images: torch.Tensor) -> Taught:
        self.calls += 1
        ys, xs = (images[0, 2] > 0.8).nonzero(as_tuple=True)
        scores, boxes = torch.zeros(1, 4, 2), torch.zeros(1, 4, 4)
        if len(ys):
            scores[0, 2, 1] = 0.9
            boxes[0, 2] = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        scores[0, 0, 0], boxes[0, 0] = 0.3, torch.tensor([0.0, 0.0, 20.0, 20.0])  # too unsure
        return Taught(scores, boxes, torch.tensor([True, True]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A labelled image, and four without labels: a blue square right of the middle, dark, damaged, too small."""
    for part in ("images/train", "images/extra", "labels/train"):
        (tmp_path / part).mkdir(parents=True)
    spot = np.zeros((100, 200, 3), np.uint8)
    spot[20:60, 120:160, 0] = 255
    for name, im in (("train/a", spot), ("extra/spot", spot), ("extra/dark", spot * 0), ("extra/tiny", spot[:5, :5])):
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), im)
    (tmp_path / "images/extra/damaged.png").write_bytes(b"no picture")
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    content = {"path": str(tmp_path), "train": "images/train", "unlabelled": "images/extra", "names": ["red", "blue"]}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_labels_are_in_the_frame_of_the_image(data: Path) -> None:
    index = teacher_labels(load_data(data), BrightSpots(), 64)
    by_name = {Path(index.file(i)).name: index.labels(i) for i in range(len(index))}
    assert set(by_name) == {"spot.png", "dark.png"} and not len(by_name["dark.png"])
    assert by_name["spot.png"][0].tolist() == pytest.approx([1, 0.7, 0.4, 0.2, 0.4], abs=0.02)
    assert len(by_name["spot.png"]) == 1
    assert len(index.problems) == 2 and any("too small" in p for p in index.problems)


def test_they_are_labelled_again_only_for_another_teacher_size_or_image(data: Path) -> None:
    teacher, config = BrightSpots(), load_data(data)
    first = teacher_labels(config, teacher, 64)
    assert teacher.calls == 2
    assert np.array_equal(teacher_labels(config, teacher, 64).values, first.values) and teacher.calls == 2
    other = BrightSpots("b")
    teacher_labels(config, other, 64)
    assert other.calls == 2
    teacher_labels(config, other, 96)
    assert other.calls == 4
    cv2.imwrite(str(data.parent / "images/extra/third.png"), np.zeros((50, 50, 3), np.uint8))
    teacher_labels(config, other, 96)
    assert other.calls == 7


def test_few_images_wait_in_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(60):
        cv2.imwrite(str(data.parent / f"images/extra/{k}.png"), np.zeros((50, 50, 3), np.uint8))
    teacher, real, read, ahead = BrightSpots(), unlabelled._read, [], []

    def counted(image: str) -> np.ndarray | str:
        read.append(image)
        ahead.append(len(read) - teacher.calls)
        return real(image)

    monkeypatch.setattr(unlabelled, "_read", counted)
    teacher_labels(load_data(data), teacher, 64)
    assert len(read) == 64 and max(ahead) <= unlabelled.AT_ONCE + 3  # two files of the first ones are no images


def test_images_of_the_dataset_are_not_used_twice(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_data(data)
    own, val = load_labels(config.train, 2), load_labels(config.unlabelled, 2)
    assert with_unlabelled(own, config, BrightSpots(), 64, [val]).files.tolist() == own.files.tolist()
    assert "2 images are in a split of the dataset" in caplog.text


def test_the_teacher_has_to_know_all_classes(data: Path) -> None:
    config, teacher = load_data(data), BrightSpots()
    teacher.known = torch.tensor([True, False])
    with pytest.raises(UserError, match="needs a --teacher that knows all classes"):
        with_unlabelled(load_labels(config.train, 2), config, teacher, 64)


def test_images_with_objects_join_the_train_split(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_data(data)
    own = load_labels(config.train, 2)
    index = with_unlabelled(own, config, BrightSpots(), 64)
    assert [Path(index.file(i)).name for i in range(len(index))] == ["a.png", "spot.png"]
    assert [index.labels(i)[:, 0].tolist() for i in range(2)] == [[0], [1]]
    assert index.shapes.tolist() == [[100, 200], [100, 200]]
    assert with_unlabelled(own, config, None, 64) is own
    assert "'unlabelled:' are not used, as there is no --teacher" in caplog.text
