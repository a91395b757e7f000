"""Compare the boxes and scores of an exported model with those of its network, on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.export.engines import LOWEST
from models.export.exported import ExportedRuntime
from models.export.facts import ExportFacts
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.evaluation.nms import non_max_suppression

# largest allowed differences from the network: of boxes (as fractions of the image side) and of scores
TOLERANCES = {"float32": (2e-4, 1e-3), "float16": (1e-2, 5e-2)}


def check(path: Path, model: DetectionModel, facts: ExportFacts, pictures: np.ndarray) -> tuple[float, float]:
    """Return the largest differences of boxes (pixels) and scores between an exported model and its network.

    A dynamic model is also run with other image sizes and batch sizes. Raises UserError if the differences are too
    large.
    """
    exported = ExportedRuntime(path, torch.device("cpu"))
    batches = [np.concatenate((pictures, pictures[..., ::-1]))]  # with mirrored copies, so that there are at least two
    if facts.dynamic:
        batches += [np.pad(pictures, ((0, 0), (0, 0), (0, facts.stride), (0, 0))),
                    np.pad(pictures[:1], ((0, 0), (0, 0), (0, 0), (0, facts.stride)))]  # fmt: skip
    worst = np.zeros(2)
    boxes_off, scores_off = tolerances(facts)
    for batch in batches:
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch))[0].numpy()
        found = exported.predict(torch.from_numpy(batch)).numpy()
        if facts.nms:
            found, expected = alike(found, expected, facts, path.name)
        if found.shape != expected.shape:
            raise UserError(f"{path.name} gives the shape {found.shape}, the network {expected.shape}; not written")
        off = np.abs(found - expected)
        if facts.precision == "float16":  # boxes of too low a confidence to be shown may be far off
            off[..., :4][~seen(expected, facts)] = 0
        worst = np.maximum(worst, (off[..., :4].max(initial=0), off[..., 4:].max(initial=0)))
    if not worst[0] <= boxes_off or not worst[1] <= scores_off:  # NaN too
        raise UserError(f"{path.name} differs from the network: boxes by {worst[0]:.3g} px, scores by {worst[1]:.2g}; "
                        "not written")  # fmt: skip
    return float(worst[0]), float(worst[1])


def seen(decoded: np.ndarray, facts: ExportFacts) -> np.ndarray:
    """Return a mask of the rows (..., 5 + nc), or detections (..., 6), with a confidence of at least LOWEST.

    If there is none, all are selected.
    """
    sure = decoded[..., 4] if facts.nms else decoded[..., 4] * decoded[..., 5:].max(-1)
    return sure >= LOWEST if (sure >= LOWEST).any() else np.ones(sure.shape, bool)


def tolerances(facts: ExportFacts) -> tuple[float, float]:
    """Return the largest allowed differences of boxes (pixels) and scores from the network's."""
    boxes, scores = TOLERANCES[facts.precision]
    return boxes * max(facts.imgsz), scores


def alike(
    found: np.ndarray, expected: np.ndarray, facts: ExportFacts, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Match the detections of the exported model and of the network; return the pairs, (m, 6) each.

    Raises UserError if more than 4 detections, and more than a tenth of all, have no match. A few may have none: of two
    boxes with nearly equal scores, each NMS may keep a different one (thousands of times on plain backgrounds).
    """
    pairs, alone = [np.zeros((0, 2, 6), np.float32)], 0
    most, iou = int(facts.nms["max_det"]), facts.nms["iou"]
    boxes_off, scores_off = tolerances(facts)
    for a, b in zip(*(non_max_suppression(torch.from_numpy(x), LOWEST, iou, max_det=most)
                      for x in (found, expected)), strict=True):  # fmt: skip
        a, b = a.numpy(), b.numpy()
        if not len(a) or not len(b):
            alone += len(a) + len(b)
            continue
        off = (np.abs(a[:, None] - b[None]) / (*[boxes_off] * 4, scores_off, 0.5)).max(2)
        near = off <= 1
        known = near.any(1)
        pairs.append(np.stack((a[known], b[off.argmin(1)[known]]), 1))
        alone += int((~known).sum() + (~near.any(0)).sum())
    both = np.concatenate(pairs)
    if alone > max(4, 0.2 * len(both)):
        raise UserError(f"{name} finds other boxes than the network: {alone} of {2 * len(both) + alone} have no "
                        "match; not written")  # fmt: skip
    return both[:, 0], both[:, 1]
