"""Natural evolution strategies, with credit to each user for its own noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_budget.estimators.base import GoalEstimate, GradientEstimator, check_count, check_width
from lightning_budget.estimators.choice import noisy_gain_, standardize
from lightning_budget.estimators.noise import frequency, normal_draws


class NES(GradientEstimator):
    """Natural evolution strategies with antithetic pairs of Gaussian perturbations, per user.

    With ε of independent N(0, 1), user i's gain ``g_i(a) = g_i,argmax_j a_ij`` and M pairs::

        ∂G/∂a_ij ≈ 1/(2Mσ) Σ_m [ g_i(a + σ ε_m) − g_i(a − σ ε_m) ] ε_m,ij

    At a fixed multiplier a user's noise moves that user's choice alone, so the noise of the others, which the goal of
    the whole matrix would multiply ε_ij with (``nes_global``), is left out: the expectation is the same. Noise on the
    scores has the law of noise on predicted values and costs at that multiplier, in half as many dimensions.

    Args:
        sigma: σ in units of the spread of the scores.
        pairs: M.

    Raises:
        InputError: if σ is not above 0 or there is no pair.

    Source: Wierstra et al. 2014, JMLR 15:949 (natural evolution strategies); the family that Yan et al. 2023,
    arXiv:2302.04477, names. Credit per user is this library's.
    """

    is_random = True
    unbiased_for = "Gaussian noise"
    width_name = "sigma"

    def __init__(self, sigma: float = 1.0, pairs: int = 16) -> None:
        self.width, self.pairs = check_width(self, sigma), check_count("pairs", pairs)
        self.evaluations_per_step = 2 * self.pairs

    @torch.no_grad()
    def assignment(self, scores: Tensor, width: Tensor, generator: torch.Generator | None = None) -> Tensor:
        standard = standardize(scores, width)
        return frequency(standard, _both_signs(normal_draws(standard, self.pairs, generator)))

    @torch.no_grad()
    def estimate(
        self,
        scores: Tensor,
        gains: Tensor,
        width: Tensor,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> GoalEstimate:
        standard = standardize(scores, width)
        gains, width = gains.to(standard.dtype), width.to(standard.dtype)
        gradient, noisy = torch.zeros_like(standard), torch.empty_like(standard)
        value = torch.zeros_like(width)
        for draw in normal_draws(standard, self.pairs, generator):
            above = noisy_gain_(torch.add(standard, draw, out=noisy), gains)
            below = noisy_gain_(torch.sub(standard, draw, out=noisy), gains)
            value += above.sum(dim=1) + below.sum(dim=1)
            gradient.addcmul_(self._credit(above.sub_(below))[:, None], draw)
        gradient.div_(self.evaluations_per_step).div_(width[:, None, None])
        return GoalEstimate(value.div_(self.evaluations_per_step), gradient)

    def _credit(self, change: Tensor) -> Tensor:
        """What multiplies a user's noise, ``[B, N]`` or ``[B, 1]``, from the change ``[B, N]`` of each user's gain."""
        return change


def _both_signs(draws: Iterator[Tensor]) -> Iterator[Tensor]:
    for draw in draws:
        yield draw
        yield -draw
