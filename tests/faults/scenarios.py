"""Run train.py as a user would, break something during the training, and check and describe the result.

    python tests/faults/scenarios.py    # run all scenarios and print a table

Scenarios that need a small or read-only disk mount one in their own mount namespace, which Linux allows only for root.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (2, 1)]

from forked import Done, finish, run, start
from helpers import write_yolo_set

from models.weights.checkpoint import load_checkpoint
from my_tools.check_resume import differences

CLONE_NEWNS = 0x20000  # from Linux's sched.h
INJECT = Path(__file__).with_name("inject.py")


class NotHere(Exception):
    """The scenario cannot run on this machine; the message gives the reason."""


def mounting(*options: str) -> Callable[[], None]:
    """Return a function that gives the calling process private mounts. Raises NotHere if mounting is not allowed."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        raise NotHere("needs permission to mount file systems")

    def mount() -> None:
        assert not ctypes.CDLL(None).unshare(CLONE_NEWNS)
        for words in ("--make-rprivate /", *options):
            subprocess.run(["mount", *words.split()], check=True)

    return mount


def lines_with(done: Done, words: str) -> list[str]:
    """Return the output lines that contain these words."""
    return [line.strip() for line in done.text.replace("\r", "\n").splitlines() if words in line]


def flags(folder: Path, name: str = "run", **more: object) -> list[str]:
    """Return train.py's flags for a short run on a small dataset, which is created first if it is missing."""
    if not (folder / "set").exists():
        write_yolo_set(folder / "set", 100)  # more images than the loader keeps decoded
    options = {"data": folder / "set/squares.yaml", "epochs": 3, "batch_size": 16, "imgsz": 64, "workers": 1,
               "project": folder / "runs", "name": name, "device": "cpu", "noplots": True, **more}  # fmt: skip
    words: list[str] = []
    for key, value in options.items():
        words += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return words


def resumed_like_undisturbed(folder: Path) -> str:
    """Resume an interrupted run and check that it ends like an uninterrupted one."""
    done = run("train.py", "--resume", folder / "runs/run")
    assert done.code == 0, done.text
    assert differences(left_alone(), folder / "runs/run") == []
    return "; the resumed run ends bit-identical to an uninterrupted one"


@functools.cache
def left_alone() -> Path:
    """Return the folder of an uninterrupted run with the flags that the scenarios use."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert run("train.py", *flags(folder)).code == 0
    return folder / "runs/run"


def readable(folder: Path) -> str:
    """Check that last.pt is intact and no partly written file remains; return the epoch at which it continues."""
    content = load_checkpoint(folder / "weights/last.pt", training=True)
    assert not list(folder.rglob("*.part"))
    return f"; last.pt continues at epoch {content['training']['epoch']}"


def data_set_vanishes(folder: Path) -> str:
    done = run(INJECT, "vanish", 1, *flags(folder))
    assert done.code == 1 and "is the disk that holds the dataset still there?" in done.last, done.text
    assert "to resume: python train.py --resume" in done.last
    told = done.last + readable(folder / "runs/run")
    (folder / "set/images/gone").rename(folder / "set/images/train")
    return told + resumed_like_undisturbed(folder)


def image_becomes_unreadable(folder: Path) -> str:
    done = run(INJECT, "spoil", 2, *flags(folder))
    warnings = lines_with(done, "a grey image takes its place and its labels are ignored")
    assert done.code == 0 and warnings, done.text
    return f"{warnings[0]}; the training is completed"


def image_is_replaced(folder: Path) -> str:
    done = run(INJECT, "resize", 1, *flags(folder))
    assert done.code == 0 and "has changed its size" in done.text, done.text
    return f"{lines_with(done, 'has changed its size')[0]}; the training is completed"


def worker_is_killed(folder: Path) -> str:
    done = run(INJECT, "kill-worker", 1, *flags(folder))
    assert done.code == 1 and "a process that loads images has ended" in done.last, done.text
    return done.last + readable(folder / "runs/run")


def worker_is_killed_in_a_step(folder: Path) -> str:
    done = run(INJECT, "kill-in-step", 1, *flags(folder))
    assert done.code == 1 and "a process that loads images has ended" in done.last, done.text
    return done.last + readable(folder / "runs/run") + resumed_like_undisturbed(folder)


def batch_is_nan(folder: Path) -> str:
    done = run(INJECT, "nan", 1, *flags(folder))
    assert done.code == 1 and "the loss is nan in epoch 1, batch 0" in done.last, done.text
    assert (folder / "runs/run/bad_batch.jpg").exists()
    return done.last + readable(folder / "runs/run")


def disk_is_full(folder: Path) -> str:
    (folder / "runs").mkdir()
    words = flags(folder)
    done = run("train.py", *words, "--save-period", 1, before=mounting(f"-t tmpfs -o size=24m tmpfs {folder}/runs"),
               after=lambda: shutil.copytree(folder / "runs/run", folder / "kept"))  # fmt: skip
    assert done.code == 1 and "cannot be written (No space left on device)" in done.last, done.text
    return done.last + readable(folder / "kept")


def disk_becomes_read_only(folder: Path) -> str:
    (folder / "runs").mkdir()
    done = run(INJECT, "read-only", 1, *flags(folder), before=mounting(f"-t tmpfs -o size=99m tmpfs {folder}/runs"))
    assert done.code == 1 and "cannot be written (Read-only file system)" in done.last, done.text
    return done.last


def folder_is_read_only(folder: Path) -> str:
    (folder / "runs").mkdir()
    done = run("train.py", *flags(folder), before=mounting(f"-t tmpfs -o ro tmpfs {folder}/runs"))
    assert done.code == 1 and "choose another --project" in done.last, done.text
    return done.last


def shared_memory_is_full(folder: Path) -> str:
    words = flags(folder, imgsz=640)
    done = run("train.py", *words, before=mounting("-t tmpfs -o size=1m tmpfs /dev/shm"))
    assert done.code == 1 and "--workers 0" in done.last and "--shm-size" in done.last, done.text
    return done.last + readable(folder / "runs/run")


def two_runs_at_once(folder: Path) -> str:
    words = ["train.py", *flags(folder, epochs=1)]
    pair = [start(*words), start(*words)]
    assert [finish(p).code for p in pair] == [0, 0]
    names = sorted(p.name for p in (folder / "runs").iterdir())
    assert names == ["run", "run2"] and all((folder / "runs" / n / "weights/best.pt").exists() for n in names)
    return f"two folders, {names[0]} and {names[1]}; both trainings are completed"


def two_conversions_at_once(folder: Path) -> str:
    source = folder / "VOC"
    for name in ("Annotations", "JPEGImages"):
        (source / name).mkdir(parents=True)
    write_yolo_set(folder / "set", 60)
    for k in range(60):
        shutil.copy(folder / f"set/images/train/{k:03d}.png", source / f"JPEGImages/{k:03d}.png")
        (source / f"Annotations/{k:03d}.xml").write_text(
            "<annotation><object><name>dog</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>50</xmax><ymax>60</ymax>"
            "</bndbox></object></annotation>")  # fmt: skip
    words = ["my_tools/voc2yolo.py", "--source", source, "--name", "dogs", "--out"]
    alone = start(*words, folder / "alone")
    assert finish(alone).code == 0
    pair = [finish(p) for p in [start(*words, folder / "both"), start(*words, folder / "both")]]
    assert [done.code for done in pair] == [0, 0], "".join(done.text for done in pair)
    for part in ("images", "labels"):
        found = [{p.relative_to(folder / out).as_posix(): p.read_bytes() for p in (folder / out / part).rglob("*.*")}
                 for out in ("alone", "both")]  # fmt: skip
        assert found[0] == found[1] and len(found[0]) == 60
    return "the same files as from a single conversion"


SCENARIOS: dict[str, Callable[[Path], str]] = {
    "the folder of training images disappears in epoch 1": data_set_vanishes,
    "an image becomes unreadable in epoch 2": image_becomes_unreadable,
    "an image is replaced by one of a different size": image_is_replaced,
    "a worker process is killed while the training waits for a batch": worker_is_killed,
    "a worker process is killed during a training step": worker_is_killed_in_a_step,
    "the pixels of a batch become NaN": batch_is_nan,
    "the disk with the run folder is full": disk_is_full,
    "the disk with the run folder becomes read-only": disk_becomes_read_only,
    "the project folder is read-only": folder_is_read_only,
    "/dev/shm has only 1 MiB": shared_memory_is_full,
    "two runs with the same name start in the same second": two_runs_at_once,
    "two processes convert the same VOC dataset at the same time": two_conversions_at_once,
}


@contextmanager
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    """Run all scenarios and print one table row for each."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| what breaks | what happens |\n| --- | --- |")
    for what, scenario in SCENARIOS.items():
        with place() as folder:
            try:
                told = scenario(folder)
            except NotHere as e:
                told = f"not run: {e}"
            print(f"| {what} | {told.replace(str(folder), '...')} |", flush=True)


if __name__ == "__main__":
    main()
