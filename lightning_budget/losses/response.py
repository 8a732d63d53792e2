"""Prediction loss: fit value and cost of the arm that was given."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.schema import Outcome


def outcome_loss(predicted: Tensor, observed: Tensor, kind: Outcome, scale: float) -> Tensor:
    """Loss of each row, ``[N] → [N]``: squared error in units of ``scale``, or cross-entropy of a probability."""
    if kind == "binary":
        return F.binary_cross_entropy(predicted.clamp(1e-6, 1 - 1e-6), observed, reduction="none")
    return ((predicted - observed) / scale).square()


def response_losses(
    batch: RCTBatch,
    prediction: ResponsePrediction,
    arm_share: Tensor,
    value_kind: Outcome,
    cost_kind: Outcome,
    value_scale: float,
    cost_scale: float,
    weight_mean: float = 1.0,
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

    Source: Zhou et al. 2024 (DFCL), arXiv:2407.13664.
    """
    given = batch.treatment.unsqueeze(1)
    value = prediction.value.gather(1, given).squeeze(1)
    cost = prediction.cost.gather(1, given).squeeze(1)
    loss = outcome_loss(value, batch.value, value_kind, value_scale) + outcome_loss(
        cost, batch.cost, cost_kind, cost_scale
    )
    weight = 1 / (arm_share.numel() * arm_share[batch.treatment])
    if batch.weight is not None:
        weight = weight * batch.weight / weight_mean
    return weight * loss
