"""The policy that is served: a price of money, and where it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.policy_origin import PolicyOrigin
from lightning_budget.allocation.problem import check_shapes
from lightning_budget.errors import InputError


@dataclass(frozen=True)
class PricePolicy:
    r"""Serve a solved allocation to any user, one at a time or in batches.

    .. math:: \pi_\lambda(i) = \arg\max_j\, (v_{ij} - \lambda c_{ij})

    Attributes:
        multiplier: λ ≥ 0, value per currency; ``inf`` gives everyone the cheapest arm.
        treatments: names of the K treatments; where given, users with another number of them are refused.
        origin: budget, data and checkpoint it was solved for.

    Raises:
        InputError: if the multiplier is negative or NaN.
    """

    multiplier: float
    treatments: tuple[str, ...] = ()
    origin: PolicyOrigin | None = None

    def __post_init__(self) -> None:
        if not self.multiplier >= 0:
            raise InputError(
                f"multiplier={self.multiplier}", "a number ≥ 0, value per currency", "take the one allocate() found"
            )

    def __call__(self, value: Tensor, cost: Tensor) -> Tensor:
        """Treatments ``[N]`` int64 for value and cost ``[N, K]``; storage contiguous over users is fastest.

        Raises:
            InputError: if shapes disagree, K is not that of the policy, or a number is not finite.
        """
        return treatments_of(value, cost, self.multiplier, len(self.treatments))

    def choose(self, values: Sequence[float], costs: Sequence[float]) -> int:
        """The treatment of one user, the same as in a batch, from K plain numbers each.

        Raises:
            InputError: if there are not K values and K costs, or one is not finite.
        """
        check_user(values, costs, len(self.treatments))
        return best_treatment(values, costs, self.multiplier)

    def describe(self) -> str:
        """A few lines of text: the rule, the treatments and the origin."""
        rule = f"one more unit of currency must earn {self.multiplier:.6g} units of value"
        if math.isinf(self.multiplier):
            rule = "everyone gets the cheapest treatment"
        lines = [f"Price policy: {rule} (multiplier {self.multiplier!r})"]
        if self.treatments:
            lines.append(f"treatments: {', '.join(self.treatments)}")
        return "\n  ".join(lines + (self.origin.lines() if self.origin else []))

    def __str__(self) -> str:
        return self.describe()

    def to_dict(self) -> dict[str, Any]:
        """Plain containers and finite numbers only, as strict JSON takes them; the multiplier keeps every bit."""
        return {
            "multiplier": "inf" if math.isinf(self.multiplier) else float(self.multiplier),
            "treatments": list(self.treatments),
            "origin": None if self.origin is None else self.origin.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> PricePolicy:
        """Inverse of :meth:`to_dict`."""
        origin = state["origin"]
        return cls(
            float(state["multiplier"]),
            tuple(state["treatments"]),
            None if origin is None else PolicyOrigin.from_dict(origin),
        )


def best_treatment(values: Sequence[float], costs: Sequence[float], multiplier: float) -> int:
    """:func:`lightning_budget.allocation.policy.policy_treatment` of one user, whose numbers are taken as they are.

    Args:
        values, costs: K finite floats each; multiplier: λ, value per currency.
    """
    # An infinite slope counts as the largest float there: nothing beats a multiplier as large as that.
    stop = multiplier if multiplier < LARGEST else math.inf
    best, best_value, best_cost = 0, values[0], costs[0]
    for j in range(1, len(values)):
        v, c = values[j], costs[j]
        price = c - best_cost
        if price > 0:
            better = (v - best_value) / price > stop
        elif price < 0:
            # Going down the frontier: what is saved is worth more than what is lost, or as much.
            better = not (v - best_value) / price > stop
        else:
            better = v > best_value
        if better:
            best, best_value, best_cost = j, v, c
    return best


def check_user(values: Sequence[float], costs: Sequence[float], treatments: int = 0) -> None:
    """Refuse numbers of one user that are not K values and K costs, all finite; any K > 0 if ``treatments`` is 0."""
    k = len(values)
    if k != len(costs) or k != (treatments or k) or not k:
        raise InputError(
            f"{k} values and {len(costs)} costs", _count(treatments), "give one value and one cost per treatment"
        )
    # One sum finds whether anything can be wrong; which, if so, is looked for after.
    if not math.isfinite(sum(values) + sum(costs)):
        for name, numbers in (("values", values), ("costs", costs)):
            for j, x in enumerate(numbers):
                if not math.isfinite(x):
                    raise InputError(
                        f"{name}[{j}] is {x}", "finite numbers", "look for NaN or overflow in the predictions"
                    )


@torch.no_grad()
def treatments_of(value: Tensor, cost: Tensor, multiplier: float, treatments: int = 0) -> Tensor:
    """:func:`best_treatment` of N users: ``[N]`` int64 from ``[N, K]``, any K > 0 if ``treatments`` is 0; N may be 0.

    Raises:
        InputError: if shapes disagree, K is another one, or a number is not finite.
    """
    nobody = value.dim() == 2 and value.shape == cost.shape and not len(value)
    check_shapes(*((x.new_zeros(1, x.shape[1]) for x in (value, cost)) if nobody else (value, cost)))
    if value.shape[1] != (treatments or value.shape[1]):
        raise InputError(
            f"value and cost of {value.shape[1]} treatments", _count(treatments), "predict with the policy's own model"
        )
    if nobody:
        return torch.zeros(0, dtype=torch.int64, device=value.device)
    return arms_at(value.detach().T, cost.detach().T, multiplier, check=True)


def _count(treatments: int) -> str:
    return f"{treatments} of each, one per treatment of the policy" if treatments else "as many of each, at least one"
