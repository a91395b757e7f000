"""Autoanchor: do the anchors fit the labels, and if not, which would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.data.labels import LabelIndex, load_labels
from utils.errors import UserError
from utils.settings.config import load_data
from utils.system.console import LOGGER

GOOD_RECALL = 0.98  # of labels that fit an anchor: anchors that reach it are left alone


def label_sizes(index: LabelIndex, imgsz: int) -> np.ndarray:
    """Width and height (m, 2) in pixels of all labels, with their images' longer side scaled to imgsz."""
    hw = index.shapes * (imgsz / index.shapes.max(1, keepdims=True))
    per_label = np.repeat(hw, np.diff(index.offsets), axis=0)
    return index.values[:, 3:5] * per_label[:, ::-1]


def best_possible_recall(sizes: np.ndarray, anchors: np.ndarray, threshold: float) -> tuple[float, float]:
    """Share of labels (m, 2) that fit an anchor (k, 2), and how many anchors a label fits on average.

    A label fits if both its sides are within `threshold` times the anchor's.
    """
    ratio = sizes[:, None] / anchors[None]
    fit = np.minimum(ratio, 1 / ratio).min(2)
    return float((fit.max(1) > 1 / threshold).mean()), float((fit > 1 / threshold).sum(1).mean())


def _fitness(sizes: np.ndarray, anchors: np.ndarray, threshold: float) -> float:
    ratio = sizes[:, None] / anchors[None]
    best = np.minimum(ratio, 1 / ratio).min(2).max(1)
    return float((best * (best > 1 / threshold)).mean())


def fit_anchors(
    sizes: np.ndarray, n: int, threshold: float, rng: np.random.Generator, generations: int = 1000
) -> np.ndarray:
    """Choose n anchors (n, 2) for label sizes (m, 2), by k-means and then random mutation, smallest area first."""
    big = sizes[(sizes >= 2.0).any(1)]
    big = big[rng.permutation(len(big))[:5000]]
    if len(np.unique(big, axis=0)) < n:
        return np.sort(rng.uniform(8, sizes.max() + 8, (n, 2)), axis=0)
    scale = big.std(0) + 1e-9
    points = big / scale
    # quantiles by area spread the first centres over all sizes
    centres = points[np.argsort(big.prod(1))[np.linspace(0, len(big) - 1, 2 * n + 1).astype(int)[1::2]]]
    for _ in range(30):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        centres = np.stack([points[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(n)])
    best = centres * scale
    score = _fitness(big, best, threshold)
    for _ in range(generations):
        change = np.where(rng.random(best.shape) < 0.9, rng.normal(1, 0.1, best.shape), 1).clip(0.3, 3.0)
        mutant = (best * change).clip(2.0)
        if (s := _fitness(big, mutant, threshold)) > score:
            best, score = mutant, s
    return best[np.argsort(best.prod(1))]


@torch.no_grad()
def adapt_anchors(index: LabelIndex, head: nn.Module, threshold: float, imgsz: int, seed: int = 0) -> None:
    """Replace the anchors of `head`, in place, where they fit fewer than 98 % of the labels and better ones exist."""
    if not len(index.values):
        return
    rng = np.random.default_rng(seed)
    sizes = label_sizes(index, imgsz) * rng.uniform(0.9, 1.1, (len(index.values), 1))
    stride = head.stride.reshape(-1, 1, 1).to(head.anchors)
    anchors = (head.anchors * stride).reshape(-1, 2).cpu().numpy()
    recall, per_label = best_possible_recall(sizes, anchors, threshold)
    line = f"autoanchor: {per_label:.2f} anchors per label, {recall:.4f} of the labels fit one"
    if recall > GOOD_RECALL:
        LOGGER.info(f"{line}; the anchors stay")
        return
    new = fit_anchors(sizes, len(anchors), threshold, rng)
    new_recall, _ = best_possible_recall(sizes, new, threshold)
    if new_recall <= recall:
        LOGGER.info(f"{line}; no better ones were found, the anchors stay")
        return
    LOGGER.info(f"{line}; replaced by {np.round(new).astype(int).tolist()}, which fit {new_recall:.4f}")
    per_map = torch.as_tensor(new, dtype=head.anchors.dtype).reshape(head.anchors.shape)
    if head.stride[0] > head.stride[-1]:  # a head that lists its coarse map first
        per_map = per_map.flip(0)
    head.anchors.copy_(per_map.to(stride) / stride)


def check_anchors(dataset: Any, model: nn.Module, thr: float = 4.0, imgsz: int = 640) -> None:
    """`adapt_anchors` as YOLOv5's scripts call it, with the data set of `create_dataloader` and a whole model."""
    adapt_anchors(dataset.index, model.model[-1], thr, imgsz)


def kmean_anchors(
    dataset: Any = "data/VOC.yaml", n: int = 9, img_size: int = 640, thr: float = 4.0, gen: int = 1000,
    verbose: bool = True,
) -> np.ndarray:  # fmt: skip
    """`fit_anchors` as YOLOv5's scripts call it: anchors (n, 2) in pixels for the training images of a data set.

    dataset: a data yaml, or the data set of `create_dataloader`. gen: generations of random mutation. verbose: log the
    anchors and how well they fit. Raises UserError if there are no labels.
    """
    if isinstance(dataset, (str, Path)):
        config = load_data(dataset)
        index, where = load_labels(config.existing("train"), config.nc, "train: "), str(dataset)
    else:
        index, where = dataset.index, "this data set"
    if not len(index.values):
        raise UserError(f"{where} has no labels to fit anchors to")
    sizes = label_sizes(index, img_size)
    anchors = fit_anchors(sizes, n, thr, np.random.default_rng(0), gen)
    if verbose:
        recall, per_label = best_possible_recall(sizes, anchors, thr)
        rounded = np.round(anchors).astype(int).tolist()
        LOGGER.info(f"anchors {rounded}: {per_label:.2f} anchors per label, {recall:.4f} of the labels fit one")
    return anchors


@torch.no_grad()
def check_anchor_order(m: nn.Module) -> None:
    """Reverse the anchors of a head `m`, in place, if its small ones belong to its large strides."""
    area = m.anchors.prod(-1).mean(-1) * m.stride.to(m.anchors) ** 2
    if (area[-1] - area[0]) * (m.stride[-1] - m.stride[0]) < 0:
        m.anchors.copy_(m.anchors.flip(0))
