"""Prediction loss: fit value and cost of the arm that was given."""

from __future__ import annotations

from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.prediction import outcome_loss as outcome_loss
from lightning_budget.schema import Outcome


def sample_weighted(x: Tensor, batch: RCTBatch, weight_mean: float) -> Tensor:
    """``x`` of n rows, ``[n]``, times their sample weights in units of the mean one; as it is where there are none."""
    return x if batch.weight is None else x * batch.weight / weight_mean


def response_losses(
    batch: RCTBatch,
    prediction: ResponsePrediction,
    arm_share: Tensor,
    value_kind: Outcome,
    cost_kind: Outcome,
    value_scale: float,
    cost_scale: float,
    weight_mean: float = 1.0,
    value_losses: Tensor | None = None,
    cost_losses: Tensor | None = None,
) -> Tensor:
    """Loss of the given arm of each row, ``[n]``, weighted so that its mean is averaged within arms first.

    ``L = (1/K) Σ_i (1/N_{t_i}) [ℓ(y^v_i, v̂_{i,t_i}) + ℓ(y^c_i, ĉ_{i,t_i})]`` over the training data. On a batch of n
    rows this is ``(1/n) Σ_i [...] / (K · share_{t_i})`` with the arms' training shares, which is unbiased and, being a
    plain mean over rows, the same for any split of the batch over ranks.

    Args:
        batch: n rows; prediction: ``[n, K]`` each.
        arm_share: ``[K]``, share of each arm in the training data.
        value_kind, cost_kind: ``continuous`` or ``binary``.
        value_scale, cost_scale: outcome units of one unit of error.
        weight_mean: mean sample weight in the training data, of which the loss of a row is a multiple where the batch
            has sample weights.
        value_losses: ``[n]``, instead of ``ℓ(y^v_i, v̂_{i,t_i})``: a learner's own likelihood; cost_losses: likewise.

    Source: Zhou et al. 2024 (DFCL), arXiv:2407.13664.
    """
    given = batch.treatment.unsqueeze(1)
    value = prediction.value.gather(1, given).squeeze(1)
    cost = prediction.cost.gather(1, given).squeeze(1)
    if value_losses is None:
        value_losses = outcome_loss(value, batch.value, value_kind, value_scale)
    if cost_losses is None:
        cost_losses = outcome_loss(cost, batch.cost, cost_kind, cost_scale)
    loss = value_losses + cost_losses
    return sample_weighted(1 / (arm_share.numel() * arm_share[batch.treatment]), batch, weight_mean) * loss
