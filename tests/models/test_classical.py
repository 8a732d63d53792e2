"""Causal forests through EconML: what they predict, and what is said where EconML is not installed."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from random_trials import random_schema, random_table

from lightning_budget.classical import causal_forest
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable


def trial(rows: int, seed: int) -> tuple[RCTTable, torch.Tensor]:
    """A trial whose first feature decides how much the arms earn, and the true effects ``[N, 2]``."""
    table = random_table(rows, seed=seed)
    gain = torch.where(table.dense[:, :1] > 5, 2.0, 0.0) * torch.tensor([0.5, 1.0])
    noise = 0.3 * torch.randn(rows, generator=torch.Generator().manual_seed(seed))
    value = torch.cat([torch.zeros(rows, 1), gain], 1).gather(1, table.treatment.unsqueeze(1)).squeeze(1) + noise
    cost = 0.2 * table.treatment + 0.1 * noise
    return replace(table, value=value, cost=cost, propensity=torch.full((rows,), 1 / 3)), gain


def fit(schema: DataSchema, rows: int = 900, trees: int = 48) -> tuple[list[torch.Tensor], torch.Tensor]:
    (train, _), (users, gain) = trial(rows, 0), trial(300, 1)
    statistics = DataStatistics.from_table(train, schema)
    (prediction,) = causal_forest(train, [users], schema, statistics, trees=trees)
    return [prediction.value, prediction.cost, torch.tensor(statistics.value_mean)], gain


@pytest.mark.skipif(importlib.util.find_spec("econml") is None, reason="EconML comes with the extra 'classical'")
def test_a_forest_finds_whom_the_arms_move() -> None:
    (value, cost, means), gain = fit(random_schema(known_cost=(0.0, None, None)))
    assert value.shape == cost.shape == (300, 3)
    assert (value[:, 0] == means[0]).all()
    error = (value[:, 1:] - value[:, :1] - gain).square().mean()
    assert error < 0.2 * (gain - gain.mean(0)).square().mean()
    assert not cost[:, 0].any()
    torch.testing.assert_close(cost[:, 1:].mean(0), torch.tensor([0.2, 0.4]), rtol=0, atol=0.05)


def test_without_econml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "econml.dml", None)
    monkeypatch.setitem(sys.modules, "econml", None)
    with pytest.raises(InputError, match=r"pip install 'lightning-budget\[classical\]'"):
        fit(random_schema(), rows=30)


def test_a_number_of_trees_that_econml_does_not_take() -> None:
    with pytest.raises(InputError, match="trees=6; allowed: a multiple of 4"):
        fit(random_schema(), rows=30, trees=6)
