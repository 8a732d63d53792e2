"""What the goal takes from the whole data and holds fixed between two refreshes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_budget.losses.gains import GainConstants


@dataclass(frozen=True)
class GoalState:
    """Numbers of B budgets (or multipliers) and K treatments.

    Attributes:
        budget: ``[B]``, currency per user; NaN where multipliers were given instead.
        multiplier: ``[B]`` λ, value per currency.
        spread: ``[B]``, unit of the estimator's width, in units of the scores.
        rate: ``[B]`` κ, what a unit of cost counts for in the goal's gradient, value per currency.
        value_base, cost_base, factor: ``[B, K]``, see :class:`~lightning_budget.losses.gains.GainConstants`.
    """

    budget: Tensor
    multiplier: Tensor
    spread: Tensor
    rate: Tensor
    value_base: Tensor
    cost_base: Tensor
    factor: Tensor

    @property
    def constants(self) -> GainConstants:
        return GainConstants(self.value_base, self.cost_base, self.factor)

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> GoalState:
        """Inverse of :meth:`tensors`."""
        return cls(**tensors)

    def to(self, device: torch.device, kind: torch.dtype) -> GoalState:
        return GoalState(**{name: x.to(device, kind) for name, x in self.tensors().items()})

    def blend(self, newer: GoalState, momentum: float) -> GoalState:
        """``momentum · self + (1 − momentum) · newer``: the running average."""
        newer_tensors = newer.tensors()
        return GoalState(
            **{name: momentum * x + (1 - momentum) * newer_tensors[name] for name, x in self.tensors().items()}
        )
