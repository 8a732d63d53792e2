"""The served policy: one user is a batch of one, to the last bit, and says where it came from."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_budget.allocation import (
    Budget,
    CheckpointSource,
    DataSource,
    PolicyOrigin,
    PricePolicy,
    compiled,
    policy,
    policy_treatment,
    solve_multipliers,
)
from lightning_budget.allocation.compiled import run
from lightning_budget.allocation.policy_origin import content_hash
from lightning_budget.allocation.price_policy import best_treatment
from lightning_budget.errors import InputError
from tests.allocation.reference import policy_by_loop, random_problem

LAYOUTS = ["arm by arm", "user by user", "apart", "mixed"]

anything = st.one_of(
    st.integers(-4, 8).map(float),
    st.floats(-1e308, 1e308),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-300, sys.float_info.max, -sys.float_info.max]),
)
arms = st.integers(1, 6).flatmap(lambda k: st.lists(st.tuples(anything, anything), min_size=k, max_size=k))
prices = st.one_of(
    st.integers(0, 32).map(lambda q: q / 4),
    st.floats(0, sys.float_info.max),
    st.sampled_from([math.inf, sys.float_info.max, 1e-320]),
)


@settings(max_examples=600, deadline=None)
@given(arms, prices)
def test_one_user_is_a_batch_of_one_whatever_the_numbers(user: list[tuple[float, float]], price: float) -> None:
    values, costs = zip(*user, strict=True)
    value, cost = (torch.tensor([x], dtype=torch.float64) for x in (values, costs))
    assert best_treatment(values, costs, price) == int(policy_treatment(value, cost, price))


def laid_out(value: Tensor, cost: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The same numbers in other storage."""
    if layout == "apart":
        wide = torch.full((2 * value.shape[1], 3 * len(value)), math.nan, dtype=value.dtype)
        return wide[::2, ::3].T.copy_(value), wide[1::2, 1::3].T.copy_(cost)
    by_arm = [x.T.contiguous().T for x in (value, cost)]
    by_user = [x.contiguous() for x in (value, cost)]
    v, c = {"arm by arm": by_arm, "user by user": by_user, "mixed": (by_arm[0], by_user[1])}[layout]
    return v, c


def spread(values: list[float], costs: list[float]) -> list[float]:
    """Slopes between any two arms, and the floats beside them: where a user ties, or nearly so."""
    pairs = itertools.combinations(range(len(values)), 2)
    prices = [c for j, k in pairs if (d := costs[j] - costs[k]) and (c := (values[j] - values[k]) / d) >= 0]
    return [x for price in prices for x in (price, math.nextafter(price, 0), math.nextafter(price, math.inf))]


small = st.one_of(
    st.integers(-4, 8).map(float),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149), 1e-30, 3.4028234663852886e38, -3.4028234663852886e38]),
)


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    """A few kinds of users ``[n, K]``, of what kind each of a crowd is, and a multiplier."""
    arms, dtype, number = draw(
        st.sampled_from([(1, torch.float64, anything), (2, torch.float64, anything), (5, torch.float64, anything)])
        | st.just((5, torch.float32, small))
    )
    row = st.lists(number, min_size=arms, max_size=arms)
    kinds = draw(st.lists(st.tuples(row, row), min_size=1, max_size=5))
    value, cost = torch.tensor(kinds, dtype=dtype).unbind(1)
    ties = [x for v, c in zip(value.tolist(), cost.tolist(), strict=True) for x in spread(v, c)]
    weights = torch.tensor([draw(st.sampled_from([1.0, 0.01])) for _ in kinds])
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    kind = weights.multinomial(draw(st.sampled_from([1, 130, 700])), replacement=True, generator=g)
    return value, cost, kind, draw(st.sampled_from(ties) | prices if ties else prices)


@settings(max_examples=300, deadline=None)
@given(crowds(), st.sampled_from(LAYOUTS), st.sampled_from("01"))
def test_a_crowd_is_its_users_whatever_the_numbers(
    crowd: tuple[Tensor, Tensor, Tensor, float], layout: str, switch: str
) -> None:
    value, cost, kind, price = crowd
    if switch == "0":
        value, cost = value / 4, cost / 4  # differences that overflow are left to slopes by the compiled pass alone
    alone = [best_treatment(v, c, price) for v, c in zip(value.tolist(), cost.tolist(), strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiled.SWITCH, switch)
        patch.setattr(policy, "FILTER_USERS", 1)
        got = policy_treatment(*laid_out(value[kind], cost[kind], layout), price)
    assert torch.equal(got, torch.tensor(alone)[kind])


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(torch.float32, (2.0**-146, 2.0**-60, 1.0, 2.0**120)), (torch.float64, (2.0**-1071, 2.0**-500, 1.0, 2.0**1000))],
)
def test_near_ties_are_decided_by_slopes_at_any_size(dtype: torch.dtype, sizes: tuple[float, ...]) -> None:
    """Multipliers that tie, and whose rounding to the precision of the input would decide otherwise."""
    for size in sizes:
        value, cost = ((8 * x * size).to(dtype) for x in random_problem(3, 4096, 5))
        users = list(zip(value.tolist(), cost.tolist(), strict=True))
        ties = [price for v, c in users[:40] for price in spread(v, c)[:3]]
        for price in [x for x in ties if x > 0][:30]:
            alone = [best_treatment(v, c, price) for v, c in users[:40]]
            assert PricePolicy(price)(value, cost)[:40].tolist() == alone


def test_scores_that_underflow_decide_nothing() -> None:
    least = 2.0**-149
    value, cost = torch.tensor([[least, 0.0]]), torch.tensor([[3 * least, -3 * least]])
    price = math.nextafter(1 / 6, 0)  # rounded up in single precision, where the scores are the other way round
    assert best_treatment(value[0].tolist(), cost[0].tolist(), price) == 0
    assert not PricePolicy(price)(value.expand(5000, -1), cost.expand(5000, -1)).any()


@pytest.mark.parametrize("arms", [2, 10])
@pytest.mark.parametrize("switch", ["0", "1"])
def test_a_gain_that_vanishes_beside_its_price_is_none(arms: int, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, switch)
    value, cost = torch.zeros(2, 5000, arms, dtype=torch.float64)
    value[:, 1], cost[:, 1] = 1e-200, 1e200
    assert best_treatment(value[0].tolist(), cost[0].tolist(), 0.0) == 0
    assert not policy_treatment(value, cost, 0.0).any()
    cost[:, 1] = 1e50
    assert bool((policy_treatment(value, cost, 0.0) == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [False, True])
def test_storage_slices_and_threads_make_no_difference(
    dtype: torch.dtype, grid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, cost = (x.to(dtype) for x in random_problem(2, 4999, 5, grid))
    monkeypatch.setattr(run, "SLICE", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for price in (0.0, 0.5, math.inf):
        users = zip(value.tolist(), cost.tolist(), strict=True)
        alone = torch.tensor([best_treatment(v, c, price) for v, c in users])
        for layout in LAYOUTS:
            assert torch.equal(PricePolicy(price)(*laid_out(value, cost, layout)), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [False, True])
def test_users_one_by_one_are_the_batch(dtype: torch.dtype, grid: bool) -> None:
    value, cost = (x.to(dtype) for x in random_problem(1, 5000, 5, grid))
    # Multipliers that some users tie at: slopes of their own steps.
    found = solve_multipliers(value, cost, torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64)).tolist()
    for price in (*found, 0.0, 0.5, 1.0, math.inf):
        policy = PricePolicy(price)
        one_by_one = [policy.choose(v, c) for v, c in zip(value.tolist(), cost.tolist(), strict=True)]
        assert one_by_one == policy(value, cost).tolist()
        if grid and price < math.inf:
            assert one_by_one == policy_by_loop(value, cost, price).tolist()


def test_ties_go_to_the_cheaper_arm_then_to_the_first() -> None:
    policy = PricePolicy(2.0)
    assert policy.choose([2.0, 0.0], [1.0, 0.0]) == 1
    assert policy.choose([0.0, 2.0], [0.0, 1.0]) == 0
    assert policy.choose([1.0, 1.0, 1.0], [3.0, 1.0, 1.0]) == 1
    assert PricePolicy(math.inf).choose([0.0, 9.0], [1.0, 1.0]) == 1
    # A slope that overflows does not beat the largest multiplier.
    assert PricePolicy(sys.float_info.max).choose([0.0, 1e300], [0.0, 1e-300]) == 0
    assert PricePolicy(1e308).choose([0.0, 1e300], [0.0, 1e-300]) == 1


def test_nobody_is_no_error() -> None:
    assert PricePolicy(1.0)(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)


ORIGIN = PolicyOrigin(
    Budget(1000.0, False, 4000), DataSource("users.parquet", 4000, "ab12"), CheckpointSource("best.ckpt", "cd34")
)


def test_it_says_where_it_came_from() -> None:
    text = str(PricePolicy(1.5, ("control", "ten"), ORIGIN))
    assert text.splitlines() == [
        "Price policy: one more unit of currency must earn 1.5 units of value (multiplier 1.5)",
        "  treatments: control, ten",
        "  budget: 1,000 in total for 4,000 users (0.25 per user)",
        "  data: users.parquet, 4,000 rows, fingerprint ab12",
        "  checkpoint: best.ckpt, sha256 cd34",
    ]
    each = PolicyOrigin(Budget(0.25, True, 4000), ORIGIN.data)
    assert "0.25 per user, solved for 4,000 users (1,000 in total)" in str(PricePolicy(1.5, (), each))
    assert "checkpoint: none" in PricePolicy(1.5, (), each).describe()
    assert "everyone gets the cheapest treatment" in str(PricePolicy(math.inf))


@pytest.mark.parametrize("origin", [None, ORIGIN, PolicyOrigin(Budget(0.25, True, 4000), ORIGIN.data)])
@pytest.mark.parametrize("price", [0.1 + 0.2, math.inf, 5e-324])
def test_plain_containers_give_it_back(origin: PolicyOrigin | None, price: float) -> None:
    policy = PricePolicy(price, ("control", "ten"), origin)
    assert PricePolicy.from_dict(policy.to_dict()) == policy


def test_a_checkpoint_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "a").write_bytes(b"weights")
        (tmp_path / name / "b").write_bytes(b"rest")
    known = "9df1d23c0fc6c9f9cd1dd4a0b3cc2d5d"
    assert content_hash(tmp_path / "one" / "b") != known
    assert CheckpointSource.of(tmp_path / "one").sha256 == content_hash(tmp_path / "two")
    (tmp_path / "two" / "part" / "a").rename(tmp_path / "two" / "part" / "c")
    assert content_hash(tmp_path / "one") != content_hash(tmp_path / "two")
    (tmp_path / "one" / "b").write_bytes(b"")
    assert content_hash(tmp_path / "one" / "b") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(InputError, match="cannot be read"):
        content_hash(tmp_path / "none")


@pytest.mark.parametrize(
    ("values", "costs", "match"),
    [
        ([0.0, math.nan], [0.0, 1.0], r"values\[1\] is nan; allowed: finite"),
        ([0.0, 1.0], [-math.inf, 1.0], r"costs\[0\] is -inf"),
        ([math.inf, 1.0], [-math.inf, 1.0], r"values\[0\] is inf"),
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], "3 values and 3 costs; allowed: 2 of each"),
        ([0.0, 1.0], [0.0], "2 values and 1 costs"),
        ([], [], "0 values"),
    ],
)
def test_one_bad_user(values: list[float], costs: list[float], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        PricePolicy(1.0, ("control", "ten")).choose(values, costs)
    assert "\n" not in str(caught.value)


def test_bad_batches_and_multipliers() -> None:
    policy = PricePolicy(1.0, ("control", "ten"))
    good = torch.ones(6000, 2)
    assert policy(good * 3e38, good).shape == (6000,)  # a sum that overflows is no error
    for bad, price, (user, arm) in itertools.product(
        (math.nan, math.inf, -math.inf), (0.0, 1.0, math.inf), ((0, 0), (17, 1), (5999, 1))
    ):
        for mostly in (good, good * torch.tensor([0.0, 9.0])):  # all tied, or none
            value = mostly.clone()
            value[user, arm] = bad
            policy = PricePolicy(price)
            for x in (value, value.T.contiguous().T):
                with pytest.raises(InputError, match=rf"cost\[{user}, {arm}\] is {bad}"):
                    policy(mostly, x)
                with pytest.raises(InputError, match=rf"value\[{user}, {arm}\] is {bad}"):
                    policy(x, mostly)
            with pytest.raises(InputError, match=rf"value\[{user}, 0\] is {bad}"):
                policy(value[:, arm : arm + 1].double(), good[:, :1].double())
    policy = PricePolicy(1.0, ("control", "ten"))
    with pytest.raises(InputError, match="value and cost of 3 treatments; allowed: 2 of each"):
        policy(torch.ones(4, 3), torch.ones(4, 3))
    with pytest.raises(InputError, match="equal shapes"):
        policy(torch.ones(4, 2), torch.ones(3, 2))
    for multiplier in (-1.0, math.nan):
        with pytest.raises(InputError, match="multiplier="):
            PricePolicy(multiplier)
    assert PricePolicy(1.0).choose([1e308, 1e308, 1e308], [0.0, 1.0, 2.0]) == 0
