"""Colour augmentation and flips of a whole batch on the model's device, used where the loader would be too slow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def augment_batch(
    images: Tensor, targets: Tensor, hyp: Mapping[str, float], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Apply the random HSV gains and flips of `hyp`, which the loader otherwise applies to each image.

    images: (b, 3, h, w) float RGB in [0, 1]; targets: (n, 6) image, class, cx, cy, w, h normalised, on the CPU.
    Returns the new images (channels-last) and targets; the inputs are not modified.
    """
    count = len(images)
    gains = rng.uniform(-1, 1, (count, 3)) * (hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"]) + 1
    down, across = (rng.random(count) < hyp[key] for key in ("flipud", "fliplr"))
    if hyp["hsv_h"] or hyp["hsv_s"] or hyp["hsv_v"]:
        images = scale_hsv(images, _on(images, gains.astype(np.float32)))
    targets = targets.clone()
    of_image = targets[:, 0].long()
    for axis, column, chosen in ((2, 3, down), (3, 2, across)):
        if chosen.any():
            images = torch.where(_on(images, chosen)[:, None, None, None], images.flip(axis), images)
            turned = torch.from_numpy(chosen)[of_image]
            targets[turned, column] = 1 - targets[turned, column]
    return images.contiguous(memory_format=torch.channels_last), targets


def scale_hsv(images: Tensor, gains: Tensor) -> Tensor:
    """Multiply hue, saturation and value of images (b, 3, h, w), RGB in [0, 1], by gains (b, 3).

    Hue wraps around; saturation and value are clamped to 1.
    """
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    divisor = chroma.clamp(min=1e-12)
    hue = torch.where(value == blue, (red - green) / divisor + 4, 0.0)  # in units of 60 degrees
    hue = torch.where(value == green, (blue - red) / divisor + 2, hue)
    hue = torch.where(value == red, ((green - blue) / divisor) % 6, hue)
    by_hue, by_saturation, by_value = gains[:, :, None, None].unbind(1)
    hue = hue * by_hue % 6
    saturation = (chroma / value.clamp(min=1e-12) * by_saturation).clamp(max=1)
    value = (value * by_value).clamp(max=1)
    # how far each channel lies below the value: 0 near its own hue, the full saturation at the opposite hue
    away = [(start + hue) % 6 for start in (5, 3, 1)]
    return torch.stack([value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1) for k in away], 1)


def _on(images: Tensor, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(images.device, non_blocking=True)
