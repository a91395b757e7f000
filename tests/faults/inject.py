"""Run train.py as a user would, and inject a fault at the start of an epoch: python inject.py FAULT EPOCH [flags].

    vanish       rename the folder of training images
    spoil        make one training image unreadable
    resize       replace one training image by one of a different size
    kill-worker  kill a worker process, as Linux does when memory runs out
    kill-in-step kill a worker process during a training step
    nan          replace the pixels of the next batch by NaN
    read-only    remount the run's file system read-only (it must be a separate mount)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch

import train
from models.run import step
from models.run.setup import Run
from utils.system.console import run_script
from utils.system.signals import StopRequest


def first_image(run: Run) -> Path:
    return Path(run.loader.dataset.index.file(0))


def vanish(run: Run) -> None:
    folder = first_image(run).parent
    folder.rename(folder.with_name("gone"))


def spoil(run: Run) -> None:
    first_image(run).write_bytes(b"not a picture any more")


def resize(run: Run) -> None:
    cv2.imwrite(str(first_image(run)), np.full((50, 400, 3), 99, np.uint8))


def kill_worker(run: Run) -> None:
    os.kill(run.loader._iterator._workers[0].pid, signal.SIGKILL)


def kill_in_step(run: Run) -> None:
    def killing(*args: object) -> torch.Tensor:
        step.to_input = real
        kill_worker(run)
        time.sleep(1)  # time for the SIGCHLD of the killed process to arrive
        return real(*args)

    real, step.to_input = step.to_input, killing


def nan(run: Run) -> None:
    def spoiled(images: torch.Tensor, *rest: object) -> torch.Tensor:
        return real(images, *rest) * float("nan")

    real, step.to_input = step.to_input, spoiled


def read_only(run: Run) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(run.folder.parent)], check=True)


FAULTS: dict[str, Callable[[Run], None]] = {
    "vanish": vanish, "spoil": spoil, "resize": resize, "nan": nan, "kill-worker": kill_worker,
    "kill-in-step": kill_in_step, "read-only": read_only,
}  # fmt: skip


def main() -> None:
    """Hook the fault into the training loop and run train.py."""
    fault, epoch = FAULTS[sys.argv.pop(1)], int(sys.argv.pop(1))
    real = train.train_epoch

    def hooked(run: Run, stop: StopRequest) -> None:
        if run.state.epoch == epoch and not run.state.batch:
            fault(run)
        real(run, stop)

    train.train_epoch = hooked
    run_script(train.main, train.parse_opt())


if __name__ == "__main__":
    main()
