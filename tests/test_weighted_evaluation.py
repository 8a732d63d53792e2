"""A row of weight 2 is two rows, in all that an evaluation finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from random_trials import random_schema, random_table

from lightning_budget.batch import ResponsePrediction
from lightning_budget.evaluation import Evaluation, evaluate
from lightning_budget.table import RCTTable

ROWS = 240
ABOUT_ROWS = {"row_count", "checks"}


def judged(table: RCTTable, rows: torch.Tensor) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    value, cost = torch.rand(2, ROWS, 3, generator=g)
    cost = cost.cumsum(1) - cost[:, :1]
    predictions = {
        name: ResponsePrediction(v[rows], cost[rows])
        for name, v in (("a", value), ("b", value + 0.5 * torch.rand(ROWS, 3, generator=g)))
    }
    found: Evaluation = evaluate(table, random_schema(), predictions, [0.2, 0.7], resamples=60)
    return {name: x for name, x in found.to_dict().items() if name not in ABOUT_ROWS}


def compare(a: Any, b: Any, path: str = "") -> int:
    """How many numbers are equal; fails at the first that are not."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        return sum(compare(a[key], b[key], f"{path}.{key}") for key in a)
    if isinstance(a, list):
        assert len(a) == len(b), path
        return sum(compare(x, y, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))
    assert a == (pytest.approx(b, rel=1e-5, abs=1e-7) if isinstance(a, float) else b), path
    return isinstance(a, float)


@pytest.mark.parametrize("oracle", [False, True])
def test_weights_are_repeated_rows(oracle: bool) -> None:
    table = replace(random_table(ROWS, seed=3), cost=random_table(ROWS).cost + random_table(ROWS, seed=3).treatment)
    if oracle:
        value, cost = torch.rand(2, ROWS, 3, generator=torch.Generator().manual_seed(2)).cumsum(2)
        table = replace(table, true_value=value, true_cost=cost - cost[:, :1])
    twice = torch.arange(ROWS) % 2 == 1
    weighted = judged(replace(table, weight=1 + twice.float()), torch.arange(ROWS))
    rows = torch.cat([torch.arange(ROWS), twice.nonzero().flatten()])
    repeated = judged(table.select(rows), rows)
    assert compare(weighted, repeated) > 500
    plain = judged(table, torch.arange(ROWS))
    assert plain["increments"] != weighted["increments"]


def test_weights_of_one_change_nothing() -> None:
    table = random_table(ROWS, seed=4)
    ones = judged(replace(table, weight=torch.ones(ROWS)), torch.arange(ROWS))
    assert compare(ones, judged(table, torch.arange(ROWS))) > 500
