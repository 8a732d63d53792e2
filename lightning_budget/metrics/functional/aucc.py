"""Area under the cost curve (AUCC) of a ranking on randomized logs of two arms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.columns import as_column, as_weight
from lightning_budget.metrics.functional.ranking import Ranking, predicted_roi, rank

ROUNDING = 1e-12
"""A cut counts as reached when it is missed by this share of the costs added up."""


@dataclass(frozen=True)
class RewardCurve:
    """What the best-ranked rows earn while their spend grows to that of treating everyone, in Q steps.

    Attributes:
        spend: ``[Q + 1]`` float64, j / Q of the total Δcost.
        reward: ``[…, Q + 1]`` float64, share of the total Δreward where the running Δcost first reaches ``spend``.
    """

    spend: Tensor
    reward: Tensor


def aucc(
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    *,
    score: Tensor | None = None,
    value_gain_hat: Tensor | None = None,
    cost_gain_hat: Tensor | None = None,
    weight: Tensor | None = None,
    arm: int | None = None,
    parts: int = 200,
) -> Tensor:
    """AUCC, mean of the Q + 1 points of :func:`reward_curve`; a random ranking has 1/2, to a step of a few rows.

    Rows are sorted by the score (predicted ROI), best first. With N_1, N_0 the rows of the arm and of control in the
    *whole* sample, the sums down to rank k are::

        Δcost(k) = Σ_{i ≤ k, t_i = 1} c_i / N_1 − Σ_{i ≤ k, t_i = 0} c_i / N_0,      Δreward(k) likewise with value
        AUCC = Σ_{j = 0}^{Q} Δreward(k_j) / (Δreward_total · (Q + 1))

    with k_0 = 0, k_Q the end and k_j the first rank at which Δcost reaches j/Q of its total.

    Ties: rows of equal score enter in the expectation over their random orders, on the straight line from the sums
    before them to the sums after them, cut at a whole row. One constant score has 1/2 to a step of one row, and the
    order of the rows does not matter.

    Weights are frequencies: a row of weight 2 is two equal rows, and a step of a row is one of weight 1 (the smallest
    weight, if that is less). Where propensities vary, 1/p is a weight.

    Args:
        treatment: ``[N]`` integers, 0 for control.
        value: ``[N]``, observed under the arm given, value units per user.
        cost: ``[N]``, observed under the arm given, currency per user.
        score: ``[N]``, what to rank by; or give both of the following.
        value_gain_hat, cost_gain_hat: ``[N]``, predicted Δv̂ and Δĉ, ranked by :func:`predicted_roi`.
        weight: ``[N]`` ≥ 0; or ``[R, N]``, R weightings of the same ranking, such as bootstrap counts.
        arm: the arm compared with control, rows of others are left out; may be left out if 1 is the only one.
        parts: Q.

    Returns:
        float64 scalar, or ``[R]`` with NaN for weightings whose total Δcost or Δreward is not above 0.

    Raises:
        InputError: if columns are misaligned or not finite, a weight is negative, an arm is unknown or has no rows,
            the total Δcost or Δreward is not above 0, or not exactly one way to rank is given.

    Source: Zou et al. 2020, arXiv 2004.09702; cut as for the figures of Zhou et al. 2024 (DFCL), arXiv 2407.13664.
    """
    if score is None and value_gain_hat is not None and cost_gain_hat is not None:
        score = predicted_roi(value_gain_hat, cost_gain_hat)
    elif score is None or value_gain_hat is not None or cost_gain_hat is not None:
        raise InputError(
            "score, value_gain_hat and cost_gain_hat do not give one way to rank",
            "a score, or both predicted gains",
            "pass score=…, or value_gain_hat=… and cost_gain_hat=…",
        )
    return reward_curve(score, treatment, value, cost, weight, arm, parts).reward.mean(-1)


def reward_curve(
    score: Tensor,
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    weight: Tensor | None = None,
    arm: int | None = None,
    parts: int = 200,
) -> RewardCurve:
    """Share of the reward of treating everyone that the best-ranked have earned at each j/Q of its cost.

    Arguments and errors as :func:`aucc`.
    """
    if parts < 1:
        raise InputError(f"parts={parts}", "at least 1", "200 is the published choice")
    ranking = rank(score, treatment, arm)
    rows = len(treatment)
    value, cost = as_column("value", value, rows), as_column("cost", cost, rows)
    weights = ranking.take(as_weight(weight, rows, treatment.device))
    spend = torch.arange(parts + 1, dtype=torch.float64, device=score.device) / parts
    return RewardCurve(spend, reward_points(ranking, weights, ranking.take(value), ranking.take(cost), parts))


def reward_points(ranking: Ranking, weight: Tensor, value: Tensor, cost: Tensor, parts: int) -> Tensor:
    """Rewards ``[…, Q + 1]`` of a ranking; weight ``[…, n]``, value and cost ``[n]`` in its order, float64."""
    treated = (weight * ranking.treated).sum(-1, keepdim=True)
    control = weight.sum(-1, keepdim=True) - treated
    # Δ times N_1 N_0: ratios stay, and whole numbers add up without rounding.
    signed = weight * torch.where(ranking.treated, control, -treated)
    costs, rewards, mass = ranking.sums(signed * cost), ranking.sums(signed * value), ranking.sums(weight)
    total_cost, total_reward = costs[..., -1:], rewards[..., -1:]
    slack = ROUNDING * (signed * cost).abs().sum(-1, keepdim=True)
    # Below the slack of all cuts a total is what rounding leaves of 0.
    defined = (total_cost > parts * slack) & (total_reward > 0)
    if weight.ndim == 1 and not bool(defined):
        scale = float(treated * control)
        raise InputError(
            f"total Δcost {float(total_cost) / scale:g} and Δreward {float(total_reward) / scale:g}"
            if scale > 0
            else "an arm of total weight 0",
            "both above 0",
            "AUCC needs an arm that costs and earns more than control on these rows",
        )
    steps = torch.arange(1, parts, dtype=torch.float64, device=cost.device)
    target = total_cost * steps / parts - slack
    first = torch.searchsorted(costs.cummax(-1).values, target).clamp_(max=costs.shape[-1] - 1)

    def before(sums: Tensor) -> Tensor:
        return torch.where(first > 0, sums.gather(-1, (first - 1).clamp(min=0)), 0.0)

    start_cost, start_reward = before(costs), before(rewards)
    held = mass.gather(-1, first) - before(mass)
    share = (target - start_cost) / (costs.gather(-1, first) - start_cost)
    row = torch.where(weight > 0, weight, 1.0).amin(-1, keepdim=True).clamp(max=1.0)
    share = ((share * held / row).ceil() * row / held).clamp(0.0, 1.0)
    cuts = start_reward + share * (rewards.gather(-1, first) - start_reward)
    points = torch.cat([torch.zeros_like(total_reward), cuts, total_reward], -1) / total_reward
    return torch.where(defined, points, torch.nan)
