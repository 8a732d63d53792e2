"""From the names of heads to responses, with what the training split says where a name leaves it open."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.models.responses import RESPONSES, Response, Start
from lightning_budget.schema import DataSchema, Outcome

STRAY = 1e-3
"""Share of an arm's cost that rows without a conversion may have where the cost is taken to be one of conversions."""


def value_head(name: str, schema: DataSchema, statistics: Mapping[str, Any]) -> Response:
    """The value's.

    Args:
        name: of :data:`~lightning_budget.models.responses.RESPONSES`, or ``auto``; schema, statistics: of the data.

    Raises:
        InputError: for a head that does not fit outcome or arms.
    """
    if name == "auto":
        negative = statistics.get("value_min", 0.0) < 0
        name = "plain" if schema.value_kind == "binary" or negative else "funnel"
    return _built("value", name, schema.value_kind, schema, statistics)


def cost_head(
    name: str, schema: DataSchema, statistics: Mapping[str, Any], value: Response, start: Start | None
) -> Response:
    """The cost's, arguments as of :func:`value_head`.

    Args:
        value: head of the value; start: where values start; ``None``: the learner has no conversions to share.

    Raises:
        InputError: as :func:`value_head`, and for a cost on conversions where the value has none.
    """
    shared = start is not None and value.start_logit(start) is not None
    if name == "auto":
        costly = "on_conversion" if shared and _converted_pay(schema, statistics) else "funnel"
        name = "plain" if schema.cost_kind == "binary" else costly
    response = _built("cost", name, schema.cost_kind, schema, statistics)
    if response.on_conversion and not shared:
        raise InputError(
            f"model.cost_head={name} without a probability of conversions",
            "a value that is binary, or has value_head=funnel or ziln, and a learner of responses other than descn",
            "set model.cost_head=funnel",
        )
    return response


def _converted_pay(schema: DataSchema, statistics: Mapping[str, Any]) -> bool:
    """Whether the training split has costs that are learned on conversions alone."""
    stray = zip(schema.known_cost, statistics.get("unconverted_cost", ()), strict=False)
    shares = [share for known, share in stray if known is None]
    return bool(shares) and max(shares) <= STRAY


def _built(outcome: str, name: str, kind: Outcome, schema: DataSchema, statistics: Mapping[str, Any]) -> Response:
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
