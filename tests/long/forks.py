"""Count how often a forked process hangs on a lock of OpenCV, without and with the precaution that `Loader` takes.

    python tests/long/forks.py --forks 6000

Threads that use OpenCV start and end, like the threads that scan labels, while processes that use OpenCV are forked:
first from a thread that has never used OpenCV, then from the same thread after `Loader` has called OpenCV in it.
For Linux with Python below 3.14.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import cv2
import numpy as np

from utils.data.loader import Loader

PATIENCE = 2.0  # seconds


def use() -> None:
    cv2.copyMakeBorder(np.zeros((8, 8, 3), np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)


def hangs(forks: int, most: int = 5) -> tuple[int, int]:
    """Fork processes that use OpenCV while threads start and end; return how many were forked and how many hung."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            threads = [threading.Thread(target=use) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    churn = threading.Thread(target=come_and_go)
    churn.start()
    hung = done = 0
    while done < forks and hung < most:
        done += 1
        pid = os.fork()
        if not pid:
            use()
            os._exit(0)
        end = time.monotonic() + PATIENCE
        while not os.waitpid(pid, os.WNOHANG)[0]:
            if time.monotonic() > end:
                hung += 1
                os.kill(pid, signal.SIGKILL)
                end += PATIENCE
            time.sleep(0.0005)
    stop.set()
    churn.join()
    return done, hung


def main() -> None:
    """Fork processes without and with the precaution and print both counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forks", type=int, default=6000)
    opt = parser.parse_args()
    done, hung = hangs(opt.forks)
    print(f"from a thread that has never used OpenCV: {hung} of {done} processes hung", flush=True)
    list(Loader([0], num_workers=0))
    done, hung = hangs(opt.forks)
    print(f"from the same thread after Loader: {hung} of {done} processes hung", flush=True)


if __name__ == "__main__":
    main()
