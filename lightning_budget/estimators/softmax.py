"""Softmax smoothing of the allocation."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.estimators.base import GoalEstimate, GradientEstimator, check_width
from lightning_budget.estimators.choice import at_least_float32, standardize


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
    is_symmetric = True
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
        # Few passes over memory, which at [8, 5, 8192] are most of the cost: shares q = e / z are never formed.
        kind = at_least_float32(scores)
        e = standardize(scores, width).exp_()
        gains, scores = gains.to(kind), scores.to(kind)
        z, product = e.sum(dim=1, keepdim=True), torch.empty_like(e)
        earned = torch.mul(e, gains, out=product).sum(dim=1, keepdim=True).div_(z)
        score = torch.mul(e, scores, out=product).sum(dim=1).div_(z[:, 0]).sum(dim=1)
        # The width last: 0 / width is 0 however small it is, where (g − earned) / width may overflow.
        gradient = e.mul_(torch.sub(gains, earned, out=product)).div_(z).mul_(1 / width.to(kind)[:, None, None])
        return GoalEstimate(earned.sum(dim=(1, 2)), gradient, score)
