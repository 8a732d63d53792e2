"""Multipliers at which a policy would have given each row of a trial the arm that the trial gave it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_budget.allocation.compiled import usable
from lightning_budget.metrics.functional.checks import check_responses, check_shapes, check_treatment

_LARGEST = torch.finfo(torch.float64).max


class MatchedInterval(NamedTuple):
    """Multipliers at which a policy gives each row its logged arm: ``lower <= λ < upper``, ``[N]`` float64 each."""

    lower: Tensor
    upper: Tensor


@torch.no_grad()
def matched_interval(value_hat: Tensor, cost_hat: Tensor, treatment: Tensor) -> MatchedInterval:
    """Multipliers λ ≥ 0 at which argmax_j v̂_ij − λ ĉ_ij is the arm that row i was given.

    Ties go to the cheaper arm, then to the lower index, so with t the given arm::

        upper = min over cheaper k of (v̂_t − v̂_k) / (ĉ_t − ĉ_k)        (strict: at equality k wins)
        lower = max over dearer  k of (v̂_k − v̂_t) / (ĉ_k − ĉ_t), 0
        never, when an equally dear k is worth more, or as much at a lower index

    A row that is never matched has the empty interval [0, 0). Without a cheaper arm ``upper`` is +inf and λ = +inf
    counts as matched.

    Args:
        value_hat: ``[N, K]`` predictions that make the policy, value units per user; storage contiguous over users is
            fastest.
        cost_hat: ``[N, K]``, currency per user.
        treatment: ``[N]`` int64.

    Raises:
        InputError: if shapes differ, a prediction is not finite or a treatment is outside 0 … K − 1.
    """
    check_shapes(value_hat, cost_hat, "predicted")
    check_treatment(treatment, *value_hat.shape)
    if usable(value_hat) and usable(cost_hat):
        from lightning_budget.metrics.functional.compiled.intervals_run import matched

        found = matched(value_hat, cost_hat, treatment)
        if found is not None:
            return MatchedInterval(*found)
    check_responses(value_hat, cost_hat, "predicted")
    value, cost, given = value_hat.double(), cost_hat.double(), treatment.long()[:, None]
    value_gain = value.gather(1, given) - value
    cost_gain = cost.gather(1, given) - cost
    # An overflow stays finite, so that only the absence of a cheaper arm is +inf.
    slope = (value_gain / torch.where(cost_gain == 0, 1.0, cost_gain)).clamp(-_LARGEST, _LARGEST)
    upper = torch.where(cost_gain > 0, slope, torch.inf).amin(1)
    lower = torch.where(cost_gain < 0, slope, 0.0).amax(1).clamp(min=0.0)
    index = torch.arange(value.shape[1], device=value.device)
    beaten = ((cost_gain == 0) & ((value_gain < 0) | ((value_gain == 0) & (index < given)))).any(1)
    never = beaten | (lower >= upper)
    return MatchedInterval(torch.where(never, 0.0, lower), torch.where(never, 0.0, upper))
