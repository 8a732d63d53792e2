"""Score-function estimator (REINFORCE) of the softmax policy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_budget.estimators.base import GoalEstimate, GradientEstimator, check_count, check_width
from lightning_budget.estimators.choice import standardize
from lightning_budget.estimators.noise import exponential_draws, frequency


class ScoreFunction(GradientEstimator):
    """REINFORCE with a leave-one-out baseline, for arms drawn from ``q_i = softmax(a_i / τ)``.

    With M draws ``J_m`` of user i's arm and the mean gain ``ḡ`` of the draws::

        ∂G/∂a_ij ≈ 1/M Σ_m (g_J_m − mean of g_J_l over l ≠ m) · (1[J_m = j] − q_ij) / τ
                 = M/(M−1) · f_j (g_ij − ḡ) / τ,      f_j = share of draws that are j

    The second form, which is computed, is the same number: deviations from a leave-one-out mean are M/(M−1) times
    those from ``ḡ``, and sum to 0 over draws, which removes q. It is the formula of ``softmax`` with frequencies in
    place of probabilities, and tends to it as M → ∞.

    Args:
        temperature: τ in units of the spread of the scores.
        samples: M, at least 2.

    Raises:
        InputError: if τ is not above 0 or there are fewer than 2 samples.

    Sources: Williams 1992, Machine Learning 8:229; Kool, van Hoof, Welling 2019 (leave-one-out baseline), ICLR workshop
    "Buy 4 REINFORCE samples, get a baseline for free".
    """

    is_random = True
    unbiased_for = "Gumbel noise"
    width_name = "temperature"

    def __init__(self, temperature: float = 1.0, samples: int = 8) -> None:
        self.width, self.samples = check_width(self, temperature), check_count("samples", samples, 2)
        self.evaluations_per_step = self.samples

    @torch.no_grad()
    def assignment(self, scores: Tensor, width: Tensor, generator: torch.Generator | None = None) -> Tensor:
        standard = standardize(scores, width)
        return frequency(standard, self._gumbel(standard, generator))

    @torch.no_grad()
    def estimate(
        self,
        scores: Tensor,
        gains: Tensor,
        width: Tensor,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> GoalEstimate:
        f = self.assignment(scores, width, generator)
        gains = gains.to(f.dtype)
        earned = (f * gains).sum(dim=1, keepdim=True)
        gradient = f.mul_(gains - earned).mul_(self.samples / (self.samples - 1))
        return GoalEstimate(earned.sum(dim=(1, 2)), gradient.div_(width.to(f.dtype)[:, None, None]))

    def _gumbel(self, like: Tensor, generator: torch.Generator | None) -> Iterator[Tensor]:
        """The largest of scores with Gumbel noise is a draw of their softmax."""
        for exponential in exponential_draws(like, self.samples, generator):
            yield -exponential.log_()
