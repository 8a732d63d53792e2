"""DragonNet: TARNet whose representation must tell the treatment, with targeted regularization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_budget.models.learner import LearnerOutput, Observed
from lightning_budget.models.options import Options, refuse_negative
from lightning_budget.models.tarnet import TARNet
from lightning_budget.schema import DataSchema


@dataclass(frozen=True)
class DragonNetOptions(Options):
    """Args: propensity_weight, targeted_weight: α and β of the two losses."""

    propensity_weight: float = 1.0
    targeted_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative(propensity_weight=self.propensity_weight, targeted_weight=self.targeted_weight)


class DragonNet(TARNet):
    r"""TARNet with a linear head for the treatment, and predictions that solve the efficient estimating equation.

    Beside the factual loss each row has, for K arms,

    - ``propensity_loss``: α · cross-entropy of the treatment under softmax(propensity head);
    - ``targeted_loss``: β · Σ over value and learned cost of
      :math:`((y - \hat y_t - \varepsilon_t / \pi_t) / scale)^2` with one trained ε per arm and outcome. At its minimum
      over ε the weighted residuals of every arm sum to zero, :math:`\sum_{t_i = j} (y_i - \tilde y_{ij}) / \pi_i = 0`.

    For two arms with one ε of opposite signs this is the published loss. π is the trial's own propensity: it is known,
    so the head only regularizes. Predictions are ŷ without ε, as published.

    Source: Shi, Blei, Veitch 2019, arXiv:1906.02120.
    """

    kind = DragonNetOptions

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        super().__init__(schema, statistics, sparse_arch, options)
        self.propensity_head = nn.Linear(options.trunk_hidden[-1], self.num_treatments)
        self.value_epsilon = nn.Parameter(torch.zeros(self.num_treatments))
        self.cost_epsilon = nn.Parameter(torch.zeros(self.num_treatments))

    def raw(self, features: Tensor) -> dict[str, Tensor]:
        representation = self.trunk(features)
        return {**self.raw_outcomes(representation), "propensity": self.propensity_head(representation)}

    def extra_losses(self, batch: Observed, output: LearnerOutput) -> dict[str, Tensor]:
        assert isinstance(self.options, DragonNetOptions)
        propensity = F.cross_entropy(output.extra["propensity"], batch.treatment, reduction="none")
        given = batch.treatment.unsqueeze(1)
        targeted = torch.zeros_like(propensity)
        for outcome, epsilon, scale in (
            ("value", self.value_epsilon, self.value_scale),
            ("cost", self.cost_epsilon, self.cost_scale),
        ):
            predicted = getattr(output.prediction, outcome).gather(1, given).squeeze(1)
            moved = predicted + epsilon[batch.treatment] / batch.propensity
            loss = ((getattr(batch, outcome) - moved) / scale).square()
            learned = self.known_cost[batch.treatment].isnan() | (outcome == "value")
            targeted = targeted + loss * learned
        return {
            "propensity_loss": self.options.propensity_weight * propensity,
            "targeted_loss": self.options.targeted_weight * targeted,
        }

    def is_by_arm(self, name: str) -> bool:
        return name.startswith("propensity_head.") or name.endswith("_epsilon") or super().is_by_arm(name)
