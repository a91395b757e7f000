"""Detect objects in images, videos and streams.

    python detect.py                                                # the newest run's best.pt on data/images
    python detect.py --weights best.pt --source street.mp4          # or a folder, 'a/*.jpg', list.txt, 0 (webcam), rtsp://...
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from utils.files import ROOT
from utils.settings.flags import Parser, read_first
from utils.settings.options import AMP_CHOICES, ENGINE_CHOICES
from utils.settings.values import from_code


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    data, model, output, speed = map(parser.group, ("data", "model", "output", "speed"))
    data("--source", default=str(ROOT / "data/images"), shown="data/images",
         help="image, video, folder, glob pattern, text list, webcam number or URL")  # fmt: skip
    data("--imgsz", "--img", "--img-size", nargs="+", type=int, metavar="PX", shown="as trained",
         help="image size in pixels: one number, or height and width")  # fmt: skip
    data("--vid-stride", type=int, default=1, metavar="N", help="run on every Nth frame of a video or stream")
    model("--weights", default="", metavar="PT", shown="best.pt of the newest run",
          help="checkpoint or exported model")  # fmt: skip
    model("--conf-thres", type=float, default=0.25, metavar="X", help="drop detections with a lower confidence")
    model("--iou-thres", type=float, default=0.45, metavar="X",
          help="IoU threshold of NMS")  # fmt: skip
    model("--max-det", type=int, default=1000, metavar="N", help="maximum number of detections per image")
    model("--classes", nargs="+", type=int, metavar="N", shown="all", help="keep only these classes, such as 0 2 3")
    model("--agnostic-nms", action="store_true", help="let boxes of different classes suppress each other")
    model("--augment", action="store_true", help="test-time augmentation")
    parser.add_output("runs/detect")
    output("--nosave", action="store_true", help="write no images or videos")
    output("--view-img", action="store_true", help="show the results in a window")
    output("--save-txt", action="store_true", help="write labels/*.txt")
    output("--save-conf", action="store_true", help="include confidences in labels/*.txt")
    output("--save-crop", action="store_true", help="write each detected object as an image")
    output("--save-csv", action="store_true", help="write predictions.csv")
    output("--visualize", action="store_true", help="write the feature maps of every layer as images")
    output("--line-thickness", type=int, default=3, metavar="PX", help="width of the boxes' lines")
    output("--hide-labels", action="store_true", help="draw boxes without class names")
    output("--hide-conf", action="store_true", help="draw class names without confidences")
    parser.add_device()
    speed("--half", action="store_true", help="float16, on a GPU")
    speed("--amp", default="auto", choices=AMP_CHOICES,
          help="number format of the network; auto: bf16 on CPUs that support it, off: float32")  # fmt: skip
    speed("--engine", default="auto", choices=ENGINE_CHOICES,
          help="program that runs a checkpoint on a CPU; auto: the fastest one for many images")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import numpy as np
import torch
from torch import Tensor

from models.inference.engine import count_frames, load_fastest
from models.inference.output import Output
from models.inference.runtime import AnyRuntime, input_size, warm_up, weights_file
from utils.boxes import scale_boxes
from utils.data.sources import LoadImages, LoadStreams, frame_rate, open_source
from utils.draw.boxes import count_text
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression
from utils.files import distinct, increment_path, safe_name
from utils.system.background import InOrder, calls_at_a_time, opencv_on_one_thread, read_ahead, share_of, side_by_side
from utils.system.console import LOGGER, run_script
from utils.system.device import describe_device, select_device


def save_features(runtime: AnyRuntime, image: Tensor, folder: Path) -> None:
    """Write the feature maps of every layer for one image (1, 3, h, w), one file per layer."""
    from utils.draw.plots import plot_features  # rarely used

    handles = []
    for layer in runtime.model.model[:-1]:
        def draw(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
            plot_features(output[0], folder / f"stage{module.i}_{module.type}_features.png")

        handles.append(layer.register_forward_hook(draw))
    try:
        runtime.predict(image)
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Frames:
    """The input of one forward pass: an image, a frame of a video, or one frame of each stream."""

    batch: Tensor  # (b, 3, h, w) uint8 RGB, letterboxed
    originals: list[np.ndarray]
    paths: list[str]
    text: str
    mode: str
    number: int  # of the frame in the video, from 1
    fps: float
    seconds: float  # spent on reading and letterboxing


def read_frames(dataset: LoadImages | LoadStreams, vid_stride: int) -> Iterator[Frames]:
    """Yield the frames of a source with the information that later steps need."""
    start = time.perf_counter()
    for path, im, im0s, capture, text in dataset:
        streams = dataset.mode == "stream"
        # the same stream may be listed twice
        paths, originals = (distinct(path), im0s) if streams else ([path], [im0s])
        fps = max(frame_rate(capture) / vid_stride, 0.01) if capture else 30
        yield Frames(torch.from_numpy(im if streams else im[None]), originals, paths, text, dataset.mode, dataset.frame,
                     fps, time.perf_counter() - start)  # fmt: skip
        start = time.perf_counter()


class Seen(NamedTuple):
    """Processed frames, the detections on each (m, 6) in pixels of the original, seconds of inference and of NMS."""

    frames: Frames
    found: list[Tensor]
    seconds: tuple[float, float]
    share: float  # of torch's threads that this call used


def predict_all(
    runtime: AnyRuntime, source: str, size: list[int], out: Output, conf_thres: float, iou_thres: float, max_det: int,
    classes: list[int] | None, agnostic_nms: bool, augment: bool, visualize: bool, vid_stride: int,
) -> int:  # fmt: skip
    """Run the prediction loop and return the number of processed frames.

    On a CPU a few frames are processed in parallel. Meanwhile one thread reads the next frames, and another one writes
    the previous results.
    """
    def look(frames: Frames) -> Seen:
        start = time.perf_counter()
        if visualize:
            folder = out.features_folder(frames.paths[0], frames.mode, frames.number)
            folder.mkdir(exist_ok=True)
            save_features(runtime, frames.batch[:1], folder)
        prediction = runtime.predict(frames.batch, augment)
        predicted = time.perf_counter()
        detections = non_max_suppression(prediction, conf_thres, iou_thres, classes, agnostic_nms, max_det=max_det)
        seconds = predicted - start, time.perf_counter() - predicted
        return Seen(frames, [on_original(found.cpu(), frames.batch.shape[2:], im0) for found, im0 in
                             zip(detections, frames.originals, strict=True)], seconds, share_of(threads))  # fmt: skip

    count, seconds, threads = 0, np.zeros(3), torch.get_num_threads()
    dataset = open_source(source, size, runtime.stride, runtime.size is None, vid_stride)
    # a stream is already read in its own thread, and only its newest frame is wanted
    live = dataset.mode == "stream"
    for path in () if live else dataset.files:
        for names in (out.image_names, out.video_names, out.stems):
            names.reserve([Path(path).stem, safe_name(Path(path).stem)])
    every, at_a_time = read_frames(dataset, vid_stride), 1 if live or visualize else calls_at_a_time(runtime.device)
    every, total = (every, None) if live else (read_ahead(every), dataset.frames)
    first = list(islice(every, 1))
    for frames in first:  # the network is slow at its first image of each size
        warm_up(runtime, *frames.batch.shape[2:])
    start, every = time.perf_counter() - sum(frames.seconds for frames in first), chain(first, every)
    with opencv_on_one_thread(), InOrder() as writer, closing(side_by_side(look, every, at_a_time, total)) as seen:
        for frames, found, (predicting, suppressing), share in seen:
            seconds += (frames.seconds, predicting * share, suppressing * share)
            for k, (boxes, im0) in enumerate(zip(found, frames.originals, strict=True)):
                args = boxes, im0, frames.paths[k], frames.mode, frames.number, frames.fps
                if out.view_img:  # windows belong to the main thread
                    out.add(*args)
                else:
                    writer.add(out.add, *args)
                what = count_text(boxes[:, 5].tolist(), out.names) or "nothing"
                height, width = frames.batch.shape[2:]
                LOGGER.info(f"{frames.text or f'{k}: '}{height}x{width} {what}, {predicting * 1e3:.1f}ms")
                count += 1
    if count:
        steps = zip(("pre-process", "inference", "NMS"), seconds / count * 1e3, strict=True)
        left_out = "" if live else dataset.left_out()
        together = f" with {at_a_time} images at a time" if min(at_a_time, count) > 1 else ""
        LOGGER.info(f"speed per image: {', '.join(f'{v:.1f}ms {k}' for k, v in steps)}{together}; "
                    f"{count} in {time.perf_counter() - start:.1f} s with reading and writing{left_out}")  # fmt: skip
    return count


def on_original(found: Tensor, shape: Sequence[int], im0: np.ndarray) -> Tensor:
    """Scale detections (m, 6) from pixels of the network's input of `shape` (h, w) to whole pixels of the original."""
    scale_boxes(shape, found[:, :4], im0.shape[:2])
    found[:, :4] = found[:, :4].round()
    return found


def check_model(runtime: AnyRuntime, file: Path, classes: Sequence[int] | None, **flags: bool) -> None:
    """Raise UserError for classes that the model does not have, and for flags that need a checkpoint."""
    for c in classes or ():
        if c not in runtime.names:
            raise UserError(f"--classes {c}: this model has classes 0 to {len(runtime.names) - 1}")
    for flag, given in flags.items():
        if given and runtime.model is None:
            raise UserError(f"--{flag} needs a checkpoint, but {file} is an exported model")


def check_numbers(conf_thres: float, iou_thres: float, max_det: int, line_thickness: int, vid_stride: int) -> None:
    """Raise UserError for numbers out of range."""
    if not 0 <= conf_thres <= 1 or not 0 <= iou_thres <= 1:
        raise UserError(f"--conf-thres {conf_thres} and --iou-thres {iou_thres} must lie between 0 and 1")
    if min(max_det, line_thickness, vid_stride) < 1:
        raise UserError("--max-det, --line-thickness and --vid-stride must be 1 or more")


@from_code("detect.run")
def run(
    weights: str = "",
    source: str = str(ROOT / "data/images"),
    imgsz: int | list[int] | None = None,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    max_det: int = 1000,
    device: str = "",
    view_img: bool = False,
    save_txt: bool = False,
    save_conf: bool = False,
    save_crop: bool = False,
    save_csv: bool = False,
    nosave: bool = False,
    classes: list[int] | None = None,
    agnostic_nms: bool = False,
    augment: bool = False,
    visualize: bool = False,
    project: str = str(ROOT / "runs/detect"),
    name: str = "exp",
    exist_ok: bool = False,
    line_thickness: int = 3,
    hide_labels: bool = False,
    hide_conf: bool = False,
    half: bool = False,
    amp: str = "auto",
    vid_stride: int = 1,
    engine: str = "auto",
) -> Path:
    """Detect objects and return the folder of the results. Raises UserError for bad input."""
    check_numbers(conf_thres, iou_thres, max_det, line_thickness, vid_stride)
    file = weights_file(weights)
    where = select_device(device)
    only = "--augment" if augment else "--visualize" if visualize else ""
    runtime = load_fastest(file, where, half, amp, engine, imgsz, partial(count_frames, source, vid_stride), only)
    check_model(runtime, file, classes, visualize=visualize, augment=augment)
    size = input_size(runtime, imgsz)
    LOGGER.info(f"detect: {file}, {size[0]}x{size[1]} px; {describe_device(where)}, {runtime.reason}")
    existed = (Path(project) / name).is_dir() and exist_ok
    folder = increment_path(Path(project) / name, exist_ok)
    if save_txt:
        (folder / "labels").mkdir(exist_ok=True)
    out = Output(folder, runtime.names, not nosave, save_txt, save_conf, save_crop, save_csv, view_img, line_thickness,
                 hide_labels, hide_conf)  # fmt: skip
    try:
        frames = predict_all(runtime, source, size, out, conf_thres, iou_thres, max_det, classes, agnostic_nms, augment,
                             visualize, vid_stride)  # fmt: skip
    except KeyboardInterrupt:
        kept = f"; the results so far are in {folder}" if any(folder.iterdir()) else ""
        raise KeyboardInterrupt(f"interrupted{kept}") from None
    finally:
        out.close()
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
    if not frames:
        raise UserError(f"--source {source}: none of its images could be read")
    if folder.is_dir():
        LOGGER.info(f"results in {folder}")
    return folder


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
