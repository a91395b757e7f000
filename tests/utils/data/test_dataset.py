"""The data set and loader: the same items whoever makes them, rect batches, caches, unreadable files."""

from __future__ import annotations

import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import write_yolo_set

from utils.data import dataset as module
from utils.data.dataset import DetectionDataset, EpochBatches, ImagesLost, quad_item, rescale, sort_by_proportion
from utils.data.images import read_image
from utils.data.labels import LabelIndex, load_labels
from utils.data.loader import LoaderError, batches_of, create_loader
from utils.settings.config import load_hyp
from utils.training.image_weights import image_weights


@pytest.fixture
def index(tmp_path: Path) -> LabelIndex:
    write_yolo_set(tmp_path, 12)
    return load_labels((tmp_path / "images/train",), 2)


def batches(dataset: DetectionDataset, workers: int, epoch: int) -> list:
    loader = create_loader(dataset, 4, workers, shuffle=True)
    loader.batch_sampler.epoch = epoch
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
            image, targets, _, shapes = dataset[epoch, i, ()]
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


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_learnt_from_an_image_that_vanished(training: bool, index: LabelIndex) -> None:
    """Grey with its labels would teach that grey is an object; scored, its objects are missed."""
    hyp = {**load_hyp("hyp.scratch-low"), "mosaic": 0.0} if training else None
    dataset = DetectionDataset(index, 64, 4, hyp, cache="disk")
    content = Path(index.file(2)).read_bytes()
    Path(index.file(2)).unlink()
    assert len(dataset[2][1]) == (0 if training else len(index.labels(2)))
    assert not list(Path(index.file(2)).parent.glob("002.png.*.npy")), "grey would stay for ever"
    Path(index.file(2)).write_bytes(content)
    dataset._decoded.clear()
    assert len(dataset[2][1]) == len(index.labels(2)) and len(dataset[2][0].unique()) > 2


def test_one_image_that_cannot_be_read_never_counts_as_many(index: LabelIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LOST", 3)
    Path(index.file(2)).write_bytes(b"spoiled")
    dataset = DetectionDataset(index, 64, 4, cache="disk")
    for _ in range(5):
        assert len([dataset[i] for i in range(4)]) == 4


def test_a_cached_image_has_its_labels_again(index: LabelIndex) -> None:
    """Which another process of the loader may have read and kept, after this one could not."""
    hyp = {**load_hyp("hyp.scratch-low"), "mosaic": 0.0}
    dataset, other = (DetectionDataset(index, 64, 4, hyp, cache="disk") for _ in range(2))
    content = Path(index.file(2)).read_bytes()
    Path(index.file(2)).unlink()
    assert len(dataset[2][1]) == 0
    Path(index.file(2)).write_bytes(content)
    other[2]
    dataset._decoded.clear()
    assert len(dataset[2][1]) == len(index.labels(2))


def test_a_set_that_is_gone_is_no_matter_of_single_images(index: LabelIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = DetectionDataset(index, 64, 4)
    folder = Path(index.file(0)).parent
    folder.rename(folder.with_name("gone"))
    with pytest.raises(ImagesLost, match="an image cannot be read .*is the disk that holds the dataset still there"):
        dataset[0]
    folder.mkdir()
    monkeypatch.setattr(module, "MOST_LOST", 3)
    dataset = DetectionDataset(index, 64, 4)
    dataset[0], dataset[1]
    with pytest.raises(ImagesLost, match="3 images in a row cannot be read"):
        dataset[2]


def test_what_ends_a_loader_is_told(index: LabelIndex) -> None:
    def raising(error: Exception) -> Iterator:
        raise error
        yield

    told = {
        "DataLoader worker (pid 7) is killed by signal: Killed.": "a process that loads images was killed",
        "DataLoader worker (pid(s) 7) exited unexpectedly": "has ended: memory ran out .*--workers 0 needs none",
        "DataLoader worker (pid 7) is killed by signal: Bus error.": "--workers 0 needs none",
        "Caught OSError in worker. File \"/home/u/torch_env/x.py\"\nOSError: no": "",
        "unable to allocate shared memory(shm) for file </torch_7_8_9>: No space left on device (28)": "--shm-size",
    }
    for error, answer in told.items():
        with pytest.raises(LoaderError if answer else RuntimeError, match=answer):
            list(batches_of(raising(RuntimeError(error))))
    with pytest.raises(RuntimeError, match="another"):
        list(batches_of(raising(RuntimeError("another"))))
    loader = create_loader(DetectionDataset(index, 64, 4), 4, workers=1, shuffle=False)
    shutil.rmtree(Path(index.file(0)).parent)
    with pytest.raises(LoaderError, match="^an image cannot be read") as e:  # from another process, without traceback
        list(batches_of(loader))
    assert "\n" not in str(e.value)


def test_opencv_knows_the_thread_that_loader_processes_are_copies_of(
    index: LabelIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one in a thousand waits for ever for a lock (tests/long/forks.py)."""
    loader, calls = create_loader(DetectionDataset(index, 64, 4), 4, 1, shuffle=False), []
    real = cv2.copyMakeBorder
    monkeypatch.setattr(cv2, "copyMakeBorder", lambda *args: calls.append("OpenCV") or real(*args))
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda self: calls.append("fork") or iter(()))
    assert list(loader) == [] and calls == ["OpenCV", "fork"]


def test_rect_batches_fit_their_images() -> None:
    shapes = np.array([[100, 200], [200, 100], [100, 100], [50, 200]], np.int32)
    index = LabelIndex(np.array([b"a", b"b", b"c", b"d"]), shapes, np.array([[k, 0.5, 0.5, 1, 1] for k in range(4)],
                       np.float32), np.arange(5))  # fmt: skip
    ordered, batch_shapes = sort_by_proportion(index, 320, 2, stride=32, pad=0.5)
    assert [ordered.file(i) for i in range(4)] == ["d", "a", "c", "b"]
    assert ordered.labels(3)[0, 0] == 1  # labels moved with their image
    assert batch_shapes.tolist() == [[192, 352], [352, 352]]


def indices(batches: EpochBatches) -> list[list[int]]:
    return [[i for _, i, _ in batch] for batch in batches]


def test_sampler_order() -> None:
    batches = EpochBatches(100, 8, shuffle=True, seed=0)
    first = list(batches)
    assert sorted(i for b in first for _, i, _ in b) == list(range(100)) and first == list(batches)
    batches.epoch = 1
    assert indices(batches) != [[i for _, i, _ in b] for b in first] and next(iter(batches))[0][0] == 1
    everything = (0, 1, 2)
    assert list(EpochBatches(3, 2, shuffle=False)) == [[(0, 0, everything), (0, 1, everything)], [(0, 2, everything)]]


def test_a_pass_that_was_cut_off_goes_on_where_it_was() -> None:
    batches = EpochBatches(20, 3, shuffle=True, seed=4)
    whole = list(batches)
    batches.start = 5
    assert list(batches) == whole[5:] and len(batches) == 7
    assert list(batches) == whole  # only the pass after it was set


@pytest.mark.parametrize(
    ("whole", "shares"),
    [(False, [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]), (True, [[[0, 1, 2, 3], [8]], [[4, 5, 6, 7]]])],
)
def test_shares_of_two_processes(whole: bool, shares: list) -> None:
    """Nine images: in training the last batch, too small for two, is left out; in an evaluation nothing is."""
    made = [EpochBatches(9, 4, shuffle=False, rank=r, world=2, whole=whole, least=1) for r in (0, 1)]
    assert [indices(m) for m in made] == shares and [len(m) for m in made] == [len(s) for s in shares]


@pytest.mark.parametrize(
    ("size", "length", "groups"),
    [
        (16, 40, {16: 32, 8: 8}),
        (64, 64, {16: 64}),  # four groups, spread over the batch
        (6, 36, {18: 36}),  # three batches
        (100, 100, {17: 68, 16: 32}),
    ],
)
def test_images_share_mosaics_with_those_near_them(size: int, length: int, groups: dict[int, int]) -> None:
    batches = EpochBatches(length, size, shuffle=True)
    keys = [key for batch in batches for key in batch]
    assert Counter(len(group) for *_, group in keys) == groups
    assert all(i in group and len(set(group)) == len(group) for _, i, group in keys)
    if size >= 16:  # a batch is made of nothing but its own images
        assert all({i for key in batch for i in key[2]} == {i for _, i, _ in batch} for batch in batches)


def test_the_share_of_a_process_is_made_of_its_own_images() -> None:
    shares = [next(iter(EpochBatches(64, 64, shuffle=True, rank=r, world=4))) for r in range(4)]
    for share in shares:
        assert {i for key in share for i in key[2]} == {i for _, i, _ in share}


def test_each_image_is_decoded_once_for_a_batch(index: LabelIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(module, "read_image", lambda path, reduce: read.append(path) or read_image(path, reduce))
    hyp = {**load_hyp("hyp.scratch-low"), "mixup": 1.0}
    for size in (12, 4):  # of small batches the images are kept for the next one
        read.clear()
        made = list(create_loader(DetectionDataset(index, 64, size, hyp), size, 0, shuffle=True))
        assert len(made) == 12 / size and len(read) == len(set(read)) == 12
    monkeypatch.setattr(module, "KEPT", 3)
    dataset = DetectionDataset(index, 64, 2, hyp)
    list(create_loader(dataset, 2, 0, shuffle=True))
    assert len(dataset._decoded) <= 3


@pytest.mark.parametrize(("imgsz", "reduce"), [(64, 8), (160, 4), (161, 2), (321, 1)])
def test_of_large_pictures_less_is_decoded(
    tmp_path: Path, imgsz: int, reduce: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a picture of 480 x 640 as much as the size asks for, in training; it lies where it did."""
    write_yolo_set(tmp_path, 1, size=(480, 640))
    index = load_labels((tmp_path / "images/train",), 2)
    asked = []
    monkeypatch.setattr(module, "read_image", lambda path, reduce: asked.append(reduce) or read_image(path, reduce))
    hyp = {**load_hyp("hyp.short"), "translate": 0.0, "scale": 0.0, "fliplr": 0.0}
    trained, plain = (DetectionDataset(index, imgsz, 1, h)[0] for h in (hyp, None))
    assert asked == [reduce, 1]
    assert (trained[0].float() - plain[0].float()).abs().mean() < 2
    torch.testing.assert_close(trained[1], plain[1], atol=1e-3, rtol=0)


def test_image_weights_are_drawn_by() -> None:
    batches = EpochBatches(4, 4, shuffle=True)
    batches.weights = np.array([0, 1, 0, 3.0])
    drawn = []
    for batches.epoch in range(200):
        drawn += indices(batches)[0]
    counts = np.bincount(drawn, minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0] and counts[3] / counts[1] == pytest.approx(3, rel=0.3)


def test_image_weights_prefer_rare_and_badly_found_classes() -> None:
    values = np.array([[0, 0.5, 0.5, 1, 1]] * 3 + [[1, 0.5, 0.5, 1, 1]], np.float32)
    index = LabelIndex(np.array([b"a", b"b", b"c"]), np.full((3, 2), 9, np.int32), values, np.array([0, 3, 4, 4]))
    np.testing.assert_allclose(image_weights(index, [0.5, 0.0]), [0.25, 1.0, 0.0])
    np.testing.assert_allclose(image_weights(index, [1.0, 1.0]), [1, 1, 1])  # nothing left to learn: all alike


def quad_source() -> list:
    images = [torch.full((3, 4, 4), k, dtype=torch.uint8) for k in range(4)]
    targets = [torch.tensor([[0, k, 0.5, 0.5, 1.0, 0.5]]) for k in range(4)]
    return [(im, t, str(k), None) for k, (im, t) in enumerate(zip(images, targets, strict=True))]


def test_quad_lays_four_images_side_by_side_or_enlarges_the_first() -> None:
    seen = set()
    for seed in range(8):
        image, targets, path, _ = quad_item(quad_source(), np.random.default_rng(seed))
        assert image.shape == (3, 8, 8) and image.dtype == torch.uint8 and path == "0"
        seen.add(len(targets))
        if len(targets) == 1:
            assert (image == 0).all() and targets.tolist() == quad_source()[0][1].tolist()
            continue
        assert image[0, ::4, ::4].tolist() == [[0, 1], [2, 3]]
        np.testing.assert_allclose(targets[:, 1:], [[k, x, y, 0.5, 0.25] for k, (y, x) in enumerate(
            [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)])])  # fmt: skip
    assert seen == {1, 4}


def test_quad_batches(index: LabelIndex) -> None:
    dataset = DetectionDataset(index, 64, 8, load_hyp("hyp.scratch-low"), quad=True)
    made = [(im, t) for im, t, _, _ in create_loader(dataset, 8, 0, shuffle=True, whole=False)]
    assert [im.shape for im, _ in made] == [(2, 3, 128, 128), (1, 3, 128, 128)]
    assert all(t[:, 2:].max() <= 1 for _, t in made)


def test_rescale_covers_half_to_one_and_a_half() -> None:
    images = torch.rand(1, 3, 64, 96)
    shapes = {tuple(rescale(images, 96, 32, np.random.default_rng(k)).shape[2:]) for k in range(40)}
    assert shapes == {(64, 64), (64, 96), (96, 128)} and rescale(images, 96, 32, np.random.default_rng(1)).dim() == 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere as Python has it")
def test_loader_processes_share_the_memory_of_the_main_one(index: LabelIndex) -> None:
    """Whatever Python's default is: others get a copy of the data set, with all cached images, each."""
    dataset = DetectionDataset(index, 64, 4)
    assert create_loader(dataset, 4, 1, shuffle=False).multiprocessing_context.get_start_method() == "fork"
    assert create_loader(dataset, 4, 0, shuffle=False).multiprocessing_context is None
