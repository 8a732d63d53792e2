"""Solve one allocation problem and say how far from the optimum it can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_budget.allocation.dual import all_users, bracket_near
from lightning_budget.allocation.finish import Miss
from lightning_budget.allocation.problem import check_feasible, check_finite, check_shapes
from lightning_budget.allocation.search import few_enough, search
from lightning_budget.allocation.settled import arm_dtype
from lightning_budget.errors import InputError


@dataclass(frozen=True)
class Allocation:
    """One treatment per user within the budget, and the proof of its quality.

    Attributes:
        assignment: ``[N]``, the treatment of each user, in the smallest integer type that counts K of them; as an
            index it needs ``.long()``.
        multiplier: λ, the value that one more unit of currency would earn; 0 where the budget does not bind.
        value: total predicted value.
        spend: total predicted spend, summed in float64 without rounding between users.
        dual_bound: no allocation within the budget is worth more.
        gap: ``dual_bound − value``, at least 0 up to rounding.
        slack: ``budget − spend``, at least 0.
        budget: total currency that was given.
    """

    assignment: Tensor
    multiplier: float
    value: float
    spend: float
    dual_bound: float
    gap: float
    slack: float
    budget: float

    def certificate(self) -> dict[str, float | int]:
        """Plain numbers for a report: users, the budget and what was spent, the value and its bound."""
        return {
            "users": len(self.assignment),
            "budget": self.budget,
            "spend": self.spend,
            "slack": self.slack,
            "value": self.value,
            "dual_bound": self.dual_bound,
            "gap": self.gap,
            "relative_gap": self.gap / abs(self.dual_bound) if self.dual_bound else 0.0,
            "multiplier": self.multiplier,
        }


@torch.no_grad()
def allocate(
    value: Any,
    cost: Any,
    budget: float,
    *,
    key: Any = None,
    multiplier: float | Sequence[float] | None = None,
) -> Allocation:
    r"""Give every user one treatment so that the total value is the most that a total budget buys.

    .. math:: \max_z \sum_{ij} v_{ij} z_{ij} \quad\text{s.t.}\quad
        \sum_{ij} c_{ij} z_{ij} \le B,\; \sum_j z_{ij} = 1,\; z_{ij} \in \{0, 1\}

    The policy at the critical multiplier, then a greedy fill of what it leaves over. The value is within the largest
    single step of one user's frontier of the linear relaxation, whose optimum is ``dual_bound``:
    :math:`\min_\lambda D(\lambda)`. Arms may cost less than nothing or be worth less than nothing.

    Args:
        value: ``[N, K]`` floating tensor or array, value units per user; storage contiguous over users is fastest.
        cost: ``[N, K]``, currency per user.
        budget: **total** currency :math:`B` for the N users.
        key: ``[N]`` int64, distinct user ids: ties are broken by their hash, so that the assignment of a user does not
            depend on the order of the rows. The position if not given.
        multiplier: one or several multipliers thought to be near; they save time and change nothing.

    Raises:
        InputError: if shapes, types or devices disagree, an entry is not finite, or the budget is not positive or
            lies below the least feasible spend :math:`\sum_i \min_j c_{ij}`.

    Source:
        Sinha, Zoltners 1979, doi:10.1287/opre.27.3.503; Zemel 1980, doi:10.1287/opre.28.6.1412.
    """
    value, cost = torch.as_tensor(value), torch.as_tensor(cost)
    check_shapes(value, cost)
    if not (math.isfinite(budget) and budget > 0):
        raise InputError(f"budget={budget}", "a finite total budget above 0", "give currency for all users together")
    users = all_users(value, cost, _checked_key(key, value))
    if few_enough(len(value)):
        check_finite(value, cost)
    found = search(users, float(budget), leftover=True, guess=_guess(multiplier))
    if isinstance(found, Miss):
        check_feasible(cost, budget)
        raise AssertionError("no multiplier fits a feasible budget")
    spend, reached = math.fsum(found.spend), math.fsum(found.worth)
    # Where all arms that tie at λ score alike, D(λ) is what the policy is worth and λ times what it leaves over.
    unspent = math.fsum([budget, *(-x for x in found.policy_spend)])
    bound = math.fsum([*found.policy_worth, found.multiplier * unspent])
    assignment = found.arm.to(arm_dtype(value.shape[1]))
    return Allocation(assignment, found.multiplier, reached, spend, bound, bound - reached, budget - spend, budget)


def _guess(multiplier: float | Sequence[float] | None) -> tuple[float, float] | None:
    if multiplier is None:
        return None
    several = torch.as_tensor(multiplier, dtype=torch.float64).reshape(-1).tolist()
    if not several or not all(math.isfinite(m) and m >= 0 for m in several):
        raise InputError(f"multiplier={multiplier}", "finite, at least 0", "leave it out to solve without a guess")
    return bracket_near(several)


def _checked_key(key: Any, value: Tensor) -> Tensor | None:
    if key is None:
        return None
    key = torch.as_tensor(key)
    if key.shape != value.shape[:1] or key.dtype != torch.int64 or key.device != value.device:
        raise InputError(
            f"key has shape {list(key.shape)}, dtype {key.dtype}",
            f"[{len(value)}] torch.int64 beside value",
            "give one integer id per user",
        )
    return key
