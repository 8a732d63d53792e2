"""Splits that papers published: DFCL's by its seed, Bi-DFCL's with a simulated policy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from lightning_budget.errors import InputError
from lightning_budget.published.hybrid import (
    ENDS,
    HYBRID,
    Policy,
    fit_policy,
    hybrid_pools,
    hybrid_roles,
    logistic,
    policy_treats,
)
from lightning_budget.published.splits import SEED, SPLITS, bounds, dfcl_split, shuffle_digest

N = 13_979_592


@pytest.mark.parametrize("rows", [1, 9, 1000, 12_345])
def test_dfcl_split_is_that_of_the_published_code(rows: int) -> None:
    pandas = pytest.importorskip("pandas")
    shuffled = pandas.DataFrame({"row": np.arange(rows)}).sample(frac=1.0, random_state=20220720).row.to_numpy()
    split = dfcl_split(rows)
    cut = int(rows * 0.6), int(rows * 0.7)
    for code, rows_of in enumerate((shuffled[: cut[0]], shuffled[cut[0] : cut[1]], shuffled[cut[1] :])):
        assert np.flatnonzero(split == code).tolist() == sorted(rows_of.tolist()), SPLITS[code]
    assert SEED == 20220720


def test_digest_of_the_ends_of_the_shuffle(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({name: rng.standard_normal(300) * 10 for name in ("f0", "f2", "f6", "f8")})
    frame["treatment"] = rng.integers(0, 2, 300)
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=70)
    shuffled = frame.sample(frac=1.0, random_state=20220720)
    ends = pandas.concat([shuffled.head(5), shuffled.tail(5)])
    text = "\n".join(f"{a:.6f} {b:.6f} {c:.6f} {d:.6f} {t}" for a, b, c, d, t in ends.itertuples(index=False))
    assert shuffle_digest(tmp_path / "t.parquet") == hashlib.sha256(text.encode()).hexdigest()


def test_published_sizes() -> None:
    # Bi-DFCL, table 1: randomized rows for training, validation and test.
    ends = [*bounds(N, *ENDS), N]
    assert np.diff(ends[1:]).tolist() == [698_980, 1_397_959, 4_193_878]
    assert bounds(N, 0.6, 0.7) == ends[2:4]
    # Half of the users treated where 85 % were at random: half the rows match, as published to 0.1 %.
    assert 3_498_294 / bounds(N, 0.5)[0] == pytest.approx(0.5 * 0.85 + 0.5 * 0.15, rel=2e-3)


def test_hybrid_splits_lie_in_those_of_dfcl() -> None:
    pools, split = hybrid_pools(20_000), dfcl_split(20_000)
    for name in ("val", "test"):
        assert np.array_equal(pools == HYBRID.index(name), split == SPLITS.index(name))
    assert set(np.unique(pools)) == {HYBRID.index(r) for r in ("train", "val", "test", "model", "unmatched")}


def test_observational_rows_are_those_the_policy_agrees_with(tmp_path: Path) -> None:
    # Treatment adds visits to all, conversions only where f0 > 0; f1 makes conversions with and without it.
    rng = np.random.default_rng(0)
    n = 40_000
    x = rng.standard_normal((n, 3))
    treated = rng.random(n) < 0.85
    visit = rng.random(n) < np.where(treated, 0.9, 0.6)
    chance = 0.1 + 0.2 * (x[:, 1] > 0) + 0.5 * (treated & (x[:, 0] > 0))
    conversion = visit & (rng.random(n) < chance)
    columns = {f"f{i}": x[:, i] for i in range(3)}
    flags = {"treatment": treated, "conversion": conversion, "visit": visit}
    table = pa.table({**columns, **{k: v.astype(np.int8) for k, v in flags.items()}})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=7_000)
    role = hybrid_roles(tmp_path / "t.parquet", ["f0", "f1", "f2"])
    pool = hybrid_pools(n)
    obs, unmatched = (role == HYBRID.index(r) for r in ("obs", "unmatched"))
    assert np.array_equal(obs | unmatched, pool == HYBRID.index("unmatched"))
    assert np.array_equal(role[~(obs | unmatched)], pool[~(obs | unmatched)])
    # Whom the policy treats shows in the matched rows: those of high f0.
    assert (treated[obs] == (x[obs, 0] > 0)).mean() > 0.9
    assert obs.sum() / pool.size == pytest.approx(0.25, abs=0.01)


def test_too_few_rows_for_a_policy(tmp_path: Path) -> None:
    names = ["f0", "treatment", "conversion", "visit"]
    pyarrow.parquet.write_table(pa.table({name: np.zeros(30) for name in names}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"30 rows, of which \d train the policy's model"):
        hybrid_roles(tmp_path / "t.parquet", ["f0"])


def test_policy_treats_the_highest_scores() -> None:
    assert policy_treats(np.array([1.0, 3.0, 2.0, 3.0])).tolist() == [False, True, False, True]
    assert policy_treats(np.ones(5)).sum() == 2


def test_score_is_added_conversions_per_added_visit() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 2))
    weights = {(arm, k): rng.standard_normal(3) for arm in (0, 1) for k in (1, 2)}
    score = Policy(np.array([1.0, 0.0]), np.array([2.0, 1.0]), weights)(x)
    for i, (a, b) in enumerate(x):
        p = {key: 1 / (1 + np.exp(-(w[0] * (a - 1) / 2 + w[1] * b + w[2]))) for key, w in weights.items()}
        assert score[i] == pytest.approx((p[1, 1] - p[0, 1]) / (p[1, 2] - p[0, 2]))


def test_logistic_has_no_gradient_left() -> None:
    rng = np.random.default_rng(3)
    z = rng.standard_normal((500, 4))
    y = (rng.random(500) < 1 / (1 + np.exp(-z[:, 0] + 3))).astype(float)
    w = logistic(z, y)
    one = np.concatenate([z, np.ones((500, 1))], 1)
    p = 1 / (1 + np.exp(-one @ w))
    assert np.abs(one.T @ (p - y) + np.array([1, 1, 1, 1, 1e-3]) * w).max() < 1e-6


def test_outcomes_that_never_happen_leave_finite_scores() -> None:
    x = np.random.default_rng(0).standard_normal((50, 2))
    y = np.zeros((50, 3))
    y[:40, 0] = 1
    assert np.isfinite(fit_policy(x, y)(x)).all()
