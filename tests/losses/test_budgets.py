"""Which budgets training has in view."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lightning_budget.errors import InputError
from lightning_budget.losses.budgets import (
    BudgetPrior,
    FixedBudgets,
    budget_grid,
    budgets_per_user,
    check_free_spend,
    parse_budgets,
)

PRIOR = {"shape": "uniform", "low": 0.1, "high": 0.5, "count": 4}


def test_grid_is_fractions_of_the_free_spend() -> None:
    budgets = budget_grid([0.1, 0.5, 1.0], 3.0)
    assert budgets.dtype == torch.float64
    assert budgets.tolist() == pytest.approx([0.3, 1.5, 3.0])


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.001, math.nan, math.inf])
def test_grid_fractions_outside_zero_to_one(fraction: float) -> None:
    with pytest.raises(InputError, match="budget fraction"):
        budget_grid([0.5, fraction], 3.0)


def test_grid_of_nothing() -> None:
    with pytest.raises(InputError, match="no budget fractions"):
        budget_grid([], 3.0)


@pytest.mark.parametrize("spend", [0.0, -1.0, math.nan, math.inf])
def test_nothing_to_spend(spend: float) -> None:
    for refused in (lambda: budget_grid([0.5], spend), lambda: check_free_spend(spend)):
        with pytest.raises(InputError, match="free optimum spends"):
            refused()
    with pytest.raises(InputError, match="free optimum spends"):
        budgets_per_user(FixedBudgets((0.5,)), 0, spend)


def test_fixed_budgets_are_fractions_or_currency() -> None:
    for refresh in (0, 5):
        fractions = budgets_per_user(FixedBudgets((0.1, 1.5)), refresh, 4.0)
        assert fractions.dtype == torch.float64
        assert fractions.tolist() == pytest.approx([0.4, 6.0])
    # Currency needs no free spend, and does not change with it.
    assert budgets_per_user(FixedBudgets((0.1, 1.5), "currency"), 0, 0.0).tolist() == [0.1, 1.5]
    assert FixedBudgets((0.1, 1.5)).names == ("0.1", "1.5")


@pytest.mark.parametrize("shape", ["uniform", "loguniform"])
@pytest.mark.parametrize("refresh", [0, 1, 2, 33, 10**6])
def test_each_refresh_has_one_budget_in_every_stratum(shape: Any, refresh: int) -> None:
    prior = BudgetPrior(shape, 0.02, 0.9, 8)
    draw = np.array(prior.draw(refresh))
    assert len(prior.names) == len(set(prior.names)) == len(draw) == 8
    u = (draw - 0.02) / 0.88 if shape == "uniform" else np.log(draw / 0.02) / np.log(45)
    assert np.floor(u * 8 + 1e-9).astype(int).tolist() == list(range(8))
    assert draw.min() >= 0.02
    assert draw.max() < 0.9


@pytest.mark.parametrize("shape", ["uniform", "loguniform"])
def test_refreshes_together_fill_the_prior(shape: Any) -> None:
    refreshes = 400
    prior = BudgetPrior(shape, 0.02, 0.9, 3)
    draws = np.sort([b for r in range(refreshes) for b in prior.draw(r)])
    u = (draws - 0.02) / 0.88 if shape == "uniform" else np.log(draws / 0.02) / np.log(45)
    # The discrepancy of a golden sequence of n points is near 1/n; of as many random points, 1/sqrt(n).
    gap = np.abs(u - (np.arange(len(u)) + 0.5) / len(u)).max()
    assert gap < 3 / refreshes
    assert len(set(draws.tolist())) == len(draws)


def test_a_prior_is_deterministic_and_scales_with_the_free_spend() -> None:
    prior = BudgetPrior("loguniform", 0.05, 0.5, 4)
    assert prior.draw(7) == BudgetPrior("loguniform", 0.05, 0.5, 4).draw(7) != prior.draw(8)
    assert budgets_per_user(prior, 7, 3.0).tolist() == pytest.approx([3 * b for b in prior.draw(7)])
    currency = BudgetPrior("loguniform", 0.05, 0.5, 4, "currency")
    assert budgets_per_user(currency, 7, 3.0).tolist() == pytest.approx(list(prior.draw(7)))
    assert prior.draw(0)[0] == 0.05


@pytest.mark.parametrize("text", ["[0.1, 0.3]", "[1, 2]", "{shape: uniform, low: 0.1, high: 0.5, count: 4}"])
def test_from_a_config_as_hydra_hands_it_over(text: str) -> None:
    config = OmegaConf.to_container(OmegaConf.create(text))
    found = parse_budgets(config, "currency")  # type: ignore[arg-type]
    assert found.unit == "currency"
    if isinstance(config, list):
        assert found == FixedBudgets(tuple(config), "currency")
    else:
        assert found == BudgetPrior("uniform", 0.1, 0.5, 4, "currency")


def test_count_and_unit_have_defaults() -> None:
    found = parse_budgets({"shape": "loguniform", "low": 0.1, "high": 0.5})
    assert found == BudgetPrior("loguniform", 0.1, 0.5, 8, "fraction")


BAD = [
    ([], "fraction", r"budgets=\[\]; allowed: at least one"),
    ([0.1, 0.0], "fraction", "budgets=0.0; allowed: finite numbers above 0"),
    ([-1], "currency", "budgets=-1;"),
    ([math.nan], "fraction", "budgets=nan;"),
    ([math.inf], "fraction", "budgets=inf;"),
    (["0.1"], "fraction", r"budgets='0\.1';.*without quotes"),
    ([None], "fraction", "budgets=None;"),
    ([True], "fraction", "budgets=True;"),
    ("abc", "fraction", "budgets='a';"),
    (0.3, "fraction", r"budgets=0\.3; allowed: a list of amounts"),
    ([0.1], "euro", "budget_unit='euro'; allowed: fraction, currency;"),
    (PRIOR, "euro", "budget_unit='euro'; allowed: fraction, currency;"),
    (PRIOR | {"shape": "normal"}, "fraction", "shape='normal'; allowed: uniform, loguniform;"),
    (PRIOR | {"low": 0.5}, "fraction", r"from 0\.5 to 0\.5; allowed: low below high"),
    (PRIOR | {"low": 0.6}, "fraction", r"from 0\.6 to 0\.5; allowed: low below high"),
    (PRIOR | {"low": 0}, "fraction", "low=0; allowed: finite numbers above 0"),
    (PRIOR | {"low": None}, "fraction", "low=None;"),
    (PRIOR | {"high": math.nan}, "fraction", "high=nan;"),
    (PRIOR | {"high": math.inf}, "fraction", "high=inf;"),
    (PRIOR | {"count": 0}, "fraction", "count=0; allowed: a whole number of at least 1"),
    (PRIOR | {"count": 2.5}, "fraction", r"count=2\.5; allowed: a whole number"),
    (PRIOR | {"count": "8"}, "fraction", "count='8'; allowed: a whole number"),
    (PRIOR | {"mean": 1}, "fraction", "mean.*; allowed: a list of amounts, or shape, low, high and count"),
    ({"low": 0.1, "high": 0.2}, "fraction", "; allowed: a list of amounts, or shape, low, high and count"),
]


@pytest.mark.parametrize(("config", "unit", "message"), BAD)
def test_bad_input_is_one_line(config: Any, unit: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_budgets(config, unit)
    assert "\n" not in str(caught.value)
    assert "objective.budget" in str(caught.value)
    assert "; fix: " in str(caught.value)
