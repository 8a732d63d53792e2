"""TARNet: a shared representation and one head per treatment, here for value and for cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_budget.models.learner import Learner
from lightning_budget.models.options import Options
from lightning_budget.schema import DataSchema


class TARNet(Learner):
    """``representation = trunk(features)``, then one head for every arm and outcome.

    Source: Shalit, Johansson, Sontag 2017, arXiv:1606.03976.
    """

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        super().__init__(schema, statistics, sparse_arch, options)
        self.trunk = self.backbone(self.width)
        self.value_heads = self.heads(self.value_response.channels, self.scales_effects)
        self.cost_heads = self.heads(self.cost_response.channels)

    @property
    def scales_effects(self) -> bool:
        """Whether the value's first channel takes its effects from elsewhere than its heads."""
        return False

    def raw(self, features: Tensor) -> dict[str, Tensor]:
        return self.raw_outcomes(self.trunk(features))

    def raw_outcomes(self, representation: Tensor) -> dict[str, Tensor]:
        """Raw outputs ``value`` and ``cost`` from the trunk's representation."""
        return {"value": self.value_heads(representation), "cost": self.cost_heads(representation)}
