"""From a raw output to an outcome, started at each arm's mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def identity_link(raw: Tensor, mean: Tensor, scale: float) -> Tensor:
    """Unbounded outcome: ``mean_j + scale · raw``."""
    return mean + scale * raw


def positive_link(raw: Tensor, mean: Tensor, scale: float) -> Tensor:
    """Non-negative outcome: ``scale · softplus(raw + softplus⁻¹(mean_j / scale))``."""
    start = (mean / scale).clamp_min(1e-4)
    return scale * F.softplus(raw + start + torch.log(-torch.expm1(-start)))


def probability_link(raw: Tensor, mean: Tensor, scale: float) -> Tensor:
    """Binary outcome: ``σ(raw + logit(mean_j))``, kept inside (0, 1); ``scale`` is 1."""
    margin = 1e-4
    return torch.sigmoid(raw + torch.logit(mean.clamp(margin, 1 - margin)))


LINKS = {"identity": identity_link, "positive": positive_link, "probability": probability_link}


def cost_with_known(learned: Tensor, known: Tensor) -> Tensor:
    """Replace the columns of arms whose cost is certain; ``known`` is ``[K]`` with NaN where it must be learned."""
    return torch.where(known.isnan(), learned, known)


def unknown_if_none(known: tuple[float | None, ...]) -> Tensor:
    """``[K]`` float32 from a schema's ``known_cost``, NaN for ``None``."""
    return torch.tensor([math.nan if k is None else float(k) for k in known])
