"""The embedded campaign is reproducible part by part, and its oracle tells the truth."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_budget.campaign import SPLITS, Campaign
from lightning_budget.campaign.population import join_day
from lightning_budget.errors import InputError
from lightning_budget.table import IdList, RCTTable

ARMS = {
    2: (0.0, 5.0),
    5: (0.0, 2.0, 4.0, 7.0, 11.0),
    8: (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0),
}
LARGE = Campaign(train_rows=150_000, val_rows=5_000, test_rows=20_000, users=2_000, partition_rows=1 << 20)
# A sound campaign passes a test at this level all but once in 30,000 times.
Z = 4.2


@pytest.fixture(scope="module", params=[(k, u) for k in ARMS for u in (True, False)], ids=lambda p: f"{p[0]}-{p[1]}")
def trial(request: pytest.FixtureRequest) -> tuple[Campaign, RCTTable]:
    """A campaign of 2, 5 or 8 arms, uniformly randomized or not, and its training split."""
    k, uniform = request.param
    campaign = replace(LARGE, face_values=ARMS[k], uniform=uniform, seed=k)
    return campaign, campaign.partition("train", 0)


def assert_equal(a: RCTTable, b: RCTTable) -> None:
    for f in fields(RCTTable):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert (x is None) == (y is None), f.name
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), f.name
    assert list(a.ids) == list(b.ids)
    for name, column in a.ids.items():
        other = b.ids[name]
        if isinstance(column, IdList):
            assert isinstance(other, IdList)
            assert torch.equal(column.values, other.values)
            assert torch.equal(column.offsets, other.offsets)
        else:
            assert torch.equal(column, other), name  # type: ignore[arg-type]


def ids_of(table: RCTTable, name: str) -> torch.Tensor:
    column = table.ids[name]
    return column.values if isinstance(column, IdList) else column


def z_of_mean(x: torch.Tensor) -> float:
    x = x.double()
    return float(x.mean() / x.std() * len(x) ** 0.5)


# Partitions


def test_a_partition_is_the_same_whenever_and_in_whatever_company() -> None:
    campaign = Campaign(train_rows=3_500, test_rows=2_000, users=300, partition_rows=1_000)
    parts = [campaign.partition("train", i) for i in range(4)]
    np.random.seed(1)
    alone = Campaign(train_rows=3_500, test_rows=2_000, users=300, partition_rows=1_000)
    alone.partition("test", 1)
    for i in (2, 0, 3, 1):
        assert_equal(alone.partition("train", i), parts[i])
    # A longer campaign begins with the same partitions.
    assert_equal(replace(campaign, train_rows=10**9).partition("train", 2), parts[2])


def test_partitions_splits_and_seeds_differ() -> None:
    campaign = Campaign(train_rows=2_000, val_rows=1_000, test_rows=1_000, users=300, partition_rows=1_000)
    tables = [
        campaign.partition("train", 0),
        campaign.partition("train", 1),
        campaign.partition("val", 0),
        campaign.partition("test", 0),
        replace(campaign, seed=1).partition("train", 0),
    ]
    for i, a in enumerate(tables):
        for b in tables[i + 1 :]:
            assert (a.dense[:, 0] == b.dense[:, 0]).float().mean() < 0.01
            assert abs(np.corrcoef(a.dense[:, 0], b.dense[:, 0])[0, 1]) < 0.15


@pytest.mark.parametrize("rows", [1, 999, 1_000, 1_001, 12_345])
def test_partitions_hold_the_rows_exactly(rows: int) -> None:
    campaign = Campaign(train_rows=rows, val_rows=7, test_rows=11, users=50, partition_rows=1_000)
    assert (campaign.rows("train"), campaign.rows("val"), campaign.rows("test")) == (rows, 7, 11)
    sizes = [len(campaign.partition("train", i)) for i in range(campaign.partitions("train"))]
    assert sum(sizes) == rows
    assert all(n == 1_000 for n in sizes[:-1])
    assert sizes[-1] > 0


def test_a_billion_rows_need_no_more_memory_than_a_thousand() -> None:
    def peak(campaign: Campaign, index: int) -> tuple[int, int]:
        tracemalloc.start()
        rows = len(campaign.partition("train", index))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return rows, most

    small = Campaign(train_rows=10_000, users=1_000, partition_rows=10_000)
    huge = Campaign(train_rows=10**9 + 1_234, users=10**8, partition_rows=10_000)
    peak(small, 0)  # whatever is allocated once
    rows, base = peak(small, 0)
    assert huge.partitions("train") == 100_001
    assert rows == 10_000
    assert base > 10_000 * 8 * 8  # the measurement sees numpy
    rows, most = peak(huge, 0)
    assert rows == 10_000
    assert most < 1.5 * base
    rows, most = peak(huge, huge.partitions("train") - 1)
    assert rows == 1_234
    assert most < 0.5 * base


@pytest.mark.parametrize("index", [-1, 3])
def test_a_partition_that_is_not_there(index: int) -> None:
    with pytest.raises(IndexError, match="partitions 0 … 2"):
        Campaign(train_rows=2_500, partition_rows=1_000).partition("train", index)


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_population_fills_every_split(seed: int) -> None:
    campaign = Campaign(train_rows=5, val_rows=5, test_rows=5, users=1, newcomers=0.9, seed=seed)
    for split in SPLITS:
        assert campaign.partition(split, 0).user.tolist() == [0] * 5


# Oracle and outcomes


@pytest.mark.parametrize("outcome", ["value", "cost"])
def test_outcomes_average_to_the_oracle(trial: tuple[Campaign, RCTTable], outcome: str) -> None:
    campaign, table = trial
    truth = getattr(table, f"true_{outcome}")
    for j, face in enumerate(campaign.face_values):
        rows = table.treatment == j
        observed, expected = getattr(table, outcome)[rows], truth[rows, j]
        if outcome == "cost" and face == 0:
            assert not observed.any()
            assert not truth[:, j].any()
            continue
        assert abs(z_of_mean(observed - expected)) < Z
        # Not on average alone: among the low and the high ones, too.
        order = expected.argsort().tensor_split(5)
        z = np.array([z_of_mean((observed - expected)[part]) for part in order])
        assert stats.chi2.sf((z**2).sum(), len(z)) > 1e-5


@pytest.mark.parametrize("outcome", ["value", "cost"])
def test_weighted_outcomes_average_to_the_oracle_of_everybody(trial: tuple[Campaign, RCTTable], outcome: str) -> None:
    campaign, table = trial
    for j in range(len(campaign.face_values)):
        weighted = (table.treatment == j) / table.propensity * getattr(table, outcome)
        truth = getattr(table, f"true_{outcome}")[:, j]
        if truth.any():
            assert abs(z_of_mean(weighted - truth)) < Z


def test_the_biased_trial_needs_its_weights() -> None:
    # Otherwise the test above would hold for any propensities.
    table = replace(LARGE, uniform=False).partition("train", 0)
    control = table.treatment == 0
    assert table.true_value is not None
    assert z_of_mean(table.value[control] - table.true_value[:, 0].mean()) > 10


def test_propensities_are_the_frequencies_of_each_tier(trial: tuple[Campaign, RCTTable]) -> None:
    campaign, table = trial
    k = len(campaign.face_values)
    tier = ids_of(table, "tier")
    controls = []
    for t in tier.unique():
        rows = tier == t
        arms, propensity = table.treatment[rows], table.propensity[rows].double()
        stated = torch.stack([propensity[arms == j].mean() for j in range(k)])
        assert torch.allclose(propensity, stated[arms], atol=1e-7)
        assert float(stated.sum()) == pytest.approx(1, abs=1e-6)
        counts = torch.bincount(arms, minlength=k)
        assert stats.chisquare(counts, (stated / stated.sum() * len(arms)).numpy()).pvalue > 1e-5
        controls.append(float(stated[0]))
    if campaign.uniform:
        assert controls == pytest.approx([1 / k] * len(controls))
    else:
        assert controls == sorted(controls)
        assert controls[-1] > controls[0] + 0.1


def test_treatment_depends_on_nothing_but_the_tier(trial: tuple[Campaign, RCTTable]) -> None:
    _, table = trial
    tier = ids_of(table, "tier")
    rows = tier == tier.mode().values
    assert table.true_value is not None
    for x in (*table.dense[rows].T, table.true_value[rows, 0], table.true_value[rows, -1]):
        groups = [x[table.treatment[rows] == j].double().numpy() for j in table.treatment.unique()]
        assert stats.kruskal(*groups).pvalue > 1e-6


def test_costs_are_paid_on_redemption_only(trial: tuple[Campaign, RCTTable]) -> None:
    campaign, table = trial
    face = torch.tensor(campaign.face_values)[table.treatment]
    paid = table.cost > 0
    assert torch.equal(table.cost[paid], face[paid])
    assert not table.cost[~paid].any()
    assert (table.value[paid] > 0).all()
    # A purchase does not imply redemption.
    bought = (table.value > 0) & (table.treatment > 0)
    assert 0.2 < paid[bought].float().mean() < 0.98


def test_value_is_zero_inflated_and_positive_otherwise(trial: tuple[Campaign, RCTTable]) -> None:
    _, table = trial
    assert (table.value >= 0).all()
    assert 0.2 < (table.value == 0).float().mean() < 0.99
    spend = table.value[table.value > 0]
    assert len(spend.unique()) > 0.9 * len(spend)


def test_coupons_work_and_differ_in_what_they_earn(trial: tuple[Campaign, RCTTable]) -> None:
    _, table = trial
    assert table.true_value is not None
    assert table.true_cost is not None
    lift, cost = table.true_value[:, 1:] - table.true_value[:, :1], table.true_cost.mean(0)
    assert (lift.mean(0) > 0).all()
    assert (cost.diff() > 0).all()
    # Without heterogeneity nothing could be allocated.
    assert (lift.std(0) > 0.3 * lift.mean(0)).all()


# Noise


@pytest.mark.parametrize("purchase_logit", [-2.2, 0.5])
def test_purchase_logit_shifts_the_logit_of_every_purchase(purchase_logit: float) -> None:
    usual, other = (replace(LARGE, purchase_logit=b).partition("train", 0) for b in (-1.2, purchase_logit))
    assert torch.equal(usual.dense, other.dense)
    assert torch.equal(usual.treatment, other.treatment)
    assert usual.true_value is not None
    assert other.true_value is not None
    assert usual.true_cost is not None
    assert other.true_cost is not None
    # All else equal, values are in the ratio r of the probabilities, and odds in the ratio e^d: that gives both.
    r, e = (other.true_value / usual.true_value).double(), np.exp(purchase_logit + 1.2)
    buy = (e - r) / (r * (e - 1))
    assert ((buy > 0) & (buy < 1)).all()
    torch.testing.assert_close(other.true_cost[:, 1:], (usual.true_cost * r)[:, 1:].float(), rtol=1e-4, atol=0)
    for table, p in ((usual, buy), (other, buy * r)):
        chosen = p.gather(1, table.treatment.unsqueeze(1)).squeeze(1)
        assert abs(z_of_mean((table.value > 0).double() - chosen)) < Z


def test_rates_of_purchase_are_as_documented() -> None:
    for purchase_logit, rate in ((-1.2, 0.352), (-2.2, 0.181)):
        campaign = replace(LARGE, purchase_logit=purchase_logit, users=20_000, train_rows=10_000)
        bought = [(replace(campaign, seed=s).partition("train", 0).value > 0).double().mean() for s in range(12)]
        assert abs(float(torch.stack(bought).mean()) - rate) < 0.01


@pytest.mark.parametrize("spend_sigma", [0.0, 0.8])
def test_spend_sigma_widens_spend_and_leaves_the_rest(spend_sigma: float) -> None:
    usual, other = (replace(LARGE, spend_sigma=s).partition("train", 0) for s in (0.6, spend_sigma))
    assert usual.true_value is not None
    assert other.true_value is not None
    assert other.true_cost is not None
    assert torch.equal(usual.cost, other.cost)
    assert torch.equal(usual.true_cost, other.true_cost)  # type: ignore[arg-type]
    scale = np.exp((spend_sigma**2 - 0.6**2) / 2)
    torch.testing.assert_close(other.true_value, usual.true_value * scale, rtol=1e-5, atol=0)
    bought = usual.value > 0
    assert torch.equal(bought, other.value > 0)
    # The same draws ε behind both: log spend is m + σ ε.
    epsilon = (usual.value[bought].log() - other.value[bought].log()).double() / (0.6 - spend_sigma)
    assert abs(float(epsilon.mean())) < Z / len(epsilon) ** 0.5
    assert abs(float(epsilon.std()) - 1) < Z / (2 * len(epsilon)) ** 0.5


# Population


def test_few_users_make_most_of_the_rows() -> None:
    table = LARGE.partition("train", 0)
    counts = np.sort(np.bincount(table.user, minlength=LARGE.users))[::-1]
    assert counts[: LARGE.users // 100].sum() > 0.1 * len(table)
    assert counts[0] < 0.2 * len(table)
    assert np.median(counts[counts > 0]) < 0.2 * counts[0]


def test_cold_users_come_with_the_later_splits() -> None:
    campaign = replace(LARGE, newcomers=0.3)
    seen = {split: set(campaign.partition(split, 0).user.tolist()) for split in SPLITS}
    joined = join_day(np.arange(campaign.users), campaign.seed, campaign.newcomers, campaign.days)
    late = set(np.flatnonzero(joined >= campaign.train_days).tolist())
    assert 0.02 * campaign.users < len(late) < 0.3 * campaign.users
    assert not late & seen["train"]
    assert not seen["val"] & set(np.flatnonzero(joined >= campaign.train_days + campaign.val_days).tolist())
    assert len(late & seen["test"]) > 0.3 * len(late)


def test_nobody_is_exposed_before_joining() -> None:
    first = 0
    for split, days in zip(SPLITS, (LARGE.train_days, LARGE.val_days, LARGE.test_days), strict=True):
        shown = replace(LARGE, train_rows=20_000, val_rows=20_000).exposures(split, 0)
        user, day = shown.user, shown.day
        assert len(user) == len(day) == 20_000
        assert (join_day(user, LARGE.seed, LARGE.newcomers, LARGE.days) <= day).all()
        assert set(day) == set(range(first, first + days))
        first += days


def test_without_newcomers_everybody_is_there_from_the_first_day() -> None:
    assert not join_day(np.arange(LARGE.users), seed=0, newcomers=0.0, days=14).any()


def test_traits_of_a_user_persist_over_rows_and_splits() -> None:
    train, test = LARGE.partition("train", 0), LARGE.partition("test", 0)
    place = {u: i for i, u in enumerate(train.user.tolist())}
    pairs = [(place[u], i) for i, u in enumerate(test.user.tolist()) if u in place]
    a, b = torch.tensor(pairs).T
    assert len(a) > 5_000
    for name in ("user_id", "city", "tier"):
        assert torch.equal(ids_of(train, name)[a], ids_of(test, name)[b])
    assert train.true_value is not None
    assert test.true_value is not None
    # One row per user, so that the busiest do not stand for all.
    one = np.unique(train.user[a], return_index=True)[1]
    for j in range(train.true_value.shape[1]):
        x, y = train.true_value[a, j].log()[one], test.true_value[b, j].log()[one]
        assert 0.7 < np.corrcoef(x, y)[0, 1] < 0.9999
        assert abs(np.corrcoef(x, y.roll(1))[0, 1]) < 0.15


def test_ids_name_rows_of_their_tables(trial: tuple[Campaign, RCTTable]) -> None:
    campaign, table = trial
    assert list(table.ids) == [f.name for f in campaign.schema.sparse]
    for feature in campaign.schema.sparse:
        ids = ids_of(table, feature.name)
        assert isinstance(table.ids[feature.name], IdList) is feature.is_list
        assert int(ids.min()) >= 1  # row 0 is for unknown ids
        assert int(ids.max()) < feature.num_embeddings
        assert len(ids.unique()) > 0.5 * min(feature.num_embeddings - 1, 1_000)
    viewed = table.ids["viewed"]
    assert isinstance(viewed, IdList)
    lengths = viewed.offsets.diff()
    assert len(lengths) == len(table)
    assert int(lengths.min()) == 0
    assert int(lengths.max()) > 3
    assert int(viewed.offsets[-1]) == len(viewed.values)


def test_schema_and_columns_agree(trial: tuple[Campaign, RCTTable]) -> None:
    campaign, table = trial
    schema, k = campaign.schema, len(campaign.face_values)
    assert schema.num_treatments == k
    assert len(set(schema.treatments)) == k
    assert schema.treatments[0] == "control"
    assert schema.known_cost == (0.0, *[None] * (k - 1))
    assert table.dense.shape == (len(table), len(schema.dense))
    assert table.dense.isfinite().all()
    assert table.dense.std(0).min() > 0
    assert table.true_value is not None
    assert table.true_cost is not None
    assert table.true_value.shape == table.true_cost.shape == (len(table), k)
    columns = {f.name: getattr(table, f.name) for f in fields(RCTTable)}
    kinds = {name: x.dtype for name, x in columns.items() if isinstance(x, torch.Tensor)}
    assert {name for name, kind in kinds.items() if kind == torch.int64} == {"user", "treatment"}
    assert {kind for kind in kinds.values() if kind != torch.int64} == {torch.float32}


# Bad input


@pytest.mark.parametrize(
    "name", ["train_rows", "val_rows", "test_rows", "users", "train_days", "val_days", "test_days", "partition_rows"]
)
@pytest.mark.parametrize("number", [0, -5])
def test_counts_are_at_least_one(name: str, number: int) -> None:
    with pytest.raises(InputError, match=f"{name}={number}"):
        Campaign(**{name: number})


@pytest.mark.parametrize(
    "face_values",
    [(), (0.0,), (2.0, 4.0), (2.0, 0.0), (0.0, -1.0), (0.0, 0.0), (0.0, 2.0, 2.0), (0.0, float("nan")), (0.0, "5")],
    ids=str,
)
def test_face_values_are_control_then_distinct_coupons(face_values: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="face_values="):
        Campaign(face_values=face_values)


@pytest.mark.parametrize("newcomers", [-0.1, 1.0, 1.5, float("nan")])
def test_newcomers_are_a_share(newcomers: float) -> None:
    with pytest.raises(InputError, match="newcomers="):
        Campaign(newcomers=newcomers)


@pytest.mark.parametrize("purchase_logit", [-8.1, 9.0, float("nan"), float("inf")])
def test_purchase_logit_is_bounded(purchase_logit: float) -> None:
    with pytest.raises(InputError, match="purchase_logit="):
        Campaign(purchase_logit=purchase_logit)


@pytest.mark.parametrize("spend_sigma", [-0.1, 2.1, float("nan"), float("inf")])
def test_spend_sigma_is_bounded(spend_sigma: float) -> None:
    with pytest.raises(InputError, match="spend_sigma="):
        Campaign(spend_sigma=spend_sigma)


@pytest.mark.parametrize("name", ["train_rows", "users", "seed"])
@pytest.mark.parametrize("given", ["many", 10.5, True, None], ids=str)
def test_counts_are_whole_numbers(name: str, given: object) -> None:
    with pytest.raises(InputError, match=f"{name}={given!r}; allowed: a whole number"):
        Campaign(**{name: given})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["newcomers", "purchase_logit", "spend_sigma"])
@pytest.mark.parametrize("given", ["much", True, None], ids=str)
def test_levers_are_numbers(name: str, given: object) -> None:
    with pytest.raises(InputError, match=f"{name}={given!r}; allowed: a number"):
        Campaign(**{name: given})  # type: ignore[arg-type]
