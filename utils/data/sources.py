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
from utils.data.images import ImageError, decode_image, is_deep, read_content
from utils.errors import UserError, shorten
from utils.files import (
    IMAGE_SUFFIXES,
    LARGEST_LIST,
    UNREADABLE_SUFFIXES,
    VIDEO_SUFFIXES,
    is_hidden,
    read_file,
)
from utils.system.console import LOGGER, printable
from utils.system.opencv import cv2

STREAM_SCHEMES = ("rtsp", "rtmp", "tcp", "udp", "http", "https")
LISTED_SCHEMES = (*STREAM_SCHEMES, "rtsps", "rtmps", "rtp", "srt", "mms")  # allowed in a .streams file
RECONNECTS = 3
MOST_FAILED = 1000  # frames in a row that cannot be decoded; after the end of a file this many attempts take 0.1 s
MOST_FRAMES = 2**31  # in a header; larger numbers are nonsense, as in a file without a duration
NO_SCREENSHOTS = "--source {}: screenshots are not supported; record a video and give its file"


def scheme_of(text: str) -> str:
    """Return the scheme of a URL in lower case, or an empty string if the text has none."""
    try:
        return urlsplit(text).scheme
    except ValueError:  # such as http://[
        return ""


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
    scheme = scheme_of(source)
    suffix = Path(urlsplit(source).path if scheme in STREAM_SCHEMES else source).suffix.lower()
    if source.startswith("screen"):
        raise UserError(NO_SCREENSHOTS.format(source))
    if scheme in ("http", "https") and suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        from utils.system.download import download  # rarely used

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
    if path.suffix.lower() == ".txt" and os.path.isfile(path):  # not path.is_file(), which raises for a long name
        try:
            lines = [line.strip() for line in read_file(path, LARGEST_LIST).decode("utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise UserError(f"--source {source}: a list of files must be a text file in UTF-8") from None
        except OSError as e:
            raise UserError(f"--source {source}: {e.strerror}") from e
        files = _listed(path, lines)
    elif os.path.isdir(path):
        files = [str(p) for p in sorted(path.iterdir()) if not is_hidden(p.name) and p.is_file()]
        if unknown := [f for f in files if Path(f).suffix.lower() in UNREADABLE_SUFFIXES]:
            LOGGER.warning(f"--source {source}: images in formats that cannot be read: {len(unknown)}, such as "
                           f"{Path(unknown[0]).name}; convert them to .jpg or .png")  # fmt: skip
    elif os.path.isfile(path):
        files = [str(path)]
        if path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            raise UserError(f"--source {source}: '{path.suffix}' is not a known image or video format; known: "
                            f"{' '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))}")  # fmt: skip
    else:
        files = sorted(glob.glob(source, recursive=True))
        if not files:
            raise UserError(f"--source {source}: no such file or folder, and no file matches it as a pattern")
    media = [f for f in files if Path(f).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and os.path.isfile(f)]
    if not media:
        raise UserError(f"--source {source}: contains no image or video")
    return media


def _listed(path: Path, lines: list[str]) -> list[str]:
    """Return the files that a list names; logs in one line for each kind which lines are left out.

    Raises UserError if all of them are streams, which are read from a `.streams` file.
    """
    files, missing, streams = [], [], []
    for number, line in enumerate(lines, 1):
        file = str(path.parent / line)
        if os.path.isfile(file):
            files.append(file)
        elif scheme_of(line) in LISTED_SCHEMES and Path(urlsplit(line).path).suffix.lower() in IMAGE_SUFFIXES:
            missing.append(f"{shorten(line)} is a URL, which a list of images cannot contain")
        elif scheme_of(line) in LISTED_SCHEMES or line.isdecimal():
            streams.append(f"line {number}: {shorten(line)}")
        elif line:
            missing.append(f"{shorten(file)} {'is not a regular file' if os.path.exists(file) else 'does not exist'}")
    total = len(files) + len(missing) + len(streams)
    hint = f"name it .streams, as in --source {path.with_suffix('.streams')}"
    if streams and len(streams) == total:
        raise UserError(f"--source {path}: contains streams, not files ({streams[0]}); {hint}")
    if streams:
        LOGGER.warning(f"{path}: {len(streams)} of {total} lines are streams and skipped ({streams[0]}); {hint}")
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        LOGGER.warning(f"{path}: skipped {len(missing)} of {total} lines: {missing[0]}{more}")
    return files


class LoadScreenshots:
    """Raises UserError: screenshots are not supported. The class exists because YOLOv5's scripts import it."""

    def __init__(self, source: str, *_args: object, **_options: object) -> None:
        raise UserError(NO_SCREENSHOTS.format(source))


class Video:
    """Reads the frames of a video file one by one, and continues after frames that cannot be decoded.

    number: of the frame grabbed last, from 1, including frames that could not be decoded. good: number of frames that
    could. total: number of frames according to the file's header, 0 if it does not say. attempts: how many frames in a
    row may fail to decode.
    """

    def __init__(self, capture: cv2.VideoCapture, attempts: int = MOST_FAILED) -> None:
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.capture, self.attempts, self.total = capture, attempts, int(count) if 0 < count < MOST_FRAMES else 0
        self.number = self.good = 0

    def grab(self) -> bool:
        """Move to the next frame that can be decoded. Return False at the end of the video."""
        for passed in range(1, self.attempts + 1):
            if self.capture.grab():
                self.number, self.good = self.number + passed, self.good + 1
                return True
            if 0 < self.total <= self.number + passed:
                break
        return False

    def retrieve(self) -> np.ndarray | None:
        """Return the frame grabbed last, (h, w, 3) uint8 BGR, or None if it is damaged."""
        good, im0 = self.capture.retrieve()
        self.good -= not good
        return im0 if good else None

    @property
    def lost(self) -> int:
        """The number of frames that could not be read, after the end of the video."""
        return max(self.total, self.number) - self.good

    def __str__(self) -> str:
        text = f"{self.good} of {max(self.total, self.number)} frames"
        end = f"; the file ends after frame {self.number}" if self.number < self.total else ""
        return f"{text} could be read{end}" if self.lost else text


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Return the frames per second of a video, or 30 if its header gives none or an impossible value."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 0 < fps <= 1000 else 30.0


class LoadImages:
    """Yields images and the frames of video files one by one; unreadable files are skipped with a warning."""

    def __init__(
        self, path: str, img_size: int | list[int] = 640, stride: int = 32, auto: bool = True, vid_stride: int = 1
    ) -> None:
        self.files = list_media(str(path))
        self.img_size, self.stride, self.auto, self.vid_stride = img_size, stride, auto, max(vid_stride, 1)
        self.skipped: list[str] = []
        self.frames_read = self.frames_lost = 0  # of all videos so far
        self.mode = "image"  # kind of the frame yielded last: image or video
        self.frame = 0  # number of that frame in its video, from 1
        self.scaled = 0  # number of images with 16 bits per channel
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
                content = read_content(path)
                im0 = decode_image(content)
            except ImageError as e:
                self._skip(path, str(e))
                continue
            self.scaled += is_deep(content)
            self.mode, self.frame = "image", 0
            im = network_input(im0, self.img_size, self.stride, self.auto)
            yield path, im, im0, None, f"image {where} {printable(path)}: "

    def _video(self, path: str, where: str) -> Iterator[tuple]:
        capture = cv2.VideoCapture(path)
        video, shown = Video(capture), 0
        of_total = f"/{video.total}" if video.total else ""
        self.frame = 0
        try:
            while video.grab():
                if (video.number - 1) % self.vid_stride or (im0 := video.retrieve()) is None:
                    continue
                self.frame, self.mode, shown = video.number, "video", shown + 1
                text = f"video {where} ({self.frame}{of_total}) {printable(path)}: "
                yield path, network_input(im0, self.img_size, self.stride, self.auto), im0, capture, text
        finally:
            capture.release()
        if not shown:
            why = "is empty" if not os.path.getsize(path) else "is cut off, damaged or in a format unknown to OpenCV"
            self._skip(path, f"no frame could be read from this video; the file {why}")
            return
        self.frames_read, self.frames_lost = self.frames_read + video.good, self.frames_lost + video.lost
        used = f", {shown} of them used (--vid-stride {self.vid_stride})" if self.vid_stride > 1 else ""
        log = LOGGER.warning if video.lost else LOGGER.info
        log(f"video {where} {printable(path)}: {video}{used}")

    def left_out(self) -> str:
        """Return the numbers of unreadable files, readable video frames and scaled images, as the end of a sentence."""
        files = f"; {len(self.skipped)} could not be read" if self.skipped else ""
        frames = f"; {self.frames_read} of {self.frames_read + self.frames_lost} frames of videos could be read"
        scaled = f"; {self.scaled} images of 16 bits per channel were scaled to 8 by the range that each uses"
        return files + (frames if self.frames_lost else "") + (scaled if self.scaled else "")

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
        # a camera or an address gets one attempt, after which it is connected again
        self._videos = [Video(capture, MOST_FAILED if os.path.isfile(source) and not source.isdecimal() else 1)
                        for source, capture in zip(listed, self.captures, strict=True)]  # fmt: skip
        for i, video in enumerate(self._videos):
            self._frames[i] = video.retrieve() if video.grab() else None
            if self._frames[i] is None:
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
        known = source.isdecimal() or scheme_of(source) in LISTED_SCHEMES or os.path.exists(source)
        if not known:
            raise UserError(f"--source {shorten(source)}: not a stream ({', '.join(LISTED_SCHEMES)}), webcam or file")
        capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
        if not capture.isOpened():
            kind = "webcam" if source.isdecimal() else "stream"
            raise UserError(f"--source {source}: this {kind} cannot be opened; is it there, and not in use elsewhere?")
        return capture

    def _read(self, i: int) -> None:
        """Keep the newest frame of stream i until it ends."""
        capture, video, count, failures = self.captures[i], self._videos[i], 0, 0
        live = self.sources[i].isdecimal() or scheme_of(self.sources[i]) in STREAM_SCHEMES
        while not self._stop.is_set():
            if not video.grab():
                failures += 1
                if not live and video.lost:
                    LOGGER.warning(f"stream {i} {self.sources[i]}: {video}")
                if not live or failures > RECONNECTS:
                    break
                LOGGER.warning(f"stream {self.sources[i]} does not respond; reconnecting ({failures}/{RECONNECTS})")
                time.sleep(1)
                capture.open(int(self.sources[i]) if self.sources[i].isdecimal() else self.sources[i])
                continue
            count += 1
            if count % self.vid_stride:
                continue
            if (frame := video.retrieve()) is None:
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
                if len({im.shape for im in inputs}) > 1:  # a stream has changed its size
                    self.auto = False
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
