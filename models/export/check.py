"""Whether an exported model gives what its network gives: boxes and scores next to each other, on pictures."""

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

# how far boxes (parts of the image's side) and scores may be from the network's
TOLERANCES = {"float32": (2e-4, 1e-3), "float16": (1e-2, 5e-2)}


def check(path: Path, model: DetectionModel, facts: ExportFacts, pictures: np.ndarray) -> tuple[float, float]:
    """The largest differences of boxes (pixels) and scores between an exported model and its network.

    Dynamic ones are looked at in a second size and number too. Raises UserError if they differ by too much.
    """
    exported = ExportedRuntime(path, torch.device("cpu"))
    batches = [np.concatenate((pictures, pictures[..., ::-1]))]  # mirrored too, so that there are two at least
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
            raise UserError(f"{path.name} gives {found.shape}, the network {expected.shape}: not written")
        off = np.abs(found - expected)
        if facts.precision == "float16":  # a large box that nobody sees, as it is sure of nothing, may be far off
            off[..., :4][~seen(expected, facts)] = 0
        worst = np.maximum(worst, (off[..., :4].max(initial=0), off[..., 4:].max(initial=0)))
    if not worst[0] <= boxes_off or not worst[1] <= scores_off:  # NaN too
        raise UserError(f"{path.name} differs from the network: boxes by {worst[0]:.3g} px, scores by {worst[1]:.2g}; "
                        "not written")  # fmt: skip
    return float(worst[0]), float(worst[1])


def seen(decoded: np.ndarray, facts: ExportFacts) -> np.ndarray:
    """Which of the rows (..., 5 + nc), or of detections (..., 6), are sure enough to be shown; all if none is."""
    sure = decoded[..., 4] if facts.nms else decoded[..., 4] * decoded[..., 5:].max(-1)
    return sure >= LOWEST if (sure >= LOWEST).any() else np.ones(sure.shape, bool)


def tolerances(facts: ExportFacts) -> tuple[float, float]:
    """How far boxes (pixels) and scores may be from the network's."""
    boxes, scores = TOLERANCES[facts.precision]
    return boxes * max(facts.imgsz), scores


def alike(
    found: np.ndarray, expected: np.ndarray, facts: ExportFacts, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Detections of both, (m, 6) each, in pairs. Raises UserError if more than a tenth of both, and more than
    4, have no partner.

    Of two boxes with next to the same score one may be kept here and the other there: on plain ground, by the thousand.
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
        raise UserError(f"{name} finds other boxes than the network, {alone} of {2 * len(both) + alone} have no "
                        "partner; not written")  # fmt: skip
    return both[:, 0], both[:, 1]
