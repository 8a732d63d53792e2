"""Improved finite differences: the push that makes a user match the arm that it was given."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.estimators.base import GoalEstimate, GradientEstimator, check_width
from lightning_budget.estimators.choice import at_least_float32, hard_choice

Clip = Literal["box", "push"]


class IFD(GradientEstimator):
    """Push the score of the arm that the trial gave until the user's choice matches it, or stops to.

    A trial shows a user's outcome under one arm t alone, so only pushes that turn a match into none, or none into a
    match, change what is measured. The smallest one is as long as the margin ``m_i = a_it − a_ik*`` to the best other
    arm k*, and changes the goal by ``±(g_it − g_ik*)``; with a kernel κ of the margin::

        gradient at t  =  κ(m_i) (g_it − g_ik*),      at k*  =  −κ(m_i) (g_it − g_ik*),      elsewhere 0
        box    κ(m) = 1[|m| < h] / (2h)
        push   κ(m) = 1[|m| < ceiling · h] / max(|m|, floor · h)

    ``box`` is the gradient of the goal under uniform noise on (−h, h) in the score of the given arm. ``push`` is the
    quotient of the change and the push, under two rules of clipping: pushes that are too long count for nothing, and
    short ones as ``floor · h``. It belongs to no smoothed goal: its kernel does not integrate to 1. The value and the
    assignment are those of the hard choice. What other users are worth changes with a match under self-normalised
    weights; that is part of the gains (weighting ``hajek``).

    This is a reconstruction. The paper is known here by its abstract and by descriptions of it: that it improves finite
    differences with the outcome metric of a trial. Its formula and rules of clipping may differ.

    Args:
        half_width: h in units of the spread of the scores.
        clip: ``box`` or ``push``.
        floor, ceiling: of pushes, in units of h, ``0 < floor ≤ ceiling``; ``box`` does not use them.

    Raises:
        InputError: if h or ``floor`` is not above 0, ``ceiling`` is below ``floor``, or ``clip`` is not known.

    Source: Zhou et al. 2024 (DFCL), arXiv:2407.13664.
    """

    is_random = False
    unbiased_for = "box noise in the score of the given arm (clip=box)"
    requires = "given"
    width_name = "half_width"

    def __init__(self, half_width: float = 2.0, clip: Clip = "box", floor: float = 0.1, ceiling: float = 1.0) -> None:
        self.width = check_width(self, half_width)
        if clip not in get_args(Clip):
            raise InputError(f"estimator.clip={clip!r}", ", ".join(get_args(Clip)), "choose one of the allowed")
        if not 0 < floor <= ceiling < math.inf:
            raise InputError(
                f"estimator.floor={floor} and estimator.ceiling={ceiling}",
                "0 < floor <= ceiling",
                "0.1 and 1 are a start",
            )
        self.clip, self.floor, self.ceiling = clip, float(floor), float(ceiling)

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
        if given is None:
            raise InputError(
                "no given arms for the estimator ifd", "the arm that the trial gave each user", "pass given"
            )
        kind = at_least_float32(scores)
        scores, gains = scores.to(kind), gains.to(kind)
        arm = given.expand(len(scores), 1, -1)
        rival = scores.scatter(1, arm, -torch.inf).max(dim=1, keepdim=True)
        margin = scores.gather(1, arm) - rival.values
        match_gain, rival_gain = gains.gather(1, arm), gains.gather(1, rival.indices)
        pull = self._kernel(margin.abs(), width.to(kind)[:, None, None]) * (match_gain - rival_gain)
        gradient = torch.zeros_like(scores).scatter_(1, arm, pull).scatter_(1, rival.indices, -pull)
        best = scores.max(dim=1, keepdim=True).indices
        return GoalEstimate(gains.gather(1, best).sum(dim=(1, 2)), gradient)

    def _kernel(self, push: Tensor, half_width: Tensor) -> Tensor:
        if self.clip == "box":
            return (push < half_width).to(push.dtype).div_(2 * half_width)
        counts = push < self.ceiling * half_width
        return counts.to(push.dtype).div_(torch.maximum(push, self.floor * half_width))
