"""Shared trunks between the encoded features and the treatment heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(in_features: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear, SiLU and dropout for each width in ``hidden``; maps ``[N, in_features]`` to ``[N, hidden[-1]]``."""
    # Smooth, so that a gradient follows rounding smoothly: gates that flip made runs on one and two processes part.
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.SiLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_features = width
    return nn.Sequential(*layers)
