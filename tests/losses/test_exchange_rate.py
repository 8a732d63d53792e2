"""What a unit of currency is worth, against central differences, and when it cannot be told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import Softmax
from lightning_budget.losses import measure
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.measure import (
    exchange_rate,
    no_constants,
    pieces,
)
from tests.losses.goal_reference import SWITCHES, Rows, choice, estimated_outcome, informative_trial


@pytest.mark.parametrize(("weighting", "baseline"), SWITCHES)
def test_exchange_rate_is_the_ratio_of_central_differences(weighting: str, baseline: str) -> None:
    """Of the smoothed value and spend on the trial, in λ, the width held."""
    batch, prediction, model = informative_trial(400)
    form = GoalForm("dual", "mu", weighting, baseline, width_unit="value")  # type: ignore[arg-type]
    multipliers = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    state = BudgetRegularizer(Softmax(0.4), form).measure(prediction, batch, multipliers, model=model)

    def at(lam: float, kind: str) -> float:
        q = choice("softmax", 0.4)(prediction.value - lam * prediction.cost)
        y, m = getattr(batch, kind), getattr(model, kind)
        return float(estimated_outcome(q, batch, weighting, y, m, baseline == "centred"))

    assert float(state.rate[0]) == 0
    for lam, rate in zip(multipliers[1:].tolist(), state.rate[1:].tolist(), strict=True):
        by_value, by_cost = (at(lam + 1e-5, k) - at(lam - 1e-5, k) for k in ("value", "cost"))
        assert rate == pytest.approx(by_value / by_cost, rel=1e-6)
        assert abs(rate / lam - 1) > 0.01


def rate_at(prediction: ResponsePrediction, rows: Rows, multipliers: Tensor, width: float = 0.4) -> list[float]:
    constants = no_constants(multipliers, prediction.value.shape[1])
    widths = torch.full_like(multipliers, width)
    return exchange_rate(pieces(prediction, rows), Softmax(), "ipw", constants, multipliers, widths).tolist()


def test_exchange_rate_falls_back_on_the_multiplier() -> None:
    rows, prediction, _ = informative_trial(400)
    multipliers = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    usual = rate_at(prediction, rows, multipliers)
    assert usual[0] == 0
    assert all(0 < x != m for x, m in zip(usual[1:], multipliers.tolist()[1:], strict=True))

    same_cost = ResponsePrediction(prediction.value, torch.ones_like(prediction.cost))
    free = ResponsePrediction(prediction.value, torch.zeros_like(prediction.cost))
    one_arm = ResponsePrediction(prediction.value + torch.tensor([0.0, 0.0, 1e4, 0.0]), prediction.cost)
    for nobody_changes in (same_cost, free, one_arm):
        assert rate_at(nobody_changes, rows, multipliers) == multipliers.tolist()
    far = torch.tensor([1e4, 1e12], dtype=torch.float64)
    assert rate_at(prediction, rows, far) == far.tolist()


def test_exchange_rate_of_noise_is_the_multiplier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs paid have nothing to do with costs predicted: their slope is noise, of either sign."""
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(40):
        value, cost = torch.rand(2, 100, 3, generator=g, dtype=torch.float64)
        seen = torch.rand(3, 100, generator=g, dtype=torch.float64)
        rows = Rows(torch.randint(0, 3, (100,), generator=g), seen[0], seen[1], 0.2 + 0.2 * seen[2])
        found += rate_at(ResponsePrediction(value, cost), rows, torch.tensor([1.0], dtype=torch.float64))
        # The standard error is that of all users, not of the last chunk.
        with monkeypatch.context() as patch:
            patch.setattr(measure, "CHUNK", 7)
            again = rate_at(ResponsePrediction(value, cost), rows, torch.tensor([1.0], dtype=torch.float64))
        assert again == pytest.approx(found[-1:], rel=1e-9)
    assert sum(x == 1.0 for x in found) >= 34
    assert all(x >= 0 for x in found)


def test_an_outcome_that_grows_with_the_price_of_money_has_no_rate() -> None:
    rows, prediction, _ = informative_trial(400)
    worse = Rows(rows.treatment, -rows.value, rows.cost, rows.propensity)
    multipliers = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert rate_at(prediction, worse, multipliers) == multipliers.tolist()
