"""Sampling weights for `--image-weights`: images with rare or badly detected classes are drawn more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.data.labels import LabelIndex


def image_weights(index: LabelIndex, class_maps: Sequence[float]) -> np.ndarray:
    """Return the sampling weights (images,), not normalised, computed from the mAP (nc,) of each class.

    An image's weight is the sum over its objects of (1 - mAP)^2 / count, where count is the number of objects of the
    class in the dataset. If all weights would be zero, all are one.
    """
    classes = index.values[:, 0].astype(int)
    maps = np.asarray(class_maps, float)
    counts = np.bincount(classes, minlength=len(maps)).clip(1)
    per_object = ((1 - maps) ** 2 / counts)[classes]
    image = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    weights = np.bincount(image, per_object, minlength=len(index))
    return weights if weights.sum() > 0 else np.ones(len(index))
