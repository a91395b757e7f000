"""The sources of detect.py: images, folders, globs, lists, videos, webcams and network streams.

Both loaders yield the same tuples as YOLOv5's: (path, im, im0, capture, text), with `im` uint8 RGB letterboxed for the
model and `im0` the original frame, (h, w, 3) uint8 BGR.
"""

from __future__ import annotations

import glob
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from utils.data.augment import letterbox
from utils.data.images import ImageError, read_image
from utils.errors import UserError, shorten
from utils.files import IMAGE_SUFFIXES, LARGEST_LIST, VIDEO_SUFFIXES, no_file, read_file
from utils.system.console import LOGGER, printable
from utils.system.download import download
from utils.system.opencv import cv2

STREAM_SCHEMES = ("rtsp", "rtmp", "tcp", "udp", "http", "https")
LISTED_SCHEMES = (*STREAM_SCHEMES, "rtsps", "rtmps", "rtp", "srt", "mms")  # allowed in a .streams file
RECONNECTS = 3
NO_SCREENSHOTS = "--source {}: screenshots are not supported; record a video and give its file"


def network_input(im0: np.ndarray, imgsz: int | list[int], stride: int, auto: bool) -> np.ndarray:
    """Letterbox a frame (h, w, 3) BGR to (3, h', w') uint8 RGB, channels-last in memory."""
    size = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
    im = letterbox(im0, size, stride=stride, auto=auto)[0]
    return cv2.cvtColor(im, cv2.COLOR_BGR2RGB).transpose(2, 0, 1)


def open_source(
    source: str, imgsz: int | list[int] = 640, stride: int = 32, auto: bool = True, vid_stride: int = 1
) -> LoadImages | LoadStreams:
    """Open a `--source`. Raises UserError with the source in the message if it does not exist or is unsupported."""
    source = str(source).strip()
    scheme = urlsplit(source).scheme.lower()
    suffix = Path(urlsplit(source).path if scheme in STREAM_SCHEMES else source).suffix.lower()
    if source.startswith("screen"):
        raise UserError(NO_SCREENSHOTS.format(source))
    if scheme in ("http", "https") and suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        folder = tempfile.TemporaryDirectory(prefix="detect-")
        file = download(source, Path(folder.name) / Path(urlsplit(source).path).name)
        loader = LoadImages(str(file), imgsz, stride, auto, vid_stride)
        loader.folder = folder  # removed together with the loader
        return loader
    if source.isdecimal() or suffix == ".streams" or scheme in STREAM_SCHEMES:
        return LoadStreams(source, imgsz, stride, auto, vid_stride)
    return LoadImages(source, imgsz, stride, auto, vid_stride)


def list_media(source: str) -> list[str]:
    """Return the image and video files of a file, folder, glob or .txt list. Raises UserError if there are none."""
    path = Path(source)
    if path.suffix.lower() == ".txt" and path.is_file():
        try:
            lines = [line.strip() for line in read_file(path, LARGEST_LIST).decode("utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise UserError(f"--source {source}: a list of files must be a text file in UTF-8") from None
        except OSError as e:
            raise UserError(f"--source {source}: {e.strerror}") from e
        files = [str(path.parent / line) for line in lines if line]
        for file in files:
            if why := no_file(file):
                LOGGER.warning(f"{source}: {file} {why}; skipped")
    elif path.is_dir():
        files = [str(p) for p in sorted(path.iterdir()) if p.is_file()]
    elif path.is_file():
        files = [str(path)]
        if path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            raise UserError(f"--source {source}: '{path.suffix}' is not a known image or video format; known: "
                            f"{' '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))}")  # fmt: skip
    else:
        files = sorted(glob.glob(source, recursive=True))
        if not files:
            raise UserError(f"--source {source}: no such file or folder, and no file matches it as a pattern")
    media = [f for f in files if Path(f).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and Path(f).is_file()]
    if not media:
        raise UserError(f"--source {source}: contains no image or video")
    return media


class LoadScreenshots:
    """Raises UserError: screenshots are not supported. The class exists because YOLOv5's scripts import it."""

    def __init__(self, source: str, *_args: object, **_options: object) -> None:
        raise UserError(NO_SCREENSHOTS.format(source))


class LoadImages:
    """Yields images and the frames of video files one by one; unreadable files are skipped with a warning."""

    def __init__(
        self, path: str, img_size: int | list[int] = 640, stride: int = 32, auto: bool = True, vid_stride: int = 1
    ) -> None:
        self.files = list_media(str(path))
        self.img_size, self.stride, self.auto, self.vid_stride = img_size, stride, auto, max(vid_stride, 1)
        self.skipped: list[str] = []
        self.mode = "image"  # kind of the frame yielded last: image or video
        self.frame = 0  # number of that frame in its video, from 1
        self.folder: tempfile.TemporaryDirectory | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def frames(self) -> int | None:
        """The largest possible number of frames; None if any of the files is a video."""
        return None if any(Path(f).suffix.lower() in VIDEO_SUFFIXES for f in self.files) else len(self.files)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, np.ndarray, cv2.VideoCapture | None, str]]:
        for number, path in enumerate(self.files, 1):
            where = f"{number}/{len(self.files)}"
            if Path(path).suffix.lower() in VIDEO_SUFFIXES:
                yield from self._video(path, where)
                continue
            try:
                im0 = read_image(path)
            except ImageError as e:
                self._skip(path, str(e))
                continue
            self.mode, self.frame = "image", 0
            im = network_input(im0, self.img_size, self.stride, self.auto)
            yield path, im, im0, None, f"image {where} {printable(path)}: "

    def _video(self, path: str, where: str) -> Iterator[tuple]:
        capture = cv2.VideoCapture(path)
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame = 0
        shown = False
        try:
            while capture.grab():
                self.frame += 1
                if (self.frame - 1) % self.vid_stride:
                    continue
                good, im0 = capture.retrieve()
                if not good:
                    continue
                self.mode, shown = "video", True
                text = f"video {where} ({self.frame}/{total}) {printable(path)}: "
                yield path, network_input(im0, self.img_size, self.stride, self.auto), im0, capture, text
        finally:
            capture.release()
        if not shown:
            self._skip(path, "no frame could be read from this video")

    def _skip(self, path: str, reason: str) -> None:
        self.skipped.append(path)
        LOGGER.warning(f"skipped {path}: {reason}")


class LoadStreams:
    """Reads webcams (by number) and network streams, each in its own thread; yields the newest frame of each.

    sources: one webcam or stream, or a `.streams` or text file that lists several. A video file also counts as a
    stream. Iteration ends when all streams have ended.
    """

    mode = "stream"

    def __init__(
        self, sources: str, img_size: int | list[int] = 640, stride: int = 32, auto: bool = True, vid_stride: int = 1
    ) -> None:
        path = Path(sources)
        is_list = path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES
        try:
            listed = read_file(path, LARGEST_LIST).decode("utf-8-sig").split() if is_list else [str(sources)]
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"--source {sources}: cannot be read as a list of streams ({e})") from e
        if not listed:
            raise UserError(f"--source {sources}: the file lists no streams")
        self.sources = listed
        self.img_size, self.stride, self.vid_stride = img_size, stride, max(vid_stride, 1)
        self.frame = 0
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._frames: list[np.ndarray | None] = [None] * len(listed)
        self._fresh = [False] * len(listed)
        self.captures = [self._open(s) for s in listed]
        for i, capture in enumerate(self.captures):
            good, self._frames[i] = capture.read()
            if not good:
                raise UserError(f"--source {listed[i]}: opened, but no frame could be read from it")
            self._fresh[i] = True
        shapes = {network_input(f, img_size, stride, auto).shape for f in self._frames}
        self.auto = auto and len(shapes) == 1  # frames of different shapes are padded to the full size
        self._threads = [threading.Thread(target=self._read, args=(i,), daemon=True) for i in range(len(listed))]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _open(source: str) -> cv2.VideoCapture:
        # OpenCV may run any other text as a GStreamer pipeline, which can also write files
        known = source.isdecimal() or urlsplit(source).scheme.lower() in LISTED_SCHEMES or os.path.exists(source)
        if not known:
            raise UserError(f"--source {shorten(source)}: not a stream ({', '.join(LISTED_SCHEMES)}), webcam or file")
        capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
        if not capture.isOpened():
            kind = "webcam" if source.isdecimal() else "stream"
            raise UserError(f"--source {source}: this {kind} cannot be opened; is it there, and not in use elsewhere?")
        return capture

    def _read(self, i: int) -> None:
        """Keep the newest frame of stream i until it ends."""
        capture, count, failures = self.captures[i], 0, 0
        live = self.sources[i].isdecimal() or urlsplit(self.sources[i]).scheme in STREAM_SCHEMES
        while not self._stop.is_set():
            if not capture.grab():
                failures += 1
                if not live or failures > RECONNECTS:
                    break
                LOGGER.warning(f"stream {self.sources[i]} does not respond; reconnecting ({failures}/{RECONNECTS})")
                time.sleep(1)
                capture.open(int(self.sources[i]) if self.sources[i].isdecimal() else self.sources[i])
                continue
            count += 1
            if count % self.vid_stride:
                continue
            good, frame = capture.retrieve()
            if not good:
                continue
            failures = 0
            with self._changed:
                # a file waits until its last frame has been taken; a live stream drops frames instead
                while not live and self._fresh[i] and not self._stop.is_set():
                    self._changed.wait(0.1)
                self._frames[i], self._fresh[i] = frame, True
                self._changed.notify_all()
        capture.release()
        with self._changed:
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[tuple[list[str], np.ndarray, list[np.ndarray], None, str]]:
        try:
            while True:
                with self._changed:
                    while not any(self._fresh) and any(t.is_alive() for t in self._threads):
                        self._changed.wait(0.1)
                    if not any(self._fresh):
                        return
                    frames = [f.copy() for f in self._frames]
                    self._fresh = [False] * len(frames)
                    self._changed.notify_all()
                self.frame += 1
                inputs = [network_input(f, self.img_size, self.stride, self.auto) for f in frames]
                batch = np.stack([im.transpose(1, 2, 0) for im in inputs]).transpose(0, 3, 1, 2)
                yield self.sources, batch, frames, None, ""
        finally:
            self.close()

    @property
    def count(self) -> int:
        """The index of the batch yielded last, from 0."""
        return self.frame - 1

    def close(self) -> None:
        """Stop the reading threads and release the cameras."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2)
