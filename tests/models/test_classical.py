"""Classical learners through EconML and CausalML: what they predict, and what is said where those are not installed."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_trials import random_schema, random_table

from lightning_budget.classical import EffectModel, boosted_r_learner, causal_forest
from lightning_budget.classical.effects import Effects, Observed, fit_effects, one_propensity
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable

pytestmark = pytest.mark.filterwarnings("ignore")
PROPENSITY = torch.tensor([0.5, 0.25, 0.25])
FITS: dict[str, Callable[..., EffectModel]] = {
    "econml": lambda *of: causal_forest(*of, trees=48, min_samples_leaf=10),
    "causalml": lambda *of: boosted_r_learner(*of, trees=40, learning_rate=0.1, min_samples_leaf=20, folds=2),
}
INSTALLED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} comes with the extra 'classical'"
        ),
    )
    for name in FITS
]


def trial(rows: int, seed: int) -> tuple[RCTTable, torch.Tensor]:
    """A trial whose first feature decides how much the arms earn, and the true effects ``[N, 2]``."""
    table = random_table(rows, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    arm = torch.multinomial(PROPENSITY.expand(rows, 3), 1, generator=generator).squeeze(1)
    gain = torch.where(table.dense[:, :1] > 5, 2.0, 0.0) * torch.tensor([0.5, 1.0])
    noise = 0.3 * torch.randn(rows, generator=generator)
    value = 3 + torch.cat([torch.zeros(rows, 1), gain], 1).gather(1, arm.unsqueeze(1)).squeeze(1) + noise
    cost = 0.2 * arm + 0.1 * noise
    return replace(table, treatment=arm, value=value, cost=cost, propensity=PROPENSITY[arm]), gain


def error_of(model: EffectModel, of: int = 1) -> float:
    """Mean squared error of value's effects over new users, as a share of the variance of the true ones."""
    users, gain = trial(300, of)
    value = model.predict(users).value
    return float((value[:, 1:] - value[:, :1] - gain).square().mean() / (gain - gain.mean(0)).square().mean())


@pytest.mark.parametrize("library", INSTALLED)
@pytest.mark.parametrize("by_row", [False, True])
def test_it_finds_whom_the_arms_move(library: str, by_row: bool) -> None:
    train, _ = trial(900, 0)
    if by_row:
        train = replace(train, propensity=train.propensity * torch.linspace(0.9, 1.0, 900))
    schema, statistics = random_schema(known_cost=(0.0, None, None)), DataStatistics.from_table(train, random_schema())
    model = FITS[library](train, schema, statistics)
    users, _ = trial(300, 1)
    found = model.predict(users)
    assert found.value.shape == found.cost.shape == (300, 3)
    assert (found.value[:, 0] == torch.tensor(statistics.value_mean[0])).all()
    assert error_of(model) < 0.2
    assert not found.cost[:, 0].any()
    torch.testing.assert_close(found.cost[:, 1:].mean(0), torch.tensor([0.2, 0.4]), rtol=0, atol=0.05)
    again = pickle.loads(pickle.dumps(model)).predict(users)
    assert torch.equal(again.value, found.value)
    assert torch.equal(again.cost, found.cost)


@pytest.mark.parametrize("library", INSTALLED)
def test_rows_of_weight_zero_do_not_move_it(library: str) -> None:
    train, _ = trial(900, 0)
    spoilt = torch.arange(900) % 3 == 0
    other = replace(
        train, value=torch.where(spoilt & (train.treatment == 1), -train.value, train.value), weight=(~spoilt).float()
    )
    statistics = DataStatistics.from_table(other, random_schema())
    errors = [
        error_of(FITS[library](table, random_schema(known_cost=(0.0, 1.0, 2.0)), statistics))
        for table in (other, replace(other, weight=None))
    ]
    assert 5 * errors[0] < errors[1]


def fit_nothing(observed: Observed) -> Effects:
    return lambda x: np.stack([x[:, 0], observed.outcome.mean() + 0 * x[:, 0]], 1)


def test_levels_are_controls_mean_plus_effects_and_known_costs() -> None:
    train, _ = trial(200, 0)
    schema, statistics = random_schema(known_cost=(0.0, None, 7.0)), DataStatistics.from_table(train, random_schema())
    model = fit_effects(fit_nothing, train, schema, statistics, max_categories=0)
    users, _ = trial(50, 1)
    found = model.predict(users)
    first = (users.dense[:, 0] - statistics.dense_mean[0]) / statistics.dense_std[0]
    control_value, control_cost = statistics.value_mean[0], statistics.cost_mean[0]
    expected = torch.stack([torch.zeros(50), first.clamp(-8, 8), train.value.mean().expand(50)], 1) + control_value
    torch.testing.assert_close(found.value, expected)
    expected = torch.stack([torch.zeros(50), first.clamp(-8, 8) + control_cost, torch.full((50,), 7.0)], 1)
    torch.testing.assert_close(found.cost, expected)
    known = fit_effects(fit_nothing, train, random_schema(known_cost=(0.0, 1.0, 2.0)), statistics, max_categories=0)
    assert known.cost is None
    assert torch.equal(known.predict(users).cost, torch.tensor([0.0, 1.0, 2.0]).expand(50, 3))


def test_one_propensity_an_arm_is_told_from_one_a_row() -> None:
    train, _ = trial(200, 0)
    found = one_propensity(train, 3)
    assert found is not None
    np.testing.assert_array_equal(found, PROPENSITY)
    train.propensity[torch.nonzero(train.treatment == 2)[0]] = 0.3
    assert one_propensity(train, 3) is None


@pytest.mark.parametrize("library", FITS)
def test_without_the_library_the_extra_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("econml", "econml.dml", "causalml", "causalml.inference.meta"):
        monkeypatch.setitem(sys.modules, name, None)
    train, _ = trial(30, 0)
    with pytest.raises(InputError, match=r"pip install 'lightning-budget\[classical\]'"):
        FITS[library](train, random_schema(), DataStatistics.from_table(train, random_schema()))


def test_what_cannot_be_fitted_is_refused() -> None:
    train, _ = trial(30, 0)
    statistics = DataStatistics.from_table(train, random_schema())
    with pytest.raises(InputError, match="trees=6; allowed: a multiple of 4"):
        causal_forest(train, random_schema(), statistics, trees=6)
    bare = DataSchema(random_schema().treatments, ())
    with pytest.raises(InputError, match="no dense features"):
        fit_effects(fit_nothing, train, bare, replace(statistics, dense_mean=(), dense_std=()), max_categories=0)
