"""Two-step fits: effects of all arms from a first fit of the outcomes, and their regression.

A two-step learner fits the outcomes first, here by ridge regressions cross-fitted over users
(:mod:`lightning_budget.losses.cross_fitting`), makes of that fit and of the arm that was given a noisy effect of every
arm against control, and regresses it on the features. What it predicts stays a level: control's is fitted to the rows
given control, and every other arm's is control's plus its effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.losses.response import outcome_loss, sample_weighted
from lightning_budget.schema import Outcome

TwoStep = Literal["dr", "x"]


@dataclass(frozen=True)
class PseudoOutcomes:
    """What the effects of arms 1 … K − 1 against control are regressed on, of n rows.

    Attributes:
        value, cost: ``[n, K − 1]``, in units of the outcomes.
        weight: ``[n, K − 1]``, that of the squared error; 0 where a row says nothing of an arm.
    """

    value: Tensor
    cost: Tensor
    weight: Tensor


def doubly_robust_effects(batch: RCTBatch, model: ResponsePrediction) -> PseudoOutcomes:
    """Effects of the DR-learner, every arm's from every row.

    ``ψ_ij = φ_ij − φ_i0`` with ``φ_ij = m_ij + 1[t_i = j] (y_i − m_ij) / p_i``, whose mean given the features is the
    effect for every m that does not depend on the row's own outcome.

    Args:
        batch: n rows; model: ``[n, K]``, m.

    Source: Kennedy 2020, arXiv:2004.14497.
    """
    given = batch.treatment.unsqueeze(1)

    def effect(m: Tensor, y: Tensor) -> Tensor:
        correction = (y.unsqueeze(1) - m.gather(1, given)) / batch.propensity.unsqueeze(1)
        level = m.scatter_add(1, given, correction)
        return level[:, 1:] - level[:, :1]

    value = effect(model.value, batch.value)
    return PseudoOutcomes(value, effect(model.cost, batch.cost), torch.ones_like(value))


def imputed_effects(batch: RCTBatch, model: ResponsePrediction, arm_share: Tensor) -> PseudoOutcomes:
    """Effects of the X-learner: what is observed against what the other arm is predicted to have yielded.

    A row given arm j has ``y − m_0`` for arm j, a row given control has ``m_j − y`` for every arm. The X-learner fits
    an effect ``τ_1`` to the former and ``τ_0`` to the latter, and predicts ``g τ_0 + (1 − g) τ_1``. Here one function
    is fitted to both, by weights ``(1 − g) / p_i`` and ``g / p_i``, under which its minimiser at every x is just that.
    ``g = share_j / (share_j + share_0)``, the propensity of j among the two arms.

    Args:
        batch: n rows; model: ``[n, K]``, m; arm_share: ``[K]``, of the training data.

    Source: Künzel, Sekhon, Bickel, Yu 2019, arXiv:1706.03461.
    """
    control = (batch.treatment == 0).unsqueeze(1)
    treated = batch.treatment.unsqueeze(1) == torch.arange(1, len(arm_share), device=batch.treatment.device)
    g = arm_share[1:] / (arm_share[1:] + arm_share[0])

    def effect(m: Tensor, y: Tensor) -> Tensor:
        observed = y.unsqueeze(1)
        imputed = torch.where(control, m[:, 1:] - observed, 0)
        return torch.where(treated, observed - m[:, :1], imputed)

    weight = (g * control + (1 - g) * treated) / batch.propensity.unsqueeze(1)
    return PseudoOutcomes(effect(model.value, batch.value), effect(model.cost, batch.cost), weight)


def two_step_losses(
    batch: RCTBatch,
    prediction: ResponsePrediction,
    model: ResponsePrediction,
    method: TwoStep,
    arm_share: Tensor,
    value_kind: Outcome,
    cost_kind: Outcome,
    value_scale: float,
    cost_scale: float,
    weight_mean: float = 1.0,
) -> Tensor:
    """Second step: loss of each row, ``[n]``.

    With effects ``ψ`` and weights ``ω`` of :class:`PseudoOutcomes`, sample weight ``w`` and scales ``s`` of both
    outcomes, added up over value and cost::

        w_i / K · ( 1[t_i = 0] ℓ(y_i, ŷ_i0) / share_0 + Σ_{j>0} ω_ij ((ŷ_ij − ŷ_i0 − ψ_ij) / s)² )

    where ℓ is the factual loss. The effects' squared error does not move control's level ``ŷ_i0``. A mean over rows,
    the same for any split of the batch over ranks.

    Args:
        batch: n rows; prediction: ``[n, K]``, trained; model: ``[n, K]``, the first step, constant.
        method: ``dr`` or ``x``; the other arguments: as in :func:`~lightning_budget.losses.response.response_losses`.
    """
    effects = doubly_robust_effects(batch, model) if method == "dr" else imputed_effects(batch, model, arm_share)
    is_control = (batch.treatment == 0) / arm_share[0]

    def of(predicted: Tensor, observed: Tensor, effect: Tensor, kind: Outcome, scale: float) -> Tensor:
        error = (predicted[:, 1:] - predicted[:, :1].detach() - effect) / scale
        level = is_control * outcome_loss(predicted[:, 0], observed, kind, scale)
        return level + (effects.weight * error.square()).sum(1)

    loss = of(prediction.value, batch.value, effects.value, value_kind, value_scale)
    loss = loss + of(prediction.cost, batch.cost, effects.cost, cost_kind, cost_scale)
    return sample_weighted(loss / arm_share.numel(), batch, weight_mean)
