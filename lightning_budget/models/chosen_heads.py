"""Which heads a learner has: their names, with what the training split says where a config leaves it open."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.models.responses import RESPONSES, Response
from lightning_budget.schema import DataSchema

STRAY = 1e-3
"""Share of an arm's cost that rows without a conversion may have where ``auto`` takes it to be one of conversions."""
LOST = 0.05
"""Share beyond which that is refused."""


def chosen_heads(
    value: str, cost: str, schema: DataSchema, statistics: Mapping[str, Any], shares_conversions: bool
) -> tuple[str, str]:
    """Names of the heads of value and cost.

    Args:
        value, cost: of :data:`~lightning_budget.models.responses.RESPONSES`, or ``auto``; schema, statistics: of the
            data; shares_conversions: whether the learner's cost may hang on its value's probability of a conversion.

    Raises:
        InputError: for costs on conversion where there is no such probability, or where others cost, too.
    """
    if value == "auto":
        negative = statistics.get("value_min", 0.0) < 0
        value = "plain" if schema.value_kind == "binary" or negative else "funnel"
    converts = RESPONSES[value].converts(schema.value_kind)
    stray = _unconverted(schema, statistics)
    if cost == "auto" and schema.cost_kind == "binary":
        cost = "plain"
    elif cost == "auto":
        paid = shares_conversions and converts and stray is not None and stray <= STRAY
        cost = "on_conversion" if paid else "funnel"
    elif RESPONSES[cost].on_conversion:
        found = f"model.cost_head={cost}"
        if not shares_conversions:
            raise InputError(f"{found} of this learner", "heads that stand alone", "set model.cost_head=funnel")
        if not converts:
            raise InputError(
                f"{found} beside a value without a probability of conversions",
                "a binary value, or value_head=funnel or ziln",
                "set model.value_head=funnel, or model.cost_head=funnel",
            )
        if stray is not None and stray > LOST:
            raise InputError(
                f"{found} where rows without a conversion have {stray:.1%} of an arm's cost",
                f"at most {LOST:.0%}, all of which is left out of what the arm costs",
                "set model.cost_head=funnel",
            )
    return value, cost


def built_head(outcome: str, name: str, schema: DataSchema, statistics: Mapping[str, Any]) -> Response:
    """The response of an ``outcome``, value or cost.

    Raises:
        InputError: for a head that does not fit outcome or arms.
    """
    kind = schema.value_kind if outcome == "value" else schema.cost_kind
    response = RESPONSES[name](outcome, kind, statistics[f"{outcome}_scale"])
    if response.ordered:
        known = zip(schema.known_cost, statistics["cost_mean"], strict=True)
        costs = [mean if cost is None else cost for cost, mean in known]
        arms = ", ".join(f"{arm} {cost:g}" for arm, cost in zip(schema.treatments, costs, strict=True))
        if any(b <= a for a, b in pairwise(costs)):
            raise InputError(
                f"model.{outcome}_head={name} on arms whose cost does not rise from each to the next: {arms}",
                "arms in the order of their dose",
                "order them by dose where they have one, or use the plain head",
            )
    return response


def _unconverted(schema: DataSchema, statistics: Mapping[str, Any]) -> float | None:
    """Largest share of an arm's cost that rows without a conversion have, of arms whose cost is learned."""
    shares = zip(schema.known_cost, statistics.get("unconverted_cost", ()), strict=False)
    return max((share for known, share in shares if known is None), default=None)
