"""Softmax smoothing of the allocation."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.estimators.base import GoalEstimate, GradientEstimator, check_width
from lightning_budget.estimators.choice import standardize


class Softmax(GradientEstimator):
    """Replace argmax by softmax: the exact gradient of the goal under Gumbel noise of scale τ on the scores.

    With ``q_i = softmax(a_i / τ)``: ``G = Σ_i Σ_j q_ij g_ij`` and ``∂G/∂a_ij = q_ij (g_ij − Σ_k q_ik g_ik) / τ``,
    without Monte-Carlo noise. It bounds nothing: it is the smoothed goal itself, and tends to the hard one as τ → 0.

    Args:
        temperature: τ in units of the spread of the scores.

    Raises:
        InputError: if the temperature is not above 0.

    Source: policy learning with a softmax policy; maximum-entropy form of Zhou et al. 2024, arXiv:2407.13664.
    """

    is_random = False
    unbiased_for = "Gumbel noise"
    width_name = "temperature"

    def __init__(self, temperature: float = 1.0) -> None:
        self.width = check_width(self, temperature)

    def assignment(self, scores: Tensor, width: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.softmax(standardize(scores, width), dim=1)

    @torch.no_grad()
    def estimate(
        self,
        scores: Tensor,
        gains: Tensor,
        width: Tensor,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> GoalEstimate:
        # In place where a tensor is ours: at [8, 5, 8192] the passes over memory are most of the cost.
        q = torch.softmax(standardize(scores, width), dim=1)
        gains = gains.to(q.dtype)
        earned = (q * gains).sum(dim=1, keepdim=True)
        # The width last: 0 / width is 0 however small it is, where (g − earned) / width may overflow.
        gradient = q.mul_(gains - earned).div_(width.to(q.dtype)[:, None, None])
        return GoalEstimate(earned.sum(dim=(1, 2)), gradient)
