"""Central differences of the hard goal, one score at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.estimators.base import GoalEstimate, GradientEstimator, check_width
from lightning_budget.estimators.choice import at_least_float32, hard_choice


class FiniteDifference(GradientEstimator):
    """Move one score up and down by h and difference the hard goal ``F(a) = Σ_i g_i,argmax_j a_ij``.

    ::

        ∂F/∂a_ij ≈ [ F(a + h e_ij) − F(a − h e_ij) ] / (2h)

    A score moves its own user's choice alone, between arm j and the best of the other arms, so the two best arms of a
    user tell all its differences, exactly. Evaluating the whole goal for each score would take N times as long.

    Each component is the derivative of the goal under uniform noise on (−h, h) in that one score. Those are different
    goals for different scores, so the result is no gradient, and does not sum to 0 over arms. The value and the
    assignment are those of the hard choice.

    Args:
        half_width: h in units of the spread of the scores.

    Raises:
        InputError: if h is not above 0.

    Source: central differences; a reference for the others.
    """

    is_random = False
    unbiased_for = "box noise, each component with noise in its own score alone"
    width_name = "half_width"

    def __init__(self, half_width: float = 2.0) -> None:
        self.width = check_width(self, half_width)

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
        kind = at_least_float32(scores)
        scores, gains, step = scores.to(kind), gains.to(kind), width.to(kind)[:, None, None]
        best = scores.max(dim=1, keepdim=True)
        second = scores.scatter(1, best.indices, -torch.inf).max(dim=1, keepdim=True)
        best_gain, second_gain = gains.gather(1, best.indices), gains.gather(1, second.indices)
        arm = torch.arange(scores.shape[1], device=scores.device)[:, None]
        leads = arm == best.indices
        rival = torch.where(leads, second.values, best.values)
        # The first of equal scores wins, as it does when the whole goal is evaluated again.
        earlier = arm < torch.where(leads, second.indices, best.indices)

        def wins(moved: Tensor) -> Tensor:
            return ((moved > rival) | ((moved == rival) & earlier)).to(kind)

        change = wins(scores + step) - wins(scores - step)
        gradient = change.mul_(gains - torch.where(leads, second_gain, best_gain)).div_(2 * step)
        return GoalEstimate(best_gain.sum(dim=(1, 2)), gradient)
