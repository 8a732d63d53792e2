"""The cross-fitted baseline against a loop, its independence of a user's own outcomes, and what both are good for."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from random_trials import CATEGORIES, USERS, random_schema, random_statistics, random_table
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses import cross_fitting
from lightning_budget.losses.cross_fitting import CrossFittedBaseline, cross_fit, folds_of
from lightning_budget.schema import DataSchema, SparseFeature
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import IdList, RCTTable

LEFT_OUT = CATEGORIES
"""As ``max_categories``: keeps the lists of a random table and leaves out its users."""


def fit(table: RCTTable, treatments: int = 3, **arguments: Any) -> CrossFittedBaseline:
    schema, statistics = random_schema(treatments), random_statistics(treatments)
    return cross_fit(table, schema, statistics, **{"max_categories": LEFT_OUT, **arguments})


def on_table(baseline: CrossFittedBaseline, table: RCTTable) -> Tensor:
    """``[N, 2K]``, value then cost."""
    prediction = baseline.predict(table.batch(torch.arange(len(table))))
    return torch.cat([prediction.value, prediction.cost], dim=1)


def columns(table: RCTTable, max_categories: int) -> np.ndarray:
    """The features of a random table, row by row."""
    statistics, rows = random_statistics(), []
    viewed, user_id = table.ids["viewed"], table.ids["user_id"]
    assert isinstance(viewed, IdList)
    assert isinstance(user_id, Tensor)
    for i, (a, b) in enumerate(pairwise(viewed.offsets.tolist())):
        dense = (table.dense[i].double().numpy() - statistics.dense_mean) / statistics.dense_std
        share = np.bincount(viewed.values[a:b].numpy(), minlength=CATEGORIES) / max(b - a, 1)
        user = np.arange(USERS) == int(user_id[i])
        rows.append([1.0, *dense.clip(-8, 8), *(share if max_categories >= CATEGORIES else ())])
        rows[-1] += list(user) if max_categories >= USERS else []
    return np.array(rows)


def ridge_fit(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """``[P, …]`` by the normal equations, intercept unpenalised."""
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 0
    return np.linalg.solve(x.T @ x + penalty, x.T @ y)


@pytest.mark.parametrize("max_categories", [0, CATEGORIES, USERS])
@pytest.mark.parametrize(("treatments", "folds", "ridge"), [(2, 2, 100.0), (3, 5, 1.0), (5, 7, 30.0)])
def test_equals_a_loop_that_refits_outside_each_fold(
    treatments: int, folds: int, ridge: float, max_categories: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fitting, "CHUNK", 71)
    table = random_table(400, treatments, seed=folds)
    table.dense[7, 1] = 1e4
    baseline = fit(table, treatments, folds=folds, ridge=ridge, max_categories=max_categories)
    x, fold, t = columns(table, max_categories), baseline.fold.numpy(), table.treatment.numpy()
    y = torch.stack([table.value, table.cost], 1).double().numpy()
    expected = np.empty((400, 2 * treatments))
    for f in range(folds):
        for j in range(treatments):
            rows = (fold != f) & (t == j)
            expected[fold == f, j::treatments] = x[fold == f] @ ridge_fit(x[rows], y[rows], ridge)
    assert expected.std(0).min() > 1e-3
    np.testing.assert_allclose(on_table(baseline, table), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("user", [3, 17, 41])
def test_a_users_outcomes_reach_other_folds_and_never_its_own(user: int) -> None:
    table = random_table(300)
    mine = table.user == user
    assert 1 < mine.sum() < 20
    other = replace(table, value=table.value + 1e12 * mine, cost=table.cost.where(~mine, -1e12))
    before, after = fit(table, ridge=0.0), fit(other, ridge=0.0)
    own_fold = before.fold == before.fold[mine][0]
    changed = on_table(before, table) != on_table(after, other)
    assert not changed[own_fold].any()
    # All arms that the user was given, value and cost.
    arms = torch.bincount(table.treatment[mine], minlength=3) > 0
    assert changed[~own_fold][:, arms.repeat(2)].all()


@pytest.mark.parametrize("outcome", ["value", "cost"])
def test_not_even_where_an_arm_was_given_in_one_fold_only(outcome: str) -> None:
    table = random_table(200)
    fold = folds_of(table.user, 5)
    table = replace(table, treatment=table.treatment.where(fold == 2, table.treatment % 2))
    assert (table.treatment == 2).any()
    other = replace(table, **{outcome: getattr(table, outcome) * (1 + 9 * (fold == 2))})
    before, after = on_table(fit(table), table), on_table(fit(other), other)
    assert torch.equal(before[fold == 2], after[fold == 2])
    column = 2 if outcome == "value" else 5
    expected = getattr(table, outcome)[fold != 2].mean()
    torch.testing.assert_close(before[fold == 2, column], expected.expand(int((fold == 2).sum())))


def test_rows_of_a_user_share_a_fold_whatever_their_order() -> None:
    users = torch.randint(-(2**62), 2**62, (300,), generator=torch.Generator().manual_seed(0))
    rows = users[torch.randint(0, 300, (2000,), generator=torch.Generator().manual_seed(1))]
    fold = folds_of(rows, 7)
    assert fold.dtype == torch.uint8
    assert fold.unique().tolist() == list(range(7))
    for user in users.tolist():
        assert fold[rows == user].unique().numel() <= 1
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(folds_of(rows[order], 7), fold[order])


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
@pytest.mark.parametrize("folds", [2, 5, 10])
def test_folds_are_balanced_whatever_the_numbering_of_users(step: int, folds: int) -> None:
    n = 40_000
    counts = torch.bincount(folds_of(torch.arange(n) * step, folds), minlength=folds)
    # Six standard deviations of a multinomial draw.
    assert (counts - n / folds).abs().max() < 6 * (n / folds) ** 0.5


def test_folds_are_the_same_in_every_release() -> None:
    # Checkpoints hold coefficients by fold.
    assert folds_of(torch.tensor([0, 1, 2, 3, 4, 5, -1, 10**12]), 5).tolist() == [0, 3, 1, 3, 0, 3, 2, 1]


def test_the_order_of_rows_does_not_matter() -> None:
    table, order = random_table(300), torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = table.select(order)
    expected = on_table(fit(table), table)[order]
    torch.testing.assert_close(on_table(fit(shuffled), shuffled), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 130, 300])
def test_ranks_with_a_part_of_the_rows_each_add_up_to_the_whole(cut: int) -> None:
    table, seen = random_table(300), []

    def keep(moments: Tensor) -> Tensor:
        seen.append(moments)
        return moments

    fit(table, rows=range(cut), reduce=keep)
    # One rank holds the whole table and takes a share of it, the other holds its share alone.
    for rest, rows in ((table, range(cut, 300)), (table.select(torch.arange(cut, 300)), None)):
        both = fit(rest, rows=rows, reduce=lambda moments: moments + seen[0])
        torch.testing.assert_close(both.coefficient, fit(table).coefficient, rtol=1e-5, atol=1e-6)
    assert torch.equal(fit(table, rows=range(cut, 300), reduce=keep).fold, folds_of(table.user, 5))


def test_a_row_is_predicted_alone_as_in_a_shuffled_batch_with_filling() -> None:
    table = random_table(120)
    baseline = fit(table, ridge=1.0)
    whole = on_table(baseline, table)
    index = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:50]
    batch = table.batch(torch.cat([index, torch.tensor([-1, -7])]))
    prediction = baseline.predict(batch)
    assert prediction.value.shape == prediction.cost.shape == (52, 3)
    assert prediction.value.dtype == prediction.cost.dtype == torch.float32
    torch.testing.assert_close(prediction.value[:50], whole[index, :3])
    torch.testing.assert_close(prediction.cost[:50], whole[index, 3:])
    assert prediction.value.isfinite().all()
    for i in (0, 60, 119):
        alone = baseline.predict(table.batch(torch.tensor([i])))
        torch.testing.assert_close(torch.cat([alone.value, alone.cost], 1), whole[i : i + 1])


def test_autocast_does_not_coarsen_it() -> None:
    table = random_table(50)
    baseline = fit(table)
    exact = on_table(baseline, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(on_table(baseline, table), exact)


def test_ids_of_large_tables_are_left_out_and_those_of_small_ones_are_not() -> None:
    table = random_table(200)
    renamed = replace(table, ids={**table.ids, "user_id": table.ids["user_id"].flip(0)})  # type: ignore[union-attr]
    assert torch.equal(on_table(fit(table), table), on_table(fit(renamed), renamed))
    assert fit(table).coefficient.shape[1] == 1 + 3 + CATEGORIES
    both = [on_table(fit(t, max_categories=USERS), t) for t in (table, renamed)]
    assert not torch.allclose(*both)


def test_the_smallest_tables_are_taken_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_fitting, "MAX_COLUMNS", CATEGORIES + USERS - 1)
    assert fit(random_table(60), max_categories=USERS).coefficient.shape[1] == 1 + 3 + CATEGORIES
    monkeypatch.setattr(cross_fitting, "MAX_COLUMNS", CATEGORIES + USERS)
    assert fit(random_table(60), max_categories=USERS).coefficient.shape[1] == 1 + 3 + CATEGORIES + USERS


def test_ridge_shrinks_towards_the_mean_of_the_arm_outside_the_fold_in_any_unit() -> None:
    table = random_table(200)
    heavy = fit(table, ridge=1e12)
    for f in range(5):
        for j in range(3):
            rows = (heavy.fold != f) & (table.treatment == j)
            torch.testing.assert_close(on_table(heavy, table)[heavy.fold == f, j].mean(), table.value[rows].mean())
    cents = replace(table, value=100 * table.value, cost=100 * table.cost)
    torch.testing.assert_close(on_table(fit(cents), cents), 100 * on_table(fit(table), table), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("unit", [1.0, 1e-4])
def test_a_row_of_weight_w_counts_as_w_rows_in_any_unit(unit: float) -> None:
    table = random_table(300)
    times = torch.randint(4, (300,), generator=torch.Generator().manual_seed(0))
    mean = float(times.double().mean())
    weighted = replace(table, weight=unit * times.float())
    statistics = replace(random_statistics(), weight_mean=unit * mean)
    found = cross_fit(weighted, random_schema(), statistics, ridge=30.0, max_categories=LEFT_OUT)
    repeated = fit(table.select(torch.arange(300).repeat_interleave(times)), ridge=30.0 * mean)
    torch.testing.assert_close(found.coefficient, repeated.coefficient, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found.coefficient, fit(table, ridge=30.0).coefficient, rtol=0.01)


def test_an_arm_of_next_to_no_weight_has_its_own_mean() -> None:
    table = random_table(200)
    light = fit(replace(table, weight=torch.where(table.treatment == 2, 1e-4, 1.0)), ridge=1e12)
    for f in range(5):
        rows = (light.fold != f) & (table.treatment == 2)
        torch.testing.assert_close(on_table(light, table)[light.fold == f, 2].mean(), table.value[rows].mean())


def test_its_state_is_small_and_survives_a_checkpoint() -> None:
    table = random_table(3000)
    baseline = fit(table)
    file = io.BytesIO()
    torch.save(baseline.state_dict(), file)
    assert sum(x.numel() for x in baseline.state_dict().values()) < 3000
    file.seek(0)
    again = CrossFittedBaseline.from_state(torch.load(file, weights_only=True), table.user)
    assert torch.equal(on_table(again, table), on_table(baseline, table))


class Population:
    """One user a row, K = 2, with outcomes under both arms; who is given which arm is drawn again and again.

    Users who are treated often yield more, which no feature tells; most features tell nothing.
    """

    def __init__(self, users: int, noise_features: int, signal: float) -> None:
        g = torch.Generator().manual_seed(5)
        self.dense = torch.randn(users, 1 + noise_features, generator=g)
        self.treated = 0.15 + 0.7 * torch.rand(users, generator=g)
        base = 2 + 3 * self.treated + signal * self.dense[:, 0] + 0.3 * torch.randn(users, generator=g)
        self.value = torch.stack([base, base + 1 + self.dense[:, 0]], dim=1)
        self.schema = DataSchema(("control", "coupon"), tuple(f"x{d}" for d in range(1 + noise_features)))

    def trial(self, seed: int) -> RCTTable:
        n = len(self.dense)
        t = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < self.treated).long()
        p = self.treated.where(t == 1, 1 - self.treated)
        value = self.value.gather(1, t[:, None])[:, 0]
        return RCTTable(torch.arange(n), self.dense, {}, t, value, 0.1 * value, p)

    def doubly_robust(self, baseline: Callable[[RCTTable], ResponsePrediction], trials: int) -> np.ndarray:
        """``[trials, K]`` estimates of the mean value of each arm."""
        out = []
        for seed in range(trials):
            table = self.trial(seed)
            m = baseline(table).value
            given = torch.nn.functional.one_hot(table.treatment, 2) / table.propensity[:, None]
            out.append((m + given * (table.value[:, None] - m)).mean(0).numpy())
        return np.array(out)

    def cross_fitted(self, table: RCTTable, ridge: float) -> ResponsePrediction:
        statistics = DataStatistics.from_table(table, self.schema)
        baseline = cross_fit(table, self.schema, statistics, ridge=ridge)
        return baseline.predict(table.batch(torch.arange(len(table))))

    def in_sample(self, table: RCTTable, ridge: float) -> ResponsePrediction:
        x = np.column_stack([np.ones(len(table)), table.dense.numpy()])
        value = torch.zeros(len(table), 2)
        for j in range(2):
            rows = (table.treatment == j).numpy()
            value[:, j] = torch.from_numpy(x @ ridge_fit(x[rows], table.value.numpy()[rows], ridge))
        return ResponsePrediction(value, 0.1 * value)


def z_scores(estimates: np.ndarray, truth: Tensor) -> np.ndarray:
    return (estimates.mean(0) - truth.numpy()) / (estimates.std(0, ddof=1) / len(estimates) ** 0.5)


def test_doubly_robust_means_are_unbiased_where_a_baseline_fitted_to_the_same_rows_is_not() -> None:
    population = Population(60, noise_features=20, signal=1.0)
    truth = population.value.mean(0)
    crossed = population.doubly_robust(lambda t: population.cross_fitted(t, ridge=5.0), trials=500)
    own = population.doubly_robust(lambda t: population.in_sample(t, ridge=5.0), trials=500)
    assert np.abs(z_scores(crossed, truth)).max() < 3.5
    assert np.abs(z_scores(own, truth)).max() > 10


def test_doubly_robust_means_vary_less_than_ipw_where_features_matter() -> None:
    population = Population(400, noise_features=2, signal=3.0)

    def nothing(table: RCTTable) -> ResponsePrediction:
        return ResponsePrediction(torch.zeros(len(table), 2), torch.zeros(len(table), 2))

    ipw = population.doubly_robust(nothing, trials=150)
    crossed = population.doubly_robust(lambda t: population.cross_fitted(t, ridge=10.0), trials=150)
    assert (crossed.var(0) < 0.1 * ipw.var(0)).all()


def constant(table: RCTTable) -> RCTTable:
    return replace(table, dense=torch.ones_like(table.dense))


def collinear(table: RCTTable) -> RCTTable:
    return replace(table, dense=table.dense[:, :1].expand(-1, 3).contiguous())


def one_arm(table: RCTTable) -> RCTTable:
    return replace(table, treatment=torch.ones_like(table.treatment))


def one_user(table: RCTTable) -> RCTTable:
    return replace(table, user=torch.zeros_like(table.user))


def no_ids_in_any_list(table: RCTTable) -> RCTTable:
    lists = IdList(torch.zeros(0, dtype=torch.long), torch.zeros(len(table) + 1, dtype=torch.long))
    return replace(table, ids={**table.ids, "viewed": lists})


@pytest.mark.parametrize("rows", [1, 2, 60])
@pytest.mark.parametrize("ridge", [0.0, 100.0])
@pytest.mark.parametrize("spoil", [constant, collinear, one_arm, one_user, no_ids_in_any_list])
def test_degenerate_tables_give_finite_baselines_of_the_outcomes_size(
    spoil: Callable[[RCTTable], RCTTable], ridge: float, rows: int
) -> None:
    table = spoil(random_table(rows))
    baseline = on_table(fit(table, ridge=ridge, max_categories=USERS), table)
    assert baseline.shape == (rows, 6)
    assert baseline.isfinite().all()
    if ridge or spoil is one_user:
        assert baseline.abs().max() < 6
    if spoil is one_user or rows == 1:
        # There is nobody else: the doubly robust estimate is then ipw.
        assert not baseline.any()


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_one_kind_of_feature_or_none(dense: bool, ids: bool) -> None:
    table = random_table(100)
    schema, statistics = random_schema(), random_statistics()
    if not dense:
        table, schema = replace(table, dense=table.dense[:, :0]), replace(schema, dense=())
        statistics = replace(statistics, dense_mean=(), dense_std=())
    if not ids:
        table, schema = replace(table, ids={}), replace(schema, sparse=())
    baseline = cross_fit(table, schema, statistics, ridge=1.0)
    m = on_table(baseline, table)
    assert m.isfinite().all()
    for f in range(5):
        spread = m[baseline.fold == f].std(0)
        assert (spread > 1e-3).all() if dense or ids else (spread < 1e-6).all()


def test_a_single_id_feature_gives_the_shrunken_mean_of_each_id() -> None:
    n, g = 3000, torch.Generator().manual_seed(0)
    city = torch.randint(0, 4, (n,), generator=g)
    value = torch.tensor([1.0, 5.0, 2.0, 9.0])[city] + torch.rand(n, generator=g)
    table = RCTTable(torch.arange(n), torch.zeros(n, 0), {"city": city}, city % 2, value, value, torch.ones(n))
    schema = DataSchema(("a", "b"), sparse=(SparseFeature("city", 4),))
    statistics = replace(random_statistics(2), dense_mean=(), dense_std=())
    m = on_table(cross_fit(table, schema, statistics, ridge=0.0), table)
    for c in range(4):
        assert m[city == c, c % 2].mean().item() == pytest.approx(value[city == c].mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"folds": 1}, "folds=1; allowed: 2 to 255"),
        ({"folds": 256}, "folds=256; allowed: 2 to 255"),
        ({"ridge": -0.5}, "ridge=-0.5; allowed: 0 or above"),
        ({"ridge": float("nan")}, "ridge=nan; allowed: 0 or above"),
        ({"ridge": float("inf")}, "ridge=inf; allowed: 0 or above"),
        ({"max_categories": -1}, "max_categories=-1; allowed: 0 or above"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as e:
        fit(random_table(20), **arguments)
    assert str(e.value).startswith(told)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("column", ["value", "cost", "dense"])
def test_what_is_not_finite_is_refused(column: str) -> None:
    table = random_table(20)
    getattr(table, column)[3] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        fit(table)


def test_more_folds_than_users() -> None:
    table = replace(random_table(40), user=torch.arange(40) % 3)
    baseline = fit(table, folds=50)
    assert baseline.fold.unique().numel() <= 3
    assert on_table(baseline, table).isfinite().all()


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_host() -> None:
    table = random_table(200)
    baseline = fit(table)
    prediction = baseline.to("cuda").predict(table.batch(torch.arange(200)).to("cuda"))
    assert prediction.value.is_cuda
    device = torch.cat([prediction.value, prediction.cost], 1).cpu()
    torch.testing.assert_close(device, on_table(baseline, table), rtol=1e-4, atol=1e-4)
