"""What the goal takes from the whole data: against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import Softmax, build_estimator
from lightning_budget.losses.budget_regularizer import LARGEST_MULTIPLIER, BudgetRegularizer, GoalForm
from lightning_budget.losses.gains import Weighting
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.losses.measure import (
    arm_residuals,
    pieces,
    policy_constants,
    score_spread,
)
from tests.losses.goal_reference import SMOOTHINGS, choice, informative_trial, trial

MULTIPLIERS = torch.tensor([0.0, 0.4, 1.5, 6.0], dtype=torch.float64)
WIDTH = torch.tensor([0.5, 0.6, 0.7, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_spread_equals_a_loop(kind: torch.dtype) -> None:
    _, prediction, _ = trial(30, 5)
    prediction = ResponsePrediction(prediction.value.detach().to(kind), prediction.cost.detach().to(kind))
    actual = score_spread(prediction, MULTIPLIERS)
    v, c = prediction.value.numpy(), prediction.cost.numpy()
    expected = [np.mean([np.std(v[i] - m * c[i]) for i in range(30)]) for m in MULTIPLIERS.tolist()]
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-5 if kind == torch.float32 else 1e-12)


def test_spread_is_root_half_of_a_users_root_mean_square_margin() -> None:
    _, prediction, _ = trial(1, 4)
    scores = (prediction.value - 0.4 * prediction.cost)[0].detach()
    margins = (scores[:, None] - scores).square().mean().sqrt()
    assert float(score_spread(prediction, MULTIPLIERS)[1]) == pytest.approx(float(margins) * 0.5**0.5)


def test_spread_of_tied_scores() -> None:
    """A millionth of their size; one unit of value where they are all 0."""
    tied = ResponsePrediction(torch.full((5, 3), -4.0), torch.zeros(5, 3))
    torch.testing.assert_close(score_spread(tied, MULTIPLIERS).float(), torch.full((4,), 4e-6))
    nothing = ResponsePrediction(torch.zeros(5, 3), torch.zeros(5, 3))
    assert score_spread(nothing, MULTIPLIERS).tolist() == [1.0] * 4


@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_spread_at_large_multipliers_does_not_overflow(unit: float) -> None:
    _, prediction, _ = trial(10, 3)
    short = ResponsePrediction(prediction.value.float(), prediction.cost.float() * unit)
    expected = 1e18 * np.std(short.cost.detach().double().numpy(), axis=1).mean()
    assert float(score_spread(short, torch.tensor([1e18]))[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("use_model", [False, True])
def test_arm_residuals_equal_a_loop(use_model: bool) -> None:
    batch, prediction, model = trial(40, 4)
    batch.treatment[batch.treatment == 2] = 1
    found = arm_residuals(pieces(prediction, batch, model), MULTIPLIERS, 4, use_model)
    for name, base in (("value", found.value_base), ("cost", found.cost_base)):
        assert base.shape == (4, 4)
        assert (base == base[0]).all()
        for j in range(4):
            total = weights = 0.0
            for i in range(40):
                if int(batch.treatment[i]) == j:
                    w = 1 / float(batch.propensity[i])
                    y = float(getattr(batch, name)[i])
                    total += w * (y - (float(getattr(model, name)[i, j]) if use_model else 0.0))
                    weights += w
            assert float(base[0, j]) == pytest.approx(total / weights if weights else 0.0, rel=1e-12, abs=1e-15)
    assert (found.factor == 1).all()


@pytest.mark.parametrize("weighting", ["hajek", "poststratified"])
@pytest.mark.parametrize("name", SMOOTHINGS)
def test_policy_constants_equal_a_loop(name: str, weighting: Weighting) -> None:
    batch, prediction, _ = trial(40, 4)
    batch.treatment[batch.treatment == 2] = 1
    found = policy_constants(
        pieces(prediction, batch), build_estimator({"name": name}), weighting, MULTIPLIERS, WIDTH, 4
    )
    for b, lam in enumerate(MULTIPLIERS.tolist()):
        q = choice(name, float(WIDTH[b]))((prediction.value - lam * prediction.cost).detach())
        for j in range(4):
            users = [i for i in range(40) if weighting == "hajek" or int(batch.treatment[i]) == j]
            w = {i: float(q[i, batch.treatment[i]]) for i in users}
            if weighting == "hajek":
                w = {i: x / float(batch.propensity[i]) for i, x in w.items()}
            everyone = 40.0 if weighting == "hajek" else float(q[:, j].sum())
            total = sum(w.values())
            of_value = sum(x * float(batch.value[i]) for i, x in w.items()) / total if w else 0.0
            of_cost = sum(x * float(batch.cost[i]) for i, x in w.items()) / total if w else 0.0
            assert float(found.value_base[b, j]) == pytest.approx(of_value, rel=1e-4)
            assert float(found.cost_base[b, j]) == pytest.approx(of_cost, rel=1e-4)
            assert float(found.factor[b, j]) == pytest.approx(everyone / total if w else 0.0, rel=1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_state_has_the_type_of_the_predictions_but_at_least_float32(kind: torch.dtype) -> None:
    batch, prediction, _ = informative_trial(50)
    short = ResponsePrediction(prediction.value.to(kind), prediction.cost.to(kind))
    state = BudgetRegularizer(Softmax(), GoalForm("dual", "mu", "hajek")).measure(
        short, batch, torch.tensor([0.5, 1e300], dtype=torch.float64)
    )
    assert {x.dtype for x in state.tensors().values()} == {torch.promote_types(kind, torch.float32)}
    assert float(state.multiplier[1]) == pytest.approx(LARGEST_MULTIPLIER)
    assert state.budget.isnan().all()


def test_width_unit_of_value_and_width_factor() -> None:
    batch, prediction, _ = informative_trial(300)
    multipliers = torch.tensor([0.5], dtype=torch.float64)

    def state(unit: str, width: float, factor: float) -> GoalState:
        form = GoalForm("dual", "mu", "hajek", width_unit=unit)  # type: ignore[arg-type]
        return BudgetRegularizer(Softmax(width), form).measure(prediction, batch, multipliers, width_factor=factor)

    spread = float(state("spread", 1.0, 1.0).spread)
    assert spread != 1.0
    assert state("value", 1.0, 1.0).spread.tolist() == [1.0]
    # The same width by three ways is the same state but for the unit.
    for other in (state("value", spread, 1.0), state("spread", 0.5, 2.0), state("spread", 2.0, 0.5)):
        torch.testing.assert_close(other.rate, state("spread", 1.0, 1.0).rate)
        torch.testing.assert_close(other.value_base, state("spread", 1.0, 1.0).value_base)
    assert abs(float(state("spread", 1.0, 3.0).rate) / float(state("spread", 1.0, 1.0).rate) - 1) > 1e-3
