"""Perturbed argmax: the derivative of the noise's density in place of that of the choice."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.estimators.base import GoalEstimate, GradientEstimator, check_count, check_width
from lightning_budget.estimators.choice import noisy_gain_, standardize
from lightning_budget.estimators.noise import exponential_draws, frequency, normal_draws

Noise = Literal["gaussian", "gumbel"]


class Perturbed(GradientEstimator):
    """Perturbed optimizer: gain under noise, times minus the derivative of the noise's log-density.

    With noise of density μ on every score, user i's gain ``g_i(a) = g_i,argmax_j a_ij`` and M samples::

        ∂G/∂a_ij ≈ 1/(Mσ) Σ_m g_i(a + σ ε_m) · s(ε_m,ij),      s = −(log μ)'
        gaussian   s(ε) = ε                 tends to ``gaussian`` as M → ∞
        gumbel     s(ε) = 1 − exp(−ε)       tends to ``softmax``

    Neither antithetic nor with a baseline, so a constant added to a user's gains leaves the mean but adds variance:
    ``nes`` is better at the same cost where gains are far from 0.

    Args:
        sigma: σ in units of the spread of the scores.
        samples: M.
        noise: ``gaussian`` or ``gumbel``.

    Raises:
        InputError: if σ is not above 0, there is no sample, or ``noise`` is not known.

    Source: Berthet et al. 2020, arXiv:2002.08676.
    """

    is_random = True
    unbiased_for = "Gaussian or Gumbel noise, as chosen"
    width_name = "sigma"

    def __init__(self, sigma: float = 1.0, samples: int = 8, noise: Noise = "gaussian") -> None:
        self.width, self.samples = check_width(self, sigma), check_count("samples", samples)
        if noise not in get_args(Noise):
            raise InputError(f"estimator.noise={noise!r}", ", ".join(get_args(Noise)), "choose one of the allowed")
        self.noise = noise
        self.evaluations_per_step = self.samples

    @torch.no_grad()
    def assignment(self, scores: Tensor, width: Tensor, generator: torch.Generator | None = None) -> Tensor:
        standard = standardize(scores, width)
        if self.noise == "gaussian":
            return frequency(standard, normal_draws(standard, self.samples, generator))
        return frequency(standard, (-e.log_() for e in exponential_draws(standard, self.samples, generator)))

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
        gradient, value = torch.zeros_like(standard), torch.zeros_like(width)
        gaussian = self.noise == "gaussian"
        draws = (normal_draws if gaussian else exponential_draws)(standard, self.samples, generator)
        for draw in draws:
            # exp(−ε) of Gumbel noise is the exponential variate that it is made from.
            noisy = standard + draw if gaussian else standard - draw.log()
            earned = noisy_gain_(noisy, gains)
            value += earned.sum(dim=1)
            gradient.addcmul_(earned[:, None], draw if gaussian else 1 - draw)
        return GoalEstimate(value.div_(self.samples), gradient.div_(self.samples).div_(width[:, None, None]))
