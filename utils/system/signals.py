"""Handle Ctrl-C as a request to stop at the next point from which the run can be resumed."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from utils.system.processes import is_main

NOTICE = b"\nstopping after this batch; press Ctrl-C again to stop at once, without saving\n"


class StopRequest:
    """A context in which Ctrl-C and SIGTERM set `requested`; a second Ctrl-C raises KeyboardInterrupt at once.

    Has no effect outside the main thread, because Python handles signals there only.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested and number == signal.SIGINT and is_main():
            os.write(2, NOTICE)  # not the logger or a stream: the signal may have interrupted them
        self.requested = True
