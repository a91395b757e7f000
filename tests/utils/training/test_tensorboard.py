"""The event file holds what was added, and a missing package costs one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from utils.data.images import read_image, write_image
from utils.errors import UserError
from utils.training.tensorboard import TensorBoardLog

NAMES = ("train/box_loss", "metrics/mAP_0.5")


def read(folder: Path):
    """What TensorBoard itself reads from a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder)).Reload()


def test_scalars_are_there_while_the_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = TensorBoardLog(tmp_path)
    log.add(0, NAMES, (0.5, 0.125))
    log.add(1, NAMES, np.array([0.25, 0.75], dtype=np.float32))
    events = read(tmp_path)
    log.close()
    assert sorted(events.Tags()["scalars"]) == sorted(NAMES)
    seen = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in NAMES}
    assert seen == {NAMES[0]: [(0, 0.5), (1, 0.25)], NAMES[1]: [(0, 0.125), (1, 0.75)]}


def test_resumed_run_replaces_the_epochs_it_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for start, values in ((0, (1.0, 2.0, 3.0)), (1, (20.0, 30.0))):
        log = TensorBoardLog(tmp_path, from_epoch=start)
        for epoch, value in enumerate(values, start):
            log.add(epoch, NAMES[:1], [value])
        log.close()
    seen = [(e.step, e.value) for e in read(tmp_path).Scalars(NAMES[0])]
    assert seen == [(0, 1.0), (1, 20.0), (2, 30.0)]


def test_pictures_keep_their_colours(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:, :4] = (255, 0, 0)  # blue, as OpenCV counts
    write_image(tmp_path / "a.png", picture)
    log = TensorBoardLog(tmp_path / "log")
    log.image("batch", tmp_path / "a.png")
    with pytest.raises(UserError, match=r"none\.png: No such file"):
        log.image("batch", tmp_path / "none.png")
    log.close()
    (shown,) = read(tmp_path / "log").Images("batch")
    (tmp_path / "b.png").write_bytes(shown.encoded_image_string)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), picture)


def test_names_and_values_must_be_as_many(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = TensorBoardLog(tmp_path)
    with pytest.raises(ValueError):
        log.add(0, NAMES, [1.0])
    log.close()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: TensorBoard's file cannot be written"):
        TensorBoardLog(tmp_path / "file")


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError) as e:
        TensorBoardLog(tmp_path)
    assert str(e.value) == "--tensorboard needs the package tensorboard: pip install tensorboard"
    assert list(tmp_path.iterdir()) == []
