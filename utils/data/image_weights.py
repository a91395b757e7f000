"""How often `--image-weights` draws an image: more often, the rarer and the worse detected the classes in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.data.labels import LabelIndex


def image_weights(index: LabelIndex, class_maps: Sequence[float]) -> np.ndarray:
    """Weights (images,), not normalised, from the mAP (nc,) of each class: the sum over an image's objects of

    (1 - mAP)^2 / count of the class. All ones where that leaves nothing to draw.
    """
    classes = index.values[:, 0].astype(int)
    maps = np.asarray(class_maps, float)
    counts = np.bincount(classes, minlength=len(maps)).clip(1)
    per_object = ((1 - maps) ** 2 / counts)[classes]
    image = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    weights = np.bincount(image, per_object, minlength=len(index))
    return weights if weights.sum() > 0 else np.ones(len(index))
