"""Shared trunks between the encoded features and the treatment heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

BACKBONES = ("mlp", "dcn_v2")
"""Every trunk by the name that configs and checkpoints use."""

Affine = Callable[[int, int], nn.Module]
"""Makes a layer from a number of inputs to a number of outputs."""


def mlp(in_features: int, hidden: Sequence[int], dropout: float = 0.0, linear: Affine = nn.Linear) -> nn.Sequential:
    """Linear, SiLU and dropout for each width in ``hidden``; maps ``[N, in_features]`` to ``[N, hidden[-1]]``."""
    # Smooth, so that a gradient follows rounding smoothly: gates that flip made runs on one and two processes part.
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [linear(in_features, width), nn.SiLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_features = width
    return nn.Sequential(*layers)


def dcn_v2(
    in_features: int,
    hidden: Sequence[int],
    dropout: float = 0.0,
    cross_layers: int = 2,
    cross_rank: int = 0,
    linear: Affine = nn.Linear,
) -> nn.Sequential:
    """Cross layers, then an :func:`mlp` on what they give: the stacked form of DCN-v2.

    Args:
        in_features, hidden, dropout: as of :func:`mlp`.
        cross_layers, cross_rank: of :class:`CrossLayers`.

    Source: Wang et al. 2021, arXiv:2008.13535.
    """
    return nn.Sequential(
        CrossLayers(in_features, cross_layers, cross_rank, linear), *mlp(in_features, hidden, dropout, linear)
    )


class CrossLayers(nn.Module):
    """``x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l``, after ``L`` layers all products of up to L + 1 features.

    Args:
        width: of the features x_0.
        layers: L; rank: r of ``W_l = U_l V_l``, 0 for a full matrix.
        linear: makes an affine layer.

    Source: Wang et al. 2021, arXiv:2008.13535, equations 1 and 2.
    """

    def __init__(self, width: int, layers: int, rank: int = 0, linear: Affine = nn.Linear) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(linear(width, rank), linear(rank, width)) if rank else linear(width, width)
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in self.layers:
            out = x * layer(out) + out
        return out


class ArmLinear(nn.Module):
    """K separate affine layers, ``[K, N, in_features] → [K, N, out_features]``; start as ``nn.Linear`` does."""

    def __init__(self, num_treatments: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        shape = (num_treatments, in_features, out_features)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_treatments, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)
