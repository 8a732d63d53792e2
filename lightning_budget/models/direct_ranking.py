"""A score of every arm against a reference, for the direct methods, and the predictions whose policy it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.models.links import cost_with_known
from lightning_budget.models.options import Options
from lightning_budget.models.tarnet import TARNet
from lightning_budget.prediction import ResponsePrediction
from lightning_budget.schema import DataSchema

Pairs = Literal["control", "adjacent"]
HEADROOM = 4.0
"""Largest return that a score can say, in units of the largest mean return."""
LEAST_STEP = 1e-3
"""Least cost of an arm above its reference, in units of the cost's scale."""


@dataclass(frozen=True)
class RankingOptions(Options):
    """Options of :class:`DirectRanking`.

    Args:
        pairs: an arm's reference is ``control``, or the ``adjacent`` arm, that of the next lower mean cost.
        roi_scale: return, in value per currency, that a score can come near but not reach; 0: :data:`HEADROOM` times
            the largest mean return in the training data.

    Raises:
        InputError: for other pairs, a negative scale, or heads for outcomes that are not fitted.
    """

    pairs: Pairs = "control"
    roi_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs not in get_args(Pairs):
            raise InputError(f"model.pairs={self.pairs!r}", ", ".join(get_args(Pairs)), "choose one of the allowed")
        if not 0 <= self.roi_scale < float("inf"):
            raise InputError(f"model.roi_scale={self.roi_scale:g}", "0 or above", "0 finds one in the training data")
        if self.value_head != "plain":
            raise InputError(f"model.value_head={self.value_head} of scores", "plain", "leave it out")


class DirectRanking(TARNet):
    """Scores ``s_ij`` where TARNet has values, and as many costs, of one representation.

    With ``q_ij = scale · σ(s_ij + start_j)``, the reference r of arm j, and control's mean value ``v̄_0``::

        ĉ_ij  = max(cost head_ij, ĉ_ir + a little),      v̂_i0 = v̄_0,      v̂_ij = v̂_ir + q_ij (ĉ_ij − ĉ_ir)

    so that ``v̂_ij − λ ĉ_ij`` exceeds that of the reference where and only where ``q_ij > λ``: with two arms the policy
    is the ranking by q whatever ĉ says, and with several, where q falls from step to step, so it is the last step whose
    q exceeds λ; else the allocator's hull averages steps by cost. ĉ is currency: it is fitted to the observed cost,
    on the representation as the score has shaped it, which it does not move. Budgets in currency therefore mean what
    they say; v̂ is in value units above control as far as q is a return, which under ``drm`` it is not.

    ``start_j`` is such that an untrained q is the mean return of the training data, where that lies within bounds.

    Attributes:
        reference: K arms; control, the cheapest, is its own.
        roi_scale: value per currency.

    Raises:
        InputError: if another arm than control has the lowest mean cost.

    Sources: as of the losses, :mod:`lightning_budget.losses.direct_ranking`; the predictions are this library's.
    """

    kind = RankingOptions
    may_be_wide: ClassVar[bool] = False
    shares_conversions: ClassVar[bool] = False

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        assert isinstance(options, RankingOptions)
        super().__init__(schema, statistics, sparse_arch, options)
        known = zip(schema.known_cost, statistics["cost_mean"], strict=True)
        costs = [mean if cost is None else float(cost) for cost, mean in known]
        self.order = sorted(range(len(costs)), key=costs.__getitem__)
        if self.order[0] != 0 or costs[self.order[1]] <= costs[0]:
            cheapest = schema.treatments[self.order[0] or self.order[1]]
            raise InputError(
                f"arm {cheapest!r} costs {costs[self.order[0] or self.order[1]]:g} per user, control {costs[0]:g}",
                "for a return, arms that cost more than control",
                "check the cost column, or choose another model",
            )
        below = [0, *self.order[:-1]] if options.pairs == "adjacent" else [0] * len(costs)
        self.reference = tuple(below[self.order.index(j)] for j in range(len(costs)))
        value = statistics["value_mean"]
        steps = [(value[j] - value[r], costs[j] - costs[r]) for j, r in enumerate(self.reference) if j]
        returns = [v / c if c > 0 else 0.0 for v, c in steps]
        unit = self.value_scale / self.cost_scale
        self.roi_scale = options.roi_scale or (HEADROOM * max(returns) if max(returns) > 0 else unit)
        share = [0.5, *(min(max(r / self.roi_scale, 0.02), 0.9) for r in returns)]
        self.start = torch.logit(torch.tensor(share, device="cpu", dtype=torch.float64)).tolist()

    def raw(self, features: Tensor) -> dict[str, Tensor]:
        representation = self.trunk(features)
        value = self.value_heads(representation)
        return {
            "value": value,
            "cost": self.cost_heads(representation.detach()),
            "score": value[..., 0] + torch.tensor(self.start, dtype=value.dtype, device=value.device),
        }

    def respond(self, raw: Mapping[str, Tensor]) -> ResponsePrediction:
        learned = cost_with_known(self.cost_response(raw["cost"], self.cost_start), self.known_cost)
        q = self.roi_scale * torch.sigmoid(raw["score"])
        cost, value = list(learned.unbind(1)), [self.value_mean[0].expand(q.shape[0])] * self.num_treatments
        for j in self.order[1:]:
            r = self.reference[j]
            cost[j] = torch.maximum(cost[j], cost[r] + LEAST_STEP * self.cost_scale)
            value[j] = value[r] + q[:, j] * (cost[j] - cost[r])
        return ResponsePrediction(torch.stack(value, 1), torch.stack(cost, 1))
