"""Compare the boxes and scores of an exported model with those of its network, on images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.export.engines import LOWEST
from models.export.exported import ExportedRuntime
from models.export.facts import ExportFacts
from models.export.nms_check import nms_fault
from models.export.onnx_nms import without_nms
from models.yolo import DetectionModel
from utils.errors import UserError

# largest allowed differences from the network: of boxes (as fractions of the image side) and of scores
TOLERANCES = {"float32": (2e-4, 1e-3), "float16": (1e-2, 5e-2)}


def check(path: Path, model: DetectionModel, facts: ExportFacts, pictures: np.ndarray) -> tuple[float, float]:
    """Return the largest differences of boxes (pixels) and scores between an exported model and its network.

    A dynamic model is also run with other image sizes and batch sizes. Boxes are compared before NMS; NMS in a graph is
    checked on the boxes that this graph gives to it. Raises UserError if the differences are too large.
    """
    exported = ExportedRuntime(path, torch.device("cpu"))
    before_nms = exported
    if facts.nms:
        cut = path.with_name(f"{path.stem}-before-nms{path.suffix}")
        without_nms(path, cut, replace(facts, nms=None))
        before_nms = ExportedRuntime(cut, torch.device("cpu"))
    worst, (boxes_off, scores_off) = np.zeros(2), tolerances(facts)
    for batch in _batches(pictures, facts):
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch))[0].numpy()
        found = before_nms.predict(torch.from_numpy(batch)).numpy()
        if found.shape != expected.shape:
            raise UserError(f"{path.name} gives the shape {found.shape}, the network {expected.shape}; not written")
        off = np.abs(found - expected)
        if facts.precision == "float16":  # boxes of too low a confidence to be shown may be far off
            off[..., :4][~seen(expected)] = 0
        worst = np.maximum(worst, (off[..., :4].max(initial=0), off[..., 4:].max(initial=0)))
        if not worst[0] <= boxes_off or not worst[1] <= scores_off:  # NaN too
            raise UserError(f"{path.name} differs from the network: boxes by {worst[0]:.3g} px, scores by "
                            f"{worst[1]:.2g}; not written")  # fmt: skip
        if facts.nms:
            check_nms(exported.predict(torch.from_numpy(batch)).numpy(), found, facts, path.name)
    return float(worst[0]), float(worst[1])


def _batches(pictures: np.ndarray, facts: ExportFacts) -> list[np.ndarray]:
    """Return the batches to check: the images and their mirrored copies; for a dynamic model also other sizes."""
    batches = [np.concatenate((pictures, pictures[..., ::-1]))]  # at least two images
    if facts.dynamic:
        batches += [np.pad(pictures, ((0, 0), (0, 0), (0, facts.stride), (0, 0))),
                    np.pad(pictures[:1], ((0, 0), (0, 0), (0, 0), (0, facts.stride)))]  # fmt: skip
    return batches


def check_nms(kept: np.ndarray, decoded: np.ndarray, facts: ExportFacts, name: str) -> None:
    """Raise UserError if NMS in a graph is wrong.

    kept: (b, max_det, 5 + nc) as returned by `as_decoded`; decoded: (b, n, 5 + nc), the boxes before NMS.
    """
    for image, given in zip(kept, decoded, strict=True):
        rows = image[image[:, 4] > 0]
        rows = np.column_stack((rows[:, :5], rows[:, 5:].argmax(1)))
        if fault := nms_fault(rows, given, LOWEST, facts.nms["iou"], int(facts.nms["max_det"])):
            raise UserError(f"{name}: NMS in the graph is wrong: {fault}; not written")


def seen(decoded: np.ndarray) -> np.ndarray:
    """Return a mask of the rows (..., 5 + nc) with a confidence of at least LOWEST; if there is none, of all rows."""
    sure = decoded[..., 4] * decoded[..., 5:].max(-1) >= LOWEST
    return sure if sure.any() else np.ones(sure.shape, bool)


def tolerances(facts: ExportFacts) -> tuple[float, float]:
    """Return the largest allowed differences of boxes (pixels) and scores from the network's."""
    boxes, scores = TOLERANCES[facts.precision]
    return boxes * max(facts.imgsz), scores
