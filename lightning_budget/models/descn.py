"""DESCN: responses learned on the entire space of rows, with pseudo effects that tie treated and control together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_budget.models.learner import LearnerOutput, Observed
from lightning_budget.models.options import Options, refuse_negative
from lightning_budget.models.responses import Response, Start
from lightning_budget.models.tarnet import TARNet
from lightning_budget.prediction import outcome_loss
from lightning_budget.schema import DataSchema


@dataclass(frozen=True)
class DESCNOptions(Options):
    """Args: propensity_weight, entire_space_weight, cross_weight: of the three losses."""

    propensity_weight: float = 0.5
    entire_space_weight: float = 1.0
    cross_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative(
            propensity_weight=self.propensity_weight,
            entire_space_weight=self.entire_space_weight,
            cross_weight=self.cross_weight,
        )


class DESCN(TARNet):
    r"""TARNet with a propensity head π and heads for pseudo effects τ'.

    Beside the factual loss each row has, for K arms,

    - ``propensity_loss``: cross-entropy of the treatment under softmax(propensity head);
    - ``entire_space_loss``: every row teaches every arm, for
      :math:`E[Y \cdot 1\{T = j\} | x] = \pi_j(x) \mu_j(x)`:
      :math:`\sum_j \ell(y \cdot 1\{t = j\}, \pi_j \mu_j)` of value and cost, ESTR and ESCR of the paper;
    - ``cross_loss``: a treated row teaches the control's response and τ', a control row the treated ones': in raw
      outputs, ``μ'_j = response(raw_0 + τ'_j)`` against y where t = j > 0, and ``μ'_0 = response(raw_j − τ'_j)``,
      averaged over j > 0, where t = 0.

    ℓ is cross-entropy for a binary outcome, squared error in units of the scale otherwise. Predictions are μ.

    Source: Zhong et al. 2022, arXiv:2207.09920; the default weights are ours: the published code weighs its two
    entire-space terms 0.5 and 1, its cross terms likewise, and the factual ones 0.1.
    """

    kind = DESCNOptions
    ordered_heads: ClassVar[bool] = False
    may_be_wide: ClassVar[bool] = False
    shares_conversions: ClassVar[bool] = False

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        super().__init__(schema, statistics, sparse_arch, options)
        self.propensity_head = nn.Linear(options.trunk_hidden[-1], self.num_treatments)
        self.value_effect_heads = self.heads(self.value_response.channels)
        self.cost_effect_heads = self.heads(self.cost_response.channels)

    def raw(self, features: Tensor) -> dict[str, Tensor]:
        representation = self.trunk(features)
        return {
            **self.raw_outcomes(representation),
            "propensity": self.propensity_head(representation),
            "value_effect": self.value_effect_heads(representation),
            "cost_effect": self.cost_effect_heads(representation),
        }

    def extra_losses(self, batch: Observed, output: LearnerOutput) -> dict[str, Tensor]:
        o, extra = self.options, output.extra
        assert isinstance(o, DESCNOptions)
        propensity = F.cross_entropy(extra["propensity"], batch.treatment, reduction="none")
        share = extra["propensity"].softmax(1)
        entire = cross = torch.zeros_like(propensity)
        for outcome, start, response in (
            ("value", self.value_start, self.value_response),
            ("cost", self.cost_start, self.cost_response),
        ):
            observed, predicted = getattr(batch, outcome), getattr(output.prediction, outcome)
            given = F.one_hot(batch.treatment, self.num_treatments).to(observed.dtype)
            both = outcome_loss(share * predicted, observed.unsqueeze(1) * given, response.kind, response.scale)
            entire = entire + both.sum(1)
            crossed = _crossed(extra[outcome], extra[f"{outcome}_effect"], start, response)
            cross = cross + _cross_loss(crossed, observed, batch.treatment, response)
        return {
            "propensity_loss": o.propensity_weight * propensity,
            "entire_space_loss": o.entire_space_weight * entire,
            "cross_loss": o.cross_weight * cross,
        }

    def is_by_arm(self, name: str) -> bool:
        return name.startswith("propensity_head.") or super().is_by_arm(name)


def _crossed(raw: Tensor, effect: Tensor, start: Start, response: Response) -> tuple[Tensor, Tensor]:
    """``[N, K − 1]`` each: the treated arms' outcomes by way of control, and control's by way of each of them."""
    treated = response(raw[:, :1] + effect[:, 1:], start.of(slice(1, None)))
    control = start.of(torch.zeros(effect.shape[1] - 1, dtype=torch.int64, device=effect.device))
    return treated, response(raw[:, 1:] - effect[:, 1:], control)


def _cross_loss(crossed: tuple[Tensor, Tensor], observed: Tensor, treatment: Tensor, response: Response) -> Tensor:
    (treated, control), kind, scale = crossed, response.kind, response.scale
    arm = (treatment - 1).clamp_min(0).unsqueeze(1)
    of_treated = outcome_loss(treated.gather(1, arm).squeeze(1), observed, kind, scale)
    of_control = outcome_loss(control, observed.unsqueeze(1).expand_as(control), kind, scale).mean(1)
    return torch.where(treatment > 0, of_treated, of_control)
