"""What a price of money chooses for each user, on its own and without seeing the others: the policy that is served."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.chunks import user_chunks
from lightning_budget.allocation.frontier import slopes_between


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
    price_of_money = float(multiplier)
    out = torch.zeros(len(value), dtype=torch.int64, device=value.device)
    for start, v, c in user_chunks(value, cost):
        arm = out[start : start + v.shape[1]]
        best_v, best_c = v[0].clone(), c[0].clone()
        for j in range(1, len(v)):
            gain, price = v[j] - best_v, c[j] - best_c
            better = slopes_between(gain, price).gt(price_of_money) ^ (price < 0)
            better = torch.where(price == 0, gain > 0, better)
            best_v = torch.where(better, v[j], best_v)
            best_c = torch.where(better, c[j], best_c)
            arm.masked_fill_(better, j)
    return out


@dataclass(frozen=True)
class PricePolicy:
    """Serve a solved allocation to any user: call with ``[N, K]`` value and cost, get ``[N]`` treatments.

    Attributes:
        multiplier: λ, value per currency; see :func:`policy_treatment`.
    """

    multiplier: float

    def __call__(self, value: Tensor, cost: Tensor) -> Tensor:
        """Treatments ``[N]`` int64 for predicted value and cost ``[N, K]``."""
        return policy_treatment(value, cost, self.multiplier)
