"""S-learner: one network for all treatments, to which the treatment is a feature like others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_budget.errors import InputError
from lightning_budget.models.heads import SharedHead
from lightning_budget.models.learner import Learner
from lightning_budget.models.options import Options
from lightning_budget.schema import DataSchema


@dataclass(frozen=True)
class SLearnerOptions(Options):
    """Args: arm_dim: width of the treatment's embedding, which joins the features at the trunk's input."""

    arm_dim: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arm_dim < 1:
            raise InputError(f"model.arm_dim={self.arm_dim}", "a width of at least 1", "raise it")


class SLearner(Learner):
    """``raw_ij = head(trunk(features_i ‖ embedding of arm j))``, all K arms of a user evaluated together.

    Under ``backbone=dcn_v2`` the cross layers multiply the treatment's embedding with every feature. Raw outputs start
    at the arms' means as those of the other learners do.

    Source: Künzel, Sekhon, Bickel, Yu 2019, arXiv:1706.03461.
    """

    kind = SLearnerOptions
    shares_doses = False

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        super().__init__(schema, statistics, sparse_arch, options)
        assert isinstance(options, SLearnerOptions)
        self.arm = nn.Parameter(torch.randn(self.num_treatments, options.arm_dim))
        self.trunk = self.backbone(self.width + options.arm_dim)
        sizes = options.trunk_hidden[-1], options.head_hidden
        self.value_head = SharedHead(*sizes, self.value_response.channels)
        self.cost_head = SharedHead(*sizes, self.cost_response.channels)

    def raw(self, features: Tensor) -> dict[str, Tensor]:
        users = features.unsqueeze(1).expand(-1, self.num_treatments, -1)
        arms = self.arm.expand(features.shape[0], -1, -1)
        representation = self.trunk(torch.cat([users, arms], dim=2))
        return {"value": self.value_head(representation), "cost": self.cost_head(representation)}

    def is_by_arm(self, name: str) -> bool:
        return name == "arm" or super().is_by_arm(name)
