"""Hard choice forward, softmax backward."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.estimators.base import GoalEstimate
from lightning_budget.estimators.choice import hard_choice
from lightning_budget.estimators.softmax import Softmax


class StraightThrough(Softmax):
    """Value and assignment of the hard choice, with the derivative of the softmax in place of that of argmax.

    ::

        G = Σ_i g_i,argmax_j a_ij,      ∂G/∂a_ij ≈ q_ij (g_ij − Σ_k q_ik g_ik) / τ,      q_i = softmax(a_i / τ)

    The goal is linear in the assignment, so what flows back is what ``softmax`` has; what differs is the value, and
    what is computed from the assignment. It is no gradient of the goal whose value it tells.

    Args:
        temperature: τ in units of the spread of the scores.

    Raises:
        InputError: if the temperature is not above 0.

    Source: Bengio, Léonard, Courville 2013, arXiv:1308.3432; with a softmax backward Jang, Gu, Poole 2017,
    arXiv:1611.01144.
    """

    unbiased_for = "Gumbel noise (its value is the hard one)"

    @torch.no_grad()
    def assignment(self, scores: Tensor, width: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return hard_choice(scores)

    @torch.no_grad()
    def estimate(
        self,
        scores: Tensor,
        gains: Tensor,
        width: Tensor,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> GoalEstimate:
        best = scores.max(dim=1, keepdim=True).indices
        gradient = super().estimate(scores, gains, width).gradient
        return GoalEstimate(gains.to(gradient.dtype).gather(1, best).sum(dim=(1, 2)), gradient)
