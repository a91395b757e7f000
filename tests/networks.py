"""Networks whose batch norms are not as initialised."""

from __future__ import annotations

from torch import nn


def with_random_norms(model: nn.Module) -> nn.Module:
    """Give the batch norms weights and statistics for which their eps matters; returns the model."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.2)
            nn.init.normal_(m.running_mean, std=0.2)
            nn.init.uniform_(m.running_var, 0.01, 2)
    return model
