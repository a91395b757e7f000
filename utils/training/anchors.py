"""Autoanchor: check whether the anchors fit the labels, and compute better ones if not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.data.labels import LabelIndex, index_split
from utils.errors import UserError
from utils.settings.dataset import load_data
from utils.system.console import LOGGER

GOOD_RECALL = 0.98  # share of labels that fit an anchor, above which the anchors are kept


def label_sizes(index: LabelIndex, imgsz: int) -> np.ndarray:
    """Return width and height of all labels, (m, 2) in pixels, with each image's longer side scaled to imgsz."""
    hw = index.shapes * (imgsz / index.shapes.max(1, keepdims=True))
    per_label = np.repeat(hw, np.diff(index.offsets), axis=0)
    return index.values[:, 3:5] * per_label[:, ::-1]


def best_possible_recall(sizes: np.ndarray, anchors: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return the share of labels (m, 2) that fit an anchor (k, 2), and the mean number of anchors per label that fit.

    A label fits an anchor if each side differs from the anchor's by less than a factor of `threshold`.
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
    """Return n anchors (n, 2) for label sizes (m, 2), from k-means and then random mutation, smallest area first."""
    big = sizes[(sizes >= 2.0).any(1)]
    big = big[rng.permutation(len(big))[:5000]]
    if len(np.unique(big, axis=0)) < n:
        return np.sort(rng.uniform(8, sizes.max() + 8, (n, 2)), axis=0)
    scale = big.std(0) + 1e-9
    points = big / scale
    # initial centres at quantiles of area, to cover all sizes
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
    """Replace the anchors of `head`, in place, if at most 98 % of the labels fit them and better ones are found."""
    if not len(index.values):
        return
    rng = np.random.default_rng(seed)
    sizes = label_sizes(index, imgsz) * rng.uniform(0.9, 1.1, (len(index.values), 1))
    stride = head.stride.reshape(-1, 1, 1).to(head.anchors)
    anchors = (head.anchors * stride).reshape(-1, 2).cpu().numpy()
    recall, per_label = best_possible_recall(sizes, anchors, threshold)
    line = f"autoanchor: {per_label:.2f} anchors per label, {recall:.4f} of the labels fit one"
    if recall > GOOD_RECALL:
        LOGGER.info(f"{line}; the anchors are kept")
        return
    new = fit_anchors(sizes, len(anchors), threshold, rng)
    new_recall, _ = best_possible_recall(sizes, new, threshold)
    if new_recall <= recall:
        LOGGER.info(f"{line}; no better anchors were found, so they are kept")
        return
    LOGGER.info(f"{line}; replaced by {np.round(new).astype(int).tolist()}, which {new_recall:.4f} of the labels fit")
    per_map = torch.as_tensor(new, dtype=head.anchors.dtype).reshape(head.anchors.shape)
    if head.stride[0] > head.stride[-1]:  # this head lists its coarsest map first
        per_map = per_map.flip(0)
    head.anchors.copy_(per_map.to(stride) / stride)


def warn_of_unfit(index: LabelIndex, head: nn.Module, threshold: float, imgsz: int, chosen: bool = False) -> None:
    """Warn if not a single label fits an anchor of `head`, with the sizes of the labels and of the anchors.

    chosen: whether the anchors were chosen by the user with --noautoanchor, rather than adapted.
    """
    if not len(index.values):
        return
    sizes = label_sizes(index, imgsz)
    stride = head.stride.reshape(-1, 1, 1).to(head.anchors)
    anchors = (head.anchors * stride).reshape(-1, 2).cpu().numpy()
    if best_possible_recall(sizes, anchors, threshold)[0]:
        return
    advice = "leave out --noautoanchor, or " if chosen else ""
    LOGGER.warning(f"none of the {len(sizes)} labels fits an anchor, so the boxes will hardly be learnt: at --imgsz "
                   f"{imgsz} the labels are {_size_range(sizes)} px, the anchors {_size_range(anchors)} px, and both "
                   f"sides must be within a factor of {threshold:g} (anchor_t); {advice}choose another --imgsz, or "
                   "check the labels")  # fmt: skip


def _size_range(sizes: np.ndarray) -> str:
    """Return the smallest and the largest size by area, as text such as `3x2 to 40x64`."""
    by_area = sizes[np.argsort(sizes.prod(1))]
    ends = (by_area[0], by_area[-1])
    small, large = ("x".join(f"{side:.2g}" if side < 10 else f"{side:.0f}" for side in size) for size in ends)
    return small if small == large else f"{small} to {large}"


def check_anchors(dataset: Any, model: nn.Module, thr: float = 4.0, imgsz: int = 640) -> None:
    """Call `adapt_anchors` with the dataset of `create_dataloader` and a whole model, as YOLOv5's scripts do."""
    adapt_anchors(dataset.index, model.model[-1], thr, imgsz)


def kmean_anchors(
    dataset: Any = "data/VOC.yaml", n: int = 9, img_size: int = 640, thr: float = 4.0, gen: int = 1000,
    verbose: bool = True,
) -> np.ndarray:  # fmt: skip
    """Return anchors (n, 2) in pixels for the training labels of a dataset, with the signature of YOLOv5's scripts.

    dataset: a dataset yaml, or the dataset of `create_dataloader`. gen: generations of random mutation. verbose: log
    the anchors and how well they fit. Raises UserError if there are no labels.
    """
    if isinstance(dataset, (str, Path)):
        config = load_data(dataset)
        index, where = index_split(config, "train"), str(dataset)
    else:
        index, where = dataset.index, "this dataset"
    if not len(index.values):
        raise UserError(f"{where} has no labels to compute anchors from")
    sizes = label_sizes(index, img_size)
    anchors = fit_anchors(sizes, n, thr, np.random.default_rng(0), gen)
    if verbose:
        recall, per_label = best_possible_recall(sizes, anchors, thr)
        rounded = np.round(anchors).astype(int).tolist()
        LOGGER.info(f"anchors {rounded}: {per_label:.2f} anchors per label, {recall:.4f} of the labels fit one")
    return anchors


@torch.no_grad()
def check_anchor_order(m: nn.Module) -> None:
    """Reverse the anchors of a head `m`, in place, if its small anchors belong to large strides."""
    area = m.anchors.prod(-1).mean(-1) * m.stride.to(m.anchors) ** 2
    if (area[-1] - area[0]) * (m.stride[-1] - m.stride[0]) < 0:
        m.anchors.copy_(m.anchors.flip(0))
