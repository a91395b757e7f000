"""The data set and loader: the same items whoever makes them, rect batches, caches, unreadable files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_yolo_set

from utils.config import load_hyp
from utils.dataset import DetectionDataset, EpochSampler, create_loader, sort_by_proportion
from utils.labels import LabelIndex, load_labels


@pytest.fixture
def index(tmp_path: Path) -> LabelIndex:
    write_yolo_set(tmp_path, 12)
    return load_labels((tmp_path / "images/train",), 2)


def batches(dataset: DetectionDataset, workers: int, epoch: int) -> list:
    loader = create_loader(dataset, 4, workers, shuffle=True)
    loader.sampler.epoch = epoch
    return [(images, targets, paths) for images, targets, paths, _ in loader]


def test_items_depend_on_seed_epoch_and_index_alone(index: LabelIndex) -> None:
    hyp = {**load_hyp("hyp.scratch-med"), "mixup": 0.5}
    dataset = DetectionDataset(index, 64, 4, hyp, seed=1)
    alone, shared = batches(dataset, 0, 3), batches(dataset, 2, 3)
    for (im1, t1, p1), (im2, t2, p2) in zip(alone, shared, strict=True):
        assert torch.equal(im1, im2) and torch.equal(t1, t2) and p1 == p2
    assert batches(dataset, 0, 4)[0][2] != alone[0][2]
    other = DetectionDataset(index, 64, 4, hyp, seed=2)
    assert batches(other, 0, 3)[0][2] != alone[0][2]


def test_plain_item_has_its_labels_on_its_pixels(index: LabelIndex) -> None:
    image, targets, path, ((h0, w0), (ratio, pad)) = DetectionDataset(index, 128, 4)[1]
    assert image.shape == (3, 128, 128) and image.dtype == torch.uint8 and (h0, w0) == (96, 128)
    assert ratio == (1.0, 1.0) and pad == (0.0, 16.0) and path.endswith("001.png")
    red = (image[0] > 180) & (image[1] < 60)
    ys, xs = np.nonzero(red.numpy())
    middle = (xs.min() + xs.max() + 1) / 2 / 128, (ys.min() + ys.max() + 1) / 2 / 128
    assert middle == pytest.approx(targets[0, 2:4].tolist(), abs=0.1)  # the blue square may hide a part of it


@pytest.mark.parametrize("rect", [False, True])
def test_augmented_labels_stay_inside(index: LabelIndex, rect: bool) -> None:
    hyp = {**load_hyp("hyp.scratch-high"), "degrees": 20.0, "flipud": 0.5}
    dataset = DetectionDataset(index, 64, 4, hyp, rect=rect)
    for epoch in range(3):
        for i in range(len(dataset)):
            image, targets, _, shapes = dataset[epoch, i]
            assert shapes is None and image.shape[0] == 3
            x1, x2 = targets[:, 2] - targets[:, 4] / 2, targets[:, 2] + targets[:, 4] / 2
            y1, y2 = targets[:, 3] - targets[:, 5] / 2, targets[:, 3] + targets[:, 5] / 2
            assert (x1 >= -1e-5).all() and (y1 >= -1e-5).all() and (x2 <= 1).all() and (y2 <= 1).all()


def test_single_cls(index: LabelIndex) -> None:
    dataset = DetectionDataset(index, 64, 4, single_cls=True)
    assert all((dataset[i][1][:, 1] == 0).all() for i in range(len(dataset)))


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_caches_change_nothing(index: LabelIndex, cache: str) -> None:
    plain, cached = DetectionDataset(index, 64, 4), DetectionDataset(index, 64, 4, cache=cache)
    for _ in range(2):  # the second pass reads what the first one wrote
        assert all(torch.equal(plain[i][0], cached[i][0]) for i in range(len(plain)))


def test_disk_cache_is_made_anew_when_the_picture_is_newer(index: LabelIndex) -> None:
    dataset = DetectionDataset(index, 64, 4, cache="disk")
    dataset[0]
    file = Path(index.file(0))
    (cached,) = file.parent.glob("000.png.val64.npy")
    cached.write_bytes(b"damaged")
    assert torch.equal(dataset[0][0], DetectionDataset(index, 64, 4)[0][0])


def test_an_image_that_vanished_is_a_warning(index: LabelIndex, caplog: pytest.LogCaptureFixture) -> None:
    Path(index.file(2)).unlink()
    with caplog.at_level(logging.WARNING, logger="yolov5"):
        image = DetectionDataset(index, 64, 4)[2][0]
    assert "002.png" in caplog.text and (image == 114).all()


def test_rect_batches_fit_their_images() -> None:
    shapes = np.array([[100, 200], [200, 100], [100, 100], [50, 200]], np.int32)
    index = LabelIndex(np.array([b"a", b"b", b"c", b"d"]), shapes, np.array([[k, 0.5, 0.5, 1, 1] for k in range(4)],
                       np.float32), np.arange(5))  # fmt: skip
    ordered, batch_shapes = sort_by_proportion(index, 320, 2, stride=32, pad=0.5)
    assert [ordered.file(i) for i in range(4)] == ["d", "a", "c", "b"]
    assert ordered.labels(3)[0, 0] == 1  # labels moved with their image
    assert batch_shapes.tolist() == [[192, 352], [352, 352]]


def test_sampler_order() -> None:
    sampler = EpochSampler(100, shuffle=True, seed=0)
    first = list(sampler)
    assert sorted(i for _, i in first) == list(range(100)) and first == list(sampler)
    sampler.epoch = 1
    assert [i for _, i in sampler] != [i for _, i in first] and next(iter(sampler))[0] == 1
    assert list(EpochSampler(3, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]
