"""What a price of money chooses for each user, on its own and without seeing the others: the policy that is served."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.allocation import compiled
from lightning_budget.allocation.chunks import user_chunks
from lightning_budget.allocation.frontier import LARGEST, slopes_between
from lightning_budget.allocation.problem import check_finite
from lightning_budget.allocation.settled import arm_dtype, settle, tie_of

FILTER_USERS = 1 << 12
"""From so many users on, most are settled by their scores before slopes are looked at."""

MOST_ARMS = 8
"""Up to so many, a compiled pass keeps all numbers of a user in registers and makes its own choice."""


@torch.no_grad()
def policy_treatment(value: Tensor, cost: Tensor, multiplier: float | Tensor) -> Tensor:
    r"""Every user's best treatment at a price of money.

    .. math:: \pi_\lambda(i) = \arg\max_j\, (v_{ij} - \lambda c_{ij})

    Ties go to the cheaper arm, then to the lower index, so a tie never overspends. Arms are compared by the slope
    between them, :math:`(v_j - v_k)/(c_j - c_k) > \lambda`, which meets a breakpoint exactly where the difference of
    two rounded scores would not; the spend does not increase in :math:`\lambda`.

    Args:
        value: ``[N, K]``, value units per user.
        cost: ``[N, K]``, currency per user.
        multiplier: λ, value per currency; ``inf`` gives everyone the cheapest arm.

    Returns:
        Tensor: ``[N]`` int64.
    """
    return arms_at(value.detach().T, cost.detach().T, float(multiplier))


def arms_at(value: Tensor, cost: Tensor, multiplier: float, check: bool = False) -> Tensor:
    """:func:`policy_treatment` of ``[K, N]``: ``[N]`` int64; with ``check``, none but finite numbers pass."""
    arms, users = value.shape
    several = users >= FILTER_USERS and value.dtype == cost.dtype and value.dtype in (torch.float32, torch.float64)
    if several and arms <= MOST_ARMS and compiled.usable(value):
        from lightning_budget.allocation.compiled import choice_run

        arm, finite = choice_run.choose(value, cost, multiplier)
        if check and not finite:
            check_finite(value.T, cost.T)
        return arm
    if not several or not 0 <= multiplier < LARGEST:
        if check:
            check_finite(value.T, cost.T)
        return _by_slopes(value, cost, multiplier)
    arm = torch.empty(users, dtype=arm_dtype(arms), device=value.device)
    # A gain so small beside its price that the slope underflows to 0 is no lead, even where money is free.
    (part,) = settle(value, cost, [(multiplier, multiplier or tie_of(value.element_size())[2])], arm)
    if check and not part.finite:
        check_finite(value.T, cost.T)
    arm[part.rows] = _by_slopes(part.value, part.cost, multiplier).to(arm.dtype)
    return arm.long()


def _by_slopes(value: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    if compiled.usable(value):
        from lightning_budget.allocation.compiled import run

        return run.policy(value, cost, multiplier)
    out = torch.zeros(value.shape[1], dtype=torch.int64, device=value.device)
    for start, v, c in user_chunks(value.T, cost.T):
        arm = out[start : start + v.shape[1]]
        best_v, best_c = v[0].clone(), c[0].clone()
        for j in range(1, len(v)):
            gain, price = v[j] - best_v, c[j] - best_c
            better = slopes_between(gain, price).gt(multiplier) ^ (price < 0)
            better = torch.where(price == 0, gain > 0, better)
            best_v = torch.where(better, v[j], best_v)
            best_c = torch.where(better, c[j], best_c)
            arm.masked_fill_(better, j)
    return out
