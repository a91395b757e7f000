"""Inference and NMS in the case `gpu` of benchmark.py."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from models.inference.runtime import Runtime
from models.yolo import DetectionModel
from my_tools.benchmarking.cases import AS_DETECTED, compared
from my_tools.benchmarking.gpu_task import Measure, Report, Task
from utils.boxes import xywh2xyxy
from utils.evaluation.nms import non_max_suppression
from utils.system.console import quiet
from utils.system.profiling import seconds, time_in_turns

BATCHES = (1, 32)
CLASSES = 80
EAGER, FUSED, GRAPH = "eager float32 NCHW", "fused, {}, channels-last", "the same in a CUDA graph"
COMPILED, COMPILED_GRAPH = "compiled", "compiled, in a CUDA graph"
TURNS = 30
THRESHOLDS = ((0.001, 0.6, True), (0.25, 0.45, False))  # confidence, IoU, several classes a box: of val.py, detect.py
OBJECTS, BOXES_EACH = 20, 30  # in an image of the predictions for NMS, and boxes of each object


def low_format(device: torch.device) -> torch.dtype:
    """Return the number format of the fused networks: that of `detect.py --half`, on a CPU bfloat16."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def fused(model: DetectionModel, device: torch.device) -> nn.Module:
    """Return a copy with folded batch norms in the low format, channels-last."""
    twin = copy.deepcopy(model).fuse().to(device, low_format(device), memory_format=torch.channels_last).eval()
    for name, constant in model.model[-1].named_buffers(recurse=False):
        setattr(twin.model[-1], name, constant.float().to(device))
    twin.model[-1].stride = model.model[-1].stride.tolist()  # as a tensor it would break the graph of torch.compile
    return twin


def inputs(count: int, imgsz: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch on the CPU, uint8; the same on the device, float32; and in the low format, channels-last."""
    images = torch.randint(0, 256, (count, 3, imgsz, imgsz), dtype=torch.uint8)
    x = images.to(device) / 255
    return images, x, x.to(low_format(device)).contiguous(memory_format=torch.channels_last)


def prepare(task: Task, report: Report, stack: contextlib.ExitStack) -> Measure:
    """Build a model, and for the kind `compiled infer` compile it for each batch size; returns the measurement."""
    stack.enter_context(quiet())
    device = torch.device(task.device)
    model = DetectionModel(task.cfg, nc=CLASSES).to(device).eval()
    stack.enter_context(torch.inference_mode() if task.kind == "infer" else torch.no_grad())
    if task.kind == "infer":
        return lambda allowed, report: measure_eager(task, model, allowed, report)
    twin, ready = fused(model, device), {}
    for count in BATCHES:
        with report.attempt(f"{task.model}, batch {count}, compiled"):
            start = seconds()
            network, x = torch.compile(twin, dynamic=False), inputs(count, task.imgsz, device)[2]
            for _ in range(3):
                network(x)
            ready[count] = network, x
            report.facts(task.model, f"{COMPILED}, batch {count}", first_steps=seconds() - start)
    return lambda allowed, report: measure_compiled(task, model, ready, allowed, report)


def graphed(network: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    """Return a function that replays `network(x)`, captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch requires: warmed up in another stream
        for _ in range(3):
            network(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = network(x)

    def replay() -> object:
        graph.replay()
        return output

    return replay


def timed(
    task: Task, count: int, calls: dict[str, Callable[[], object]], yardstick: Callable[[], object], budget: float,
    report: Report,
) -> None:  # fmt: skip
    """Time calls and the yardstick in turns, and report a row for each call; those that fail are left out."""
    working: dict[str, Callable[[], object]] = {}
    for what, call in calls.items():
        with report.attempt(f"{task.model}, batch {count}, {what}"):
            call()
            seconds()  # an error in a kernel appears here
            working[what] = call
    times = time_in_turns([*working.values(), yardstick], TURNS, budget, least=3, before=2)
    for k, what in enumerate(working):
        report.row(compared("gpu", f"{task.model}, batch {count}, {what}", f"batch {count}, {EAGER}",
                            times[:, [k, -1]], (1, 1)))  # fmt: skip


def measure_eager(task: Task, model: DetectionModel, allowed: float, report: Report) -> None:
    """Time inference without a compiler at each batch size."""
    device = torch.device(task.device)
    low = str(low_format(device)).removeprefix("torch.")
    twin = fused(model, device)
    runtimes = {AS_DETECTED: Runtime(copy.deepcopy(model), device, amp="auto")}
    if device.type == "cuda":
        runtimes["detect.py --half"] = Runtime(copy.deepcopy(model), device, half=True)
    for count in BATCHES:
        with report.attempt(f"{task.model}, batch {count}"):
            images, x, last = inputs(count, task.imgsz, device)
            calls: dict[str, Callable[[], object]] = {
                what: partial(runtime.predict, images) for what, runtime in runtimes.items()}  # fmt: skip
            calls[FUSED.format(low)] = partial(twin, last)
            if device.type == "cuda":
                with report.attempt(f"{task.model}, batch {count}, {GRAPH}"):
                    calls[GRAPH] = graphed(twin, last)
            timed(task, count, calls, partial(model, x), 0.4 * allowed, report)


def measure_compiled(
    task: Task, model: DetectionModel, ready: dict[int, tuple[Callable, Tensor]], allowed: float, report: Report
) -> None:
    """Time the compiled networks."""
    device = torch.device(task.device)
    for count, (network, last) in ready.items():
        with report.attempt(f"{task.model}, batch {count}, compiled"):
            calls: dict[str, Callable[[], object]] = {COMPILED: partial(network, last)}
            if device.type == "cuda":
                with report.attempt(f"{task.model}, batch {count}, {COMPILED_GRAPH}"):
                    calls[COMPILED_GRAPH] = graphed(network, last)
            plain = partial(torch.inference_mode()(model.forward), inputs(count, task.imgsz, device)[1])
            timed(task, count, calls, plain, 0.4 * allowed, report)


def prepare_nms(task: Task, report: Report, stack: contextlib.ExitStack) -> Measure:
    """Make predictions like those of a trained network; returns the measurement of NMS."""
    stack.enter_context(torch.inference_mode())
    predictions = {count: likely_predictions(count, task.imgsz) for count in BATCHES}
    return lambda allowed, report: measure_nms(task, predictions, allowed, report)


def likely_predictions(count: int, imgsz: int) -> Tensor:
    """Return predictions (count, n, 5 + CLASSES) as a trained network makes them: most boxes are unlikely, and
    several boxes surround each of OBJECTS objects."""
    rng = np.random.default_rng(0)
    boxes = 3 * sum((imgsz // stride) ** 2 for stride in (8, 16, 32))
    objects, each = min(OBJECTS, boxes // 4), min(BOXES_EACH, boxes // OBJECTS // 2)
    rows = np.empty((count, boxes, 5 + CLASSES), np.float32)
    rows[..., :2] = rng.uniform(0, imgsz, (count, boxes, 2))
    rows[..., 2:4] = rng.uniform(0.03, 0.4, (count, boxes, 2)) * imgsz
    scores = rng.standard_normal((count, boxes, 1 + CLASSES), np.float32) * 1.6
    rows[..., 4:] = 1 / (1 + np.exp(9 - scores))
    for image in rows:
        for place, cls in zip(rng.uniform(0.1, 0.7, (objects, 2)), rng.integers(CLASSES, size=objects), strict=True):
            of = rng.integers(boxes, size=each)
            sides = rng.uniform(0.1, 0.4, 2)
            image[of, :4] = (np.concatenate((place, sides)) * rng.normal(1, 0.04, (each, 4))) * imgsz
            image[of, 4], image[of, 5 + cls] = rng.uniform(0.1, 0.95, each), rng.uniform(0.6, 0.99, each)
    return torch.from_numpy(rows)


def measure_nms(task: Task, predictions: dict[int, Tensor], allowed: float, report: Report) -> None:
    """Time NMS of predictions on the device against that of predictions on the CPU."""
    device = torch.device(task.device)
    until = time.monotonic() + allowed
    for count, on_cpu in predictions.items():
        for conf, iou, several in THRESHOLDS:
            what = f"NMS, batch {count}, confidence {conf:g}"
            with report.attempt(what):
                there = on_cpu.to(device)
                nms = partial(non_max_suppression, conf_thres=conf, iou_thres=iou, multi_label=several)
                found = nms(there)
                calls: dict[str, Callable[[], object]] = {what: partial(nms, there)}
                if device.type == "cuda":
                    with report.attempt(f"{what}, torchvision"):
                        usual_nms(there, conf, iou, several)
                        calls[f"{what}, torchvision's on the device"] = partial(usual_nms, there, conf, iou, several)
                left = max(until - time.monotonic(), 0.0)
                times = time_in_turns([*calls.values(), partial(nms, on_cpu)], 20, left / 3, least=3, before=1)
                for k, name in enumerate(calls):
                    report.row(compared("gpu", name, "predictions on the CPU", times[:, [k, -1]], (1, 1)))
                rows, scores = on_cpu[0], on_cpu[0, :, 5:] * on_cpu[0, :, 4:5]
                above = int((scores > conf).sum()) if several else int((scores.amax(1) > conf).sum())
                report.facts("NMS", what, boxes=rows.shape[0], candidates=above, found=len(found[0]))


def usual_nms(prediction: Tensor, conf: float, iou: float, several: bool) -> Sequence[Tensor]:
    """NMS image by image on the device of the predictions, by torchvision, as it is usually done."""
    from torchvision.ops import batched_nms

    kept = []
    for x in prediction:
        x = x[x[:, 4] > conf]
        scores = x[:, 5:] * x[:, 4:5]
        if several:
            row, cls = (scores > conf).nonzero(as_tuple=True)
            boxes, scores = xywh2xyxy(x[row, :4]), scores[row, cls]
        else:
            scores, cls = scores.max(1)
            sure = scores > conf
            boxes, scores, cls = xywh2xyxy(x[sure, :4]), scores[sure], cls[sure]
        best = scores.argsort(descending=True)[:30000]
        boxes, scores, cls = boxes[best], scores[best], cls[best]
        chosen = batched_nms(boxes, scores, cls, iou)[:300]
        kept.append(torch.column_stack((boxes[chosen], scores[chosen], cls[chosen].to(boxes.dtype))))
    return kept
