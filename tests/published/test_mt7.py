"""Criteo-MT7: the oracle is the mean of the draws, and the formulas are those of the paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from scipy import stats

from lightning_budget.errors import InputError
from lightning_budget.published.generate import campaign_mt7, criteo_mt7
from lightning_budget.published.mt7 import (
    ARMS,
    PERCENT,
    Directions,
    Draws,
    Surface,
    draws,
    observed,
    sample_rows,
    standardized,
)

SURFACE = Surface()


def directions(seed: int = 0, width: int = 12) -> Directions:
    return SURFACE.directions(np.random.default_rng(seed), width)


def users(n: int, width: int = 12) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((n, width))


def test_formulas_one_user_and_arm_at_a_time() -> None:
    to, x = directions(), users(4)
    value, cost = SURFACE.expected(x, to)
    for i in range(4):
        for j, percent in enumerate((0, 2, 4, 6, 8, 10, 12, 14)):
            d = percent / 14
            logit = (-2.4 + 0.6 * float(x[i] @ to.alpha)) + (0.6 + 0.4 * float(x[i] @ to.beta)) * d
            log_mean = (6.0 + 0.3 * float(x[i] @ to.gamma)) + (-0.05 + 0.25 * float(x[i] @ to.delta)) * d
            v = np.exp(log_mean + 0.8**2 / 2) / (1 + np.exp(-logit))
            assert value[i, j] == pytest.approx(v, rel=1e-12)
            assert cost[i, j] == pytest.approx(percent / 100 * v, rel=1e-12)


@pytest.mark.parametrize("width", [2, 8, 12])
def test_directions(width: int) -> None:
    to = directions(1, width)
    for v in (to.alpha, to.beta, to.gamma, to.delta):
        assert np.linalg.norm(v) == pytest.approx(1)
    assert to.beta @ to.delta == pytest.approx(-0.6)


def test_directions_and_draws_come_in_the_published_order() -> None:
    rng = np.random.default_rng(42)
    to, drawn = SURFACE.directions(rng, 12), draws(rng, 50, 0.8)
    again = np.random.default_rng(42)
    beta, u, alpha, gamma = (again.normal(size=12) for _ in range(4))
    assert np.allclose(to.beta, beta / np.linalg.norm(beta))
    assert np.allclose(to.alpha, alpha / np.linalg.norm(alpha))
    assert np.allclose(to.gamma, gamma / np.linalg.norm(gamma))
    assert (to.delta + 0.6 * to.beta) @ u > 0
    assert np.array_equal(drawn.arm, again.integers(low=0, high=8, size=50))
    assert np.array_equal(drawn.uniform, again.random(50))
    assert np.array_equal(drawn.noise, again.normal(0.0, 0.8, size=50))


def test_oracle_is_the_mean_of_draws() -> None:
    to, n = directions(), 40_000
    rng = np.random.default_rng(11)
    for i, x in enumerate(users(3)):
        many = np.tile(x, (n, 1))
        drawn = draws(rng, n, SURFACE.sigma)
        _, value, cost = observed(many, to, SURFACE, drawn, slice(0, n))
        true_value, true_cost = SURFACE.expected(x[None], to)
        for j in range(8):
            mine = drawn.arm == j
            for y, mean in ((value[mine], true_value[0, j]), (cost[mine], true_cost[0, j])):
                z = (y.mean() - mean) / max(y.std() / np.sqrt(mine.sum()), 1e-12)
                # 48 tests: at most one in 10⁴ such runs.
                assert abs(z) < 5, (i, j)
        assert stats.chisquare(np.bincount(drawn.arm, minlength=8)).pvalue > 1e-6


def test_a_slice_of_rows_has_the_same_outcomes() -> None:
    to, x = directions(), users(100)
    drawn = draws(np.random.default_rng(0), 100, SURFACE.sigma)
    whole = observed(x, to, SURFACE, drawn, slice(0, 100))
    part = observed(x[30:60], to, SURFACE, drawn, slice(30, 60))
    assert all(np.array_equal(a[30:60], b) for a, b in zip(whole, part, strict=True))


def test_noise_and_probability_at_the_edge() -> None:
    to, x = directions(), users(2)
    arm = np.array([7, 0])
    p = SURFACE.buying(x, to)[[0, 1], arm]
    drawn = Draws(arm, np.array([p[0] - 1e-9, p[1] + 1e-9]), np.zeros(2))
    buys, value, cost = observed(x, to, SURFACE, drawn, slice(0, 2))
    assert buys.tolist() == [True, False]
    assert value == pytest.approx([np.exp(SURFACE.log_mean(x, to)[0, 7]), 0])
    assert cost == pytest.approx([0.14 * value[0], 0])


def test_standardized() -> None:
    x = users(1000) * 3 + 7
    x[:, 1], x[0, 0] = 4.0, 1e6
    z = standardized(x)
    assert z[:, 2:].mean(0) == pytest.approx(0, abs=1e-12)
    assert z[:, 2:].std(0) == pytest.approx(1)
    assert not z[:, 1].any()
    assert z.max() == 8


def test_rows_are_sampled_without_replacement_in_order() -> None:
    index = sample_rows(np.random.default_rng(0), 1000, 400)
    assert len(set(index.tolist())) == 400
    assert (np.diff(index) > 0).all()
    assert sample_rows(np.random.default_rng(0), 10, 400).tolist() == list(range(10))


def test_campaign_mt7_is_a_trial_of_its_own(tmp_path: Path) -> None:
    done = campaign_mt7(tmp_path / "c.parquet", rows=1500, seed=1)
    table = pyarrow.parquet.read_table(tmp_path / "c.parquet").to_pandas()
    assert done.rows == len(table) == 1500
    assert "criteo" not in pyarrow.parquet.read_schema(tmp_path / "c.parquet").metadata[b"lightning_budget"].decode()
    assert set(table.treatment) == set(ARMS)
    cost = table[[f"true_cost_{j}" for j in range(8)]].to_numpy()
    value = table[[f"true_value_{j}" for j in range(8)]].to_numpy()
    assert cost == pytest.approx(value * np.array(PERCENT) / 100, rel=1e-5)
    percent = table.treatment.map(dict(zip(ARMS, PERCENT, strict=True)))
    assert table.cost.to_numpy() == pytest.approx(percent * table.value / 100, rel=1e-5)
    assert ((table.value > 0) == (table.conversion == 1)).all()
    dense = table[["recency", "basket", "tenure"]].to_numpy()
    assert dense.std(0) == pytest.approx(1, abs=0.1)  # clipped at 8
    again = campaign_mt7(tmp_path / "d.parquet", rows=1500, seed=1)
    assert again.remarks == done.remarks
    assert pyarrow.parquet.read_table(tmp_path / "d.parquet").to_pandas().equals(table)
    other = campaign_mt7(tmp_path / "e.parquet", rows=1500, seed=2)
    assert other.remarks != done.remarks


def test_criteo_mt7_samples_criteo(shared, tmp_path: Path) -> None:
    source = shared("criteo_uplift_v21_sample/criteo_strat3000.parquet")
    done = criteo_mt7(source, tmp_path / "m.parquet", rows=1000, seed=7)
    assert done.passed
    table = pyarrow.parquet.read_table(tmp_path / "m.parquet")
    index = np.sort(np.random.default_rng(7).choice(3000, 1000, replace=False))
    raw = pyarrow.parquet.read_table(source, columns=[f"f{i}" for i in range(12)]).to_pandas().to_numpy()[index]
    x = table.select([f"f{i}" for i in range(12)]).to_pandas().to_numpy()
    assert x == pytest.approx(standardized(raw), abs=1e-5)
    metadata = json.loads(table.schema.metadata[b"lightning_budget"])
    assert metadata["licence"] == "CC BY-NC-SA 4.0"
    # A third of the reports' rates by chance or not: the published base rate is near 8 %, rising with the discount.
    buys = table["conversion"].to_numpy().mean()
    assert 0.08 < buys < 0.2


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--rows 0; allowed: rows ≥ 1"):
        campaign_mt7(tmp_path / "c.parquet", rows=0)
