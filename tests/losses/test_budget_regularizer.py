"""The goal and its gradient against autograd through the goal as its definition reads."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.estimators import ESTIMATORS, Softmax, build_estimator
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.goal_state import GoalState
from tests.losses.goal_reference import SMOOTHINGS, SWITCHES, WEIGHTINGS, choice, estimated_outcome, trial

MULTIPLIERS = torch.tensor([0.0, 0.4, 1.5, 6.0], dtype=torch.float64)
BUDGETS = torch.tensor([0.9, 0.5, 0.3, 0.1], dtype=torch.float64)
WIDTH, WIDTH_FACTOR = 0.7, 1.3


def expected_goal(
    name: str,
    batch: RCTBatch,
    prediction: ResponsePrediction,
    model: ResponsePrediction,
    state: GoalState,
    form: GoalForm,
) -> tuple[Tensor, Tensor]:
    """The value of the goal, and what its gradient is the gradient of."""
    value, objective = torch.zeros(2, dtype=torch.float64)
    for b, lam in enumerate(MULTIPLIERS.tolist()):
        scores = prediction.value - lam * prediction.cost
        q = choice(name, WIDTH * WIDTH_FACTOR * float(state.spread[b]))(scores)
        how = {"batch": batch, "weighting": form.weighting, "centred": form.baseline == "centred"}
        earned = estimated_outcome(q, y=batch.value, model=model.value, **how)
        spent = estimated_outcome(q, y=batch.cost, model=model.cost, **how)
        rate = {"none": 0.0, "lambda": lam}[form.cost_term]
        net = earned - rate * spent + (rate * float(BUDGETS[b]) if form.form == "primal" else 0.0)
        value = value + net.detach() / len(MULTIPLIERS)
        held = form.entropy * (q * scores.detach()).sum(1).mean()
        objective = objective + (net - held) / len(MULTIPLIERS)
    return value, objective


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("cost_term", ["none", "lambda"])
@pytest.mark.parametrize("entropy", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("weighting", "baseline"), SWITCHES)
@pytest.mark.parametrize("name", SMOOTHINGS)
def test_value_and_gradient_are_those_of_the_objective(
    name: str, weighting: str, baseline: str, entropy: float, cost_term: str, form: str
) -> None:
    batch, prediction, model = trial(40, 3)
    switches = GoalForm(form, cost_term, weighting, baseline, entropy)  # type: ignore[arg-type]
    width = "temperature" if name == "softmax" else "sigma"
    term = BudgetRegularizer(build_estimator({"name": name, width: WIDTH}), switches)
    how = {"model": model, "width_factor": WIDTH_FACTOR}
    state = term.measure(prediction, batch, MULTIPLIERS, BUDGETS, **how)
    actual = term(batch, prediction, state, **how)
    found = torch.autograd.grad(actual, [prediction.value, prediction.cost])
    # The quadrature of ``gaussian`` is good to four digits of the largest derivative.
    exact = name == "softmax"
    value, objective = expected_goal(name, batch, prediction, model, state, switches)
    torch.testing.assert_close(actual.detach(), value, rtol=1e-11 if exact else 1e-5, atol=0)
    for own, reference in zip(found, torch.autograd.grad(objective, [prediction.value, prediction.cost]), strict=True):
        bound = (1e-12 if exact else 3e-4) * float(reference.abs().max())
        torch.testing.assert_close(own, reference, rtol=1e-9 if exact else 1e-3, atol=bound)


def test_entropy_is_the_entropy_of_softmax() -> None:
    """∂/∂a of Σ q (g − e a), with a held constant, is that of Σ q g + e τ H(q)."""
    batch, prediction, model = trial(30, 4)

    def gradient(entropy: float) -> tuple[Tensor, ...]:
        term = BudgetRegularizer(Softmax(WIDTH), GoalForm(entropy=entropy))
        state = term.measure(prediction, batch, MULTIPLIERS)
        return torch.autograd.grad(term(batch, prediction, state, model), [prediction.value, prediction.cost])

    bonus = torch.zeros((), dtype=torch.float64)
    state = BudgetRegularizer(Softmax(WIDTH)).measure(prediction, batch, MULTIPLIERS)
    for lam, spread in zip(MULTIPLIERS.tolist(), state.spread.tolist(), strict=True):
        q = torch.softmax((prediction.value - lam * prediction.cost) / (WIDTH * spread), 1)
        bonus = bonus - WIDTH * spread * (q * q.log()).sum(1).mean() / len(MULTIPLIERS)
    expected = torch.autograd.grad(0.6 * bonus, [prediction.value, prediction.cost])
    for plain, bent, extra in zip(gradient(0.0), gradient(0.6), expected, strict=True):
        torch.testing.assert_close(bent - plain, extra, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("entropy", [0.0, 1.0])
def test_gradient_is_the_estimators_carried_to_the_predictions(name: str, entropy: float) -> None:
    """Chain rule, means and signs for every estimator: those of the scores' gradients, one multiplier at a time."""
    batch, prediction, model = trial(25, 4)
    estimator = build_estimator({"name": name})
    term = BudgetRegularizer(estimator, GoalForm(weighting="doubly_robust", entropy=entropy))
    state = term.measure(prediction, batch, MULTIPLIERS, model=model, generator=torch.Generator().manual_seed(1))
    goal = term(batch, prediction, state, model, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad(goal, [prediction.value, prediction.cost])

    v, c, price = prediction.value.detach(), prediction.cost.detach(), MULTIPLIERS[:, None, None]
    scores = (v - price * c).transpose(1, 2).contiguous()
    matched = torch.nn.functional.one_hot(batch.treatment, 4) / batch.propensity[:, None]
    net_model = model.value - price * model.cost
    net_seen = (batch.value - MULTIPLIERS[:, None] * batch.cost)[:, :, None]
    gain = (net_model + matched * (net_seen - net_model)).transpose(1, 2) - entropy * scores
    g = torch.Generator().manual_seed(2)
    slopes = estimator.estimate(scores, gain, estimator.width * state.spread, batch.treatment, g).gradient
    by_value, by_cost = slopes.mean(0).T / 25, -(price * slopes).mean(0).T / 25
    scale = float(by_cost.abs().max())
    assert scale > 0
    torch.testing.assert_close(found[0], by_value, rtol=1e-9, atol=1e-12 * scale)
    torch.testing.assert_close(found[1], by_cost, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@settings(deadline=None)
@given(rows=st.integers(2, 20), cuts=st.lists(st.integers(0, 20), max_size=3), seed=st.integers(0, 5))
def test_shards_weighted_by_their_rows_add_up(weighting: str, rows: int, cuts: list[int], seed: int) -> None:
    batch, prediction, _ = trial(rows, 3, seed)
    term = BudgetRegularizer(Softmax(WIDTH), GoalForm(weighting=weighting))  # type: ignore[arg-type]
    state = term.measure(prediction, batch, MULTIPLIERS)
    edges = sorted({0, rows, *[c for c in cuts if c < rows]})
    parts = 0.0
    for a, b in pairwise(edges):
        part = ResponsePrediction(prediction.value[a:b], prediction.cost[a:b])
        parts += (b - a) / rows * term(batch[a:b], part, state).item()
    assert parts == pytest.approx(term(batch, prediction, state).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("unit", [0.01, 3.7, 100.0])
def test_the_goal_scales_with_the_unit_of_value(unit: float) -> None:
    batch, prediction, model = trial(10, 3)
    dearer = replace(batch, value=batch.value * unit)
    for weighting in WEIGHTINGS:
        term = BudgetRegularizer(Softmax(WIDTH), GoalForm("primal", "mu", weighting, "centred"))

        def goal(k: float, rows: RCTBatch, term: BudgetRegularizer = term) -> float:
            own, base = (ResponsePrediction(p.value * k, p.cost) for p in (prediction, model))
            state = term.measure(own, rows, MULTIPLIERS * k, BUDGETS, base)
            return term(rows, own, state, base).item()

        assert goal(unit, dearer) == pytest.approx(unit * goal(1.0, batch), rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_small_temperatures_earn_what_the_best_arm_earns(offset: float) -> None:
    batch, prediction, _ = trial(50, 3)
    prediction = ResponsePrediction(prediction.value + offset, prediction.cost)
    term = BudgetRegularizer(Softmax(1e-6), GoalForm(weighting="ipw"))
    actual = term(batch, prediction, term.measure(prediction, batch, MULTIPLIERS))
    best = (prediction.value - MULTIPLIERS[:, None, None] * prediction.cost).argmax(2)
    net = batch.value - MULTIPLIERS[:, None] * batch.cost
    expected = ((best == batch.treatment) / batch.propensity * net).mean()
    assert actual.item() == pytest.approx(float(expected), rel=1e-5)


def test_without_a_model_the_prediction_is_the_baseline_and_held_constant() -> None:
    batch, prediction, _ = trial(20, 3)
    term = BudgetRegularizer(Softmax(), GoalForm())
    own = term(batch, prediction, term.measure(prediction, batch, MULTIPLIERS))
    state = term.measure(prediction, batch, MULTIPLIERS, model=prediction.detach())
    other = term(batch, prediction, state, prediction.detach())
    both = [torch.autograd.grad(x, [prediction.value, prediction.cost]) for x in (own, other)]
    assert own.item() == other.item()
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize(
    ("switch", "given"),
    [("form", "both"), ("cost_term", "μ"), ("weighting", "mean"), ("baseline", "mean"), ("width_unit", "currency")],
)
def test_unknown_switches(switch: str, given: str) -> None:
    with pytest.raises(InputError, match=rf"objective\.{switch}='{given}'; allowed: \w+, \w+"):
        GoalForm(**{switch: given})  # type: ignore[arg-type]


@pytest.mark.parametrize("entropy", [-0.1, 1.1, float("nan")])
def test_entropy_outside_its_range(entropy: float) -> None:
    with pytest.raises(InputError, match=r"objective\.entropy"):
        GoalForm(entropy=entropy)


def test_a_primal_goal_has_budgets() -> None:
    batch, prediction, _ = trial(5, 2)
    with pytest.raises(InputError, match="form=primal"):
        BudgetRegularizer(Softmax(), GoalForm("primal")).measure(prediction, batch, MULTIPLIERS)
