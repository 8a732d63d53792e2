"""Moments of the training split against a numpy loop and in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable

SCHEMA = DataSchema(("none", "low", "high"), ("a", "b"), value_kind="continuous", cost_kind="continuous")


def make_table(n: int = 500) -> RCTTable:
    rng = np.random.default_rng(3)
    return RCTTable(
        user=torch.arange(n),
        dense=torch.from_numpy(rng.normal([5, 1e4], [2, 0.5], (n, 2)).astype(np.float32)),
        ids={},
        treatment=torch.from_numpy(rng.integers(0, 3, n)),
        value=torch.from_numpy(rng.exponential(3, n).astype(np.float32)),
        cost=torch.from_numpy(rng.exponential(1, n).astype(np.float32)),
        propensity=torch.full((n,), 1 / 3),
    )


def test_equals_numpy() -> None:
    table = make_table()
    table.value[::3] = 0
    s = DataStatistics.from_table(table, SCHEMA)
    dense, t = table.dense.double().numpy(), table.treatment.numpy()
    value, cost = table.value.double().numpy(), table.cost.double().numpy()
    assert s.dense_mean == pytest.approx(dense.mean(0).tolist(), rel=1e-12)
    assert s.dense_std == pytest.approx(dense.std(0).tolist(), rel=1e-9)
    for k in range(3):
        assert s.arm_share[k] == pytest.approx((t == k).mean(), rel=1e-12)
        assert s.value_mean[k] == pytest.approx(value[t == k].mean(), rel=1e-12)
        assert s.cost_mean[k] == pytest.approx(cost[t == k].mean(), rel=1e-12)
        stray = cost[(t == k) & (value == 0)].sum() / cost[t == k].sum()
        assert 0.1 < stray < 0.6
        assert s.unconverted_cost[k] == pytest.approx(stray, rel=1e-12)
    assert s.value_scale == pytest.approx(np.sqrt((value**2).mean()), rel=1e-12)
    assert s.cost_scale == pytest.approx(np.sqrt((cost**2).mean()), rel=1e-12)


def test_floors_and_binary_outcomes() -> None:
    table = make_table()
    table.dense[:, 1] = 7.0
    table.cost.zero_()
    s = DataStatistics.from_table(table, SCHEMA)
    assert s.dense_std[1] == 1.0
    assert s.cost_scale == 1.0
    assert s.unconverted_cost == (0.0, 0.0, 0.0)
    binary = DataSchema(SCHEMA.treatments, SCHEMA.dense, value_kind="binary")
    assert DataStatistics.from_table(table, binary).value_scale == 1.0


def test_an_arm_without_rows_is_named() -> None:
    table = make_table()
    table.treatment[table.treatment == 1] = 2
    with pytest.raises(InputError, match="arm 'low' has no rows in the training split of 500"):
        DataStatistics.from_table(table, SCHEMA)
    with pytest.raises(InputError, match="arm 'none' has no rows"):
        DataStatistics.from_table(table.select(torch.arange(0)), SCHEMA)


def test_survives_a_checkpoint_of_plain_containers(tmp_path: Path) -> None:
    s = DataStatistics.from_table(make_table(), SCHEMA)
    torch.save(s.to_dict(), tmp_path / "s.pt")
    assert DataStatistics.from_dict(torch.load(tmp_path / "s.pt", weights_only=True)) == s
    assert not any(isinstance(v, tuple) for v in s.to_dict().values())
