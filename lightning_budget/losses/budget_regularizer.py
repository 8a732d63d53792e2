"""The marketing goal as a regularizer: what the model's own allocation earns, at a set of multipliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.estimators.softmax import Softmax

Weighting = Literal["ipw", "doubly_robust"]


def score_spread(prediction: ResponsePrediction, multipliers: Tensor) -> Tensor:
    """Mean over users of the standard deviation over arms of ``v̂ − λ ĉ``, for each multiplier.

    Args:
        prediction: ``[N, K]`` each; multipliers: ``[B]``.

    Returns:
        ``[B]``, value units per user, above 0.
    """
    # One multiplier at a time: the predictions of a whole data set may be large.
    spread = [(prediction.value - m * prediction.cost).std(dim=1, correction=0).mean() for m in multipliers.tolist()]
    return torch.stack(spread).clamp_min(torch.finfo(prediction.value.dtype).tiny)


class BudgetRegularizer:
    """The marketing goal in its dual form, smoothed so that it has a gradient.

    For each multiplier λ of a grid, with scores ``a_ij = v̂_ij − λ ĉ_ij``, smoothed allocation ``q_i`` and what a user
    is estimated to be worth under arm j net of its cost, ``g_ij``::

        R = (1/B) Σ_λ (1/N) Σ_i [ Σ_j q_ij g_ij + entropy · τ_λ H(q_i) ]
        ipw            g_ij = 1[t_i = j] / p_i · (y^v_i − λ y^c_i)
        doubly_robust  g_ij = a_ij + 1[t_i = j] / p_i · (y^v_i − λ y^c_i − a_ij),  a held constant

    With ``entropy = 1`` the softmax allocation is the best one for its own smoothed goal, so correct predictions are a
    fixed point: ``∂R/∂a_ij = q_ij [(g_ij − a_ij) − Σ_k q_ik (g_ik − a_ik)] / τ_λ``. The goal then corrects
    differences between arms where the decision is open, and leaves calibrated ones alone. With ``entropy = 0`` it also
    rewards exaggerating them, as much as the prediction loss allows.

    Args:
        estimator: smooths the allocation.
        weighting: of observed outcomes; ``doubly_robust`` has the smaller variance.
        entropy: weight of the entropy of the smoothed allocation.

    Raises:
        InputError: if ``weighting`` is not known.

    Sources: Yan et al. 2023, arXiv:2302.04477; Zhou et al. 2024, arXiv:2407.13664 (maximum-entropy form);
    Dudík, Langford, Li 2011, arXiv:1103.4601 (doubly robust).
    """

    def __init__(self, estimator: Softmax, weighting: Weighting = "doubly_robust", entropy: float = 1.0) -> None:
        if weighting not in get_args(Weighting):
            raise InputError(
                f"objective.weighting={weighting!r}", ", ".join(get_args(Weighting)), "choose one of the allowed"
            )
        self.estimator, self.weighting, self.entropy = estimator, weighting, entropy

    def __call__(self, batch: RCTBatch, prediction: ResponsePrediction, multipliers: Tensor, spread: Tensor) -> Tensor:
        """The goal of one batch, to be maximised.

        Args:
            batch: N rows; prediction: ``[N, K]`` each.
            multipliers: ``[B]``, value per currency.
            spread: ``[B]``, see :func:`score_spread`.

        Returns:
            Scalar, value units per user; a mean over rows, so the same for any split of the batch over ranks.
        """
        scores = prediction.value - multipliers[:, None, None] * prediction.cost
        q = self.estimator.assignment(scores, spread)
        given = batch.treatment.expand(len(multipliers), -1).unsqueeze(2)
        net = batch.value - multipliers[:, None] * batch.cost
        given_probability = q.gather(2, given).squeeze(2) / batch.propensity
        if self.weighting == "doubly_robust":
            fixed = scores.detach()
            goal = (q * fixed).sum(2) + given_probability * (net - fixed.gather(2, given).squeeze(2))
        else:
            goal = given_probability * net
        if self.entropy:
            temperature = self.estimator.temperature * spread[:, None]
            goal = goal + self.entropy * temperature * torch.special.entr(q).sum(2)
        return goal.mean()


def budget_grid(fractions: Sequence[float], free_spend: float) -> Tensor:
    """Budgets per user from fractions of the free optimum's spend.

    Args:
        fractions: each in (0, 1]; free_spend: currency per user, above 0.

    Returns:
        ``[B]`` float64, currency per user.

    Raises:
        InputError: if a fraction lies outside (0, 1] or nothing would be spent.
    """
    for f in fractions:
        if not 0 < f <= 1:
            raise InputError(f"budget fraction {f}", "(0, 1] of the free optimum's spend", "mend budgets")
    if not fractions:
        raise InputError("no budget fractions", "at least one in (0, 1]", "set budgets=[0.1,0.3]")
    if not 0 < free_spend < math.inf:
        raise InputError(
            f"the free optimum spends {free_spend:g} per user",
            "above 0",
            "check the cost column: no arm seems to cost anything",
        )
    return torch.tensor(fractions, dtype=torch.float64) * free_spend
