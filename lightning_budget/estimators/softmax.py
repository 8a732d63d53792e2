"""Softmax smoothing of the allocation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.errors import InputError


class Softmax:
    """Replace argmax by softmax: the exact gradient of the goal under Gumbel noise of scale τ on the scores.

    With scores ``a_ij = v̂_ij − λ ĉ_ij`` and gains ``g_ij`` (what arm j would add for user i),
    ``R = Σ_i Σ_j softmax(a_i / τ)_j g_ij / N`` and ``∂R/∂a_ij = q_ij (g_ij − Σ_k q_ik g_ik) / (τ N)``.
    It bounds nothing: it is the smoothed goal itself, and tends to the hard one as τ → 0.

    Args:
        temperature: τ in units of the spread of the scores, so that one default serves every data set.

    Raises:
        InputError: if the temperature is not above 0.

    Source: policy learning with a softmax policy; maximum-entropy form of Zhou et al. 2024, arXiv:2407.13664.
    """

    is_random = False
    is_unbiased = True  # for the Gumbel-smoothed goal
    evaluations_per_step = 1

    def __init__(self, temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise InputError(f"estimator.temperature={temperature}", "a number above 0", "1 is the default")
        self.temperature = temperature

    def assignment(self, scores: Tensor, spread: Tensor) -> Tensor:
        """Probability of each arm.

        Args:
            scores: ``[B, N, K]`` for B multipliers.
            spread: ``[B]``, mean standard deviation of the scores over a user's arms.

        Returns:
            ``[B, N, K]``, rows sum to 1, differentiable in the scores.
        """
        return torch.softmax(scores / (self.temperature * spread[:, None, None]), dim=2)
