"""The marketing goal against a loop, its gradient against the closed form, and its fixed point."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_trials import random_batch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, Weighting, budget_grid, score_spread

MULTIPLIERS = torch.tensor([0.0, 0.4, 1.5, 6.0], dtype=torch.float64)
TEMPERATURE = 0.7
WEIGHTINGS: list[Weighting] = ["ipw", "doubly_robust"]
CASES = [(w, e) for w in WEIGHTINGS for e in (0.0, 1.0, 0.3)]


def doubles(batch: RCTBatch) -> RCTBatch:
    return replace(batch, value=batch.value.double(), cost=batch.cost.double(), propensity=batch.propensity.double())


def trial(rows: int, treatments: int, seed: int) -> tuple[RCTBatch, ResponsePrediction, Tensor]:
    batch, g = doubles(random_batch(rows, treatments, seed)), torch.Generator().manual_seed(seed + 100)
    value = torch.randn(rows, treatments, generator=g, dtype=torch.float64, requires_grad=True)
    cost = torch.rand(rows, treatments, generator=g, dtype=torch.float64, requires_grad=True)
    prediction = ResponsePrediction(value, cost)
    return batch, prediction, score_spread(prediction.detach(), MULTIPLIERS)


def goal(weighting: Weighting, entropy: float, temperature: float = TEMPERATURE) -> BudgetRegularizer:
    return BudgetRegularizer(Softmax(temperature), weighting, entropy)


def softmax(a: np.ndarray, tau: float) -> np.ndarray:
    e = np.exp((a - a.max()) / tau)
    return e / e.sum()


def gains(weighting: Weighting, a: np.ndarray, t: int, p: float, net: float) -> np.ndarray:
    """What a user is estimated to be worth under each arm."""
    given = np.arange(len(a)) == t
    return given / p * net if weighting == "ipw" else a + given / p * (net - a)


@pytest.mark.parametrize(("weighting", "entropy"), CASES)
@pytest.mark.parametrize("treatments", [2, 3, 8])
def test_value_and_gradient_equal_a_loop(weighting: Weighting, entropy: float, treatments: int) -> None:
    n = 25
    batch, prediction, spread = trial(n, treatments, treatments)
    actual = goal(weighting, entropy)(batch, prediction, MULTIPLIERS, spread)
    actual.backward()

    v, c = prediction.value.detach().numpy(), prediction.cost.detach().numpy()
    expected, d_value, d_cost = 0.0, np.zeros_like(v), np.zeros_like(c)
    for lam, s in zip(MULTIPLIERS.tolist(), spread.tolist(), strict=True):
        tau = TEMPERATURE * s
        for i in range(n):
            a, t = v[i] - lam * c[i], int(batch.treatment[i])
            q = softmax(a, tau)
            net = float(batch.value[i] - lam * batch.cost[i])
            g = gains(weighting, a, t, float(batch.propensity[i]), net)
            expected += q @ g - entropy * tau * (q @ np.log(q))
            # ∂(τH)/∂a_j = −q_j (a_j − Σ q a) / τ; with entropy 1 this is the docstring's form.
            d = q * ((g - entropy * a) - q @ (g - entropy * a)) / tau
            d_value[i] += d
            d_cost[i] -= lam * d
    scale = n * len(MULTIPLIERS)
    assert actual.item() == pytest.approx(expected / scale, rel=1e-10)
    np.testing.assert_allclose(prediction.value.grad, d_value / scale, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
    np.testing.assert_allclose(prediction.cost.grad, d_cost / scale, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(("weighting", "entropy"), CASES)
@given(rows=st.integers(1, 20), cuts=st.lists(st.integers(0, 20), max_size=3), seed=st.integers(0, 5))
def test_shards_weighted_by_their_rows_add_up(
    weighting: Weighting, entropy: float, rows: int, cuts: list[int], seed: int
) -> None:
    batch, prediction, spread = trial(rows, 3, seed)
    term = goal(weighting, entropy)
    edges = sorted({0, rows, *[c for c in cuts if c < rows]})
    parts = 0.0
    for a, b in pairwise(edges):
        part = ResponsePrediction(prediction.value[a:b], prediction.cost[a:b])
        parts += (b - a) / rows * term(batch[a:b], part, MULTIPLIERS, spread).item()
    assert parts == pytest.approx(term(batch, prediction, MULTIPLIERS, spread).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("weighting", "entropy"), CASES)
def test_the_grid_is_averaged(weighting: Weighting, entropy: float) -> None:
    batch, prediction, spread = trial(20, 3, 0)
    term = goal(weighting, entropy)
    alone = [term(batch, prediction, m, s) for m, s in zip(MULTIPLIERS.split(1), spread.split(1), strict=True)]
    torch.testing.assert_close(term(batch, prediction, MULTIPLIERS, spread), torch.stack(alone).mean())


# A trial whose truth is known: 40 users, four arms, drawn again and again.


def mean_gradient_z(weighting: Weighting, entropy: float, exaggeration: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean gradient over many randomizations and outcomes, and its z, at ``exaggeration`` times the true effects."""
    users, arms, draws = 40, 4, 4_000
    g = torch.Generator().manual_seed(0)
    truth_v = 2 + torch.randn(users, arms, generator=g, dtype=torch.float64)
    truth_c = torch.arange(arms) * (0.3 + 0.4 * torch.rand(users, 1, generator=g, dtype=torch.float64))
    p = 0.1 + torch.rand(users, arms, generator=g, dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    treatment = torch.multinomial(p, draws, replacement=True, generator=g).T  # [draws, users]
    user = torch.arange(users).expand(draws, -1)
    noise = torch.randn(2, draws, users, generator=g, dtype=torch.float64)
    rows = doubles(random_batch(1, arms))
    batch = replace(
        rows,
        treatment=treatment.flatten(),
        value=(truth_v[user, treatment] + noise[0]).flatten(),
        cost=(truth_c[user, treatment] + 0.5 * noise[1]).flatten(),
        propensity=p[user, treatment].flatten(),
    )
    model_v = truth_v.mean(1, keepdim=True) + exaggeration * (truth_v - truth_v.mean(1, keepdim=True))
    multipliers = torch.tensor([0.2, 1.0], dtype=torch.float64)
    spread = score_spread(ResponsePrediction(model_v, truth_c), multipliers)
    value = model_v.repeat(draws, 1).requires_grad_()
    prediction = ResponsePrediction(value, truth_c.repeat(draws, 1))
    goal(weighting, entropy)(batch, prediction, multipliers, spread).backward()
    assert value.grad is not None
    # The goal is a mean over draws × users rows: undo it to get one draw's gradient.
    each = value.grad.view(draws, users, arms) * draws * users
    mean = each.mean(0)
    return mean, mean / each.std(0) * draws**0.5


def test_correct_predictions_are_a_fixed_point() -> None:
    _, z = mean_gradient_z("doubly_robust", entropy=1.0)
    # Four gradients of a user sum to 0: three are free, 120 in all.
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) == pytest.approx(1, abs=0.45)


def test_without_entropy_correct_predictions_are_pushed_to_exaggerate() -> None:
    mean, z = mean_gradient_z("doubly_robust", entropy=0.0)
    assert float((z.abs() > 5).double().mean()) > 0.8
    # Upwards for a user's best arm at both multipliers, and on the whole towards larger differences.
    assert float(mean.max(1).values.min()) > 0


@pytest.mark.parametrize(("exaggeration", "sign"), [(0.4, 1), (2.5, -1)])
def test_with_entropy_wrong_differences_are_corrected_towards_the_truth(exaggeration: float, sign: int) -> None:
    mean, _ = mean_gradient_z("doubly_robust", entropy=1.0, exaggeration=exaggeration)
    g = torch.Generator().manual_seed(0)
    truth = 2 + torch.randn(40, 4, generator=g, dtype=torch.float64)
    effect = truth - truth.mean(1, keepdim=True)
    assert sign * float((mean * effect).sum()) > 0


def test_ipw_and_doubly_robust_agree_on_average_and_the_latter_varies_less() -> None:
    (ipw, z_ipw), (robust, z_robust) = (mean_gradient_z(w, entropy=0.0) for w in WEIGHTINGS)
    sd_ipw, sd_robust = (ipw / z_ipw).abs(), (robust / z_robust).abs()
    z = (ipw - robust) / (sd_ipw**2 + sd_robust**2).sqrt()
    assert float(z.abs().max()) < 4.5
    assert float(sd_robust.mean()) < 0.8 * float(sd_ipw.mean())


# Scales


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_spread_equals_a_loop(kind: torch.dtype) -> None:
    _, prediction, _ = trial(30, 5, 1)
    prediction = ResponsePrediction(prediction.value.detach().to(kind), prediction.cost.detach().to(kind))
    actual = score_spread(prediction, MULTIPLIERS)
    v, c = prediction.value.numpy(), prediction.cost.numpy()
    expected = [np.mean([np.std(v[i] - m * c[i]) for i in range(30)]) for m in MULTIPLIERS.tolist()]
    assert actual.shape == (4,)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_spread_of_equal_arms_is_still_above_zero() -> None:
    prediction = ResponsePrediction(torch.ones(5, 3), torch.zeros(5, 3))
    spread = score_spread(prediction, MULTIPLIERS)
    assert (spread > 0).all()
    # Equal scores over the smallest of spreads: every arm alike, not NaN.
    q = Softmax().assignment(torch.zeros(4, 5, 3), spread)
    torch.testing.assert_close(q, torch.full((4, 5, 3), 1 / 3))


@given(unit=st.floats(0.01, 100))
def test_the_goal_scales_with_the_unit_of_value(unit: float) -> None:
    batch, prediction, spread = trial(10, 3, 0)
    dearer = replace(batch, value=batch.value * unit)
    scaled = ResponsePrediction(prediction.value * unit, prediction.cost)
    term = goal("doubly_robust", 1.0)
    actual = term(dearer, scaled, MULTIPLIERS * unit, score_spread(scaled.detach(), MULTIPLIERS * unit))
    assert actual.item() == pytest.approx(unit * term(batch, prediction, MULTIPLIERS, spread).item(), rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_small_temperatures_earn_what_the_best_arm_earns(offset: float) -> None:
    batch, prediction, spread = trial(50, 3, 3)
    prediction = ResponsePrediction(prediction.value + offset, prediction.cost)
    actual = goal("ipw", 1.0, temperature=1e-6)(batch, prediction, MULTIPLIERS, spread)
    best = (prediction.value - MULTIPLIERS[:, None, None] * prediction.cost).argmax(2)
    net = batch.value - MULTIPLIERS[:, None] * batch.cost
    expected = ((best == batch.treatment) / batch.propensity * net).mean()
    assert actual.item() == pytest.approx(float(expected), rel=1e-5)


# Input


def test_budgets_are_fractions_of_the_free_spend() -> None:
    budgets = budget_grid([0.1, 0.5, 1.0], 3.0)
    assert budgets.dtype == torch.float64
    assert budgets.tolist() == pytest.approx([0.3, 1.5, 3.0])


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.001, float("nan"), float("inf")])
def test_fractions_outside_zero_to_one(fraction: float) -> None:
    with pytest.raises(InputError, match="budget fraction"):
        budget_grid([0.5, fraction], 3.0)


def test_no_fractions() -> None:
    with pytest.raises(InputError, match="no budget fractions"):
        budget_grid([], 3.0)


@pytest.mark.parametrize("spend", [0.0, -1.0, float("nan")])
def test_nothing_to_spend(spend: float) -> None:
    with pytest.raises(InputError, match="free optimum spends"):
        budget_grid([0.5], spend)


def test_unknown_weighting() -> None:
    with pytest.raises(InputError, match=r"objective\.weighting='hajek'; allowed: ipw, doubly_robust"):
        BudgetRegularizer(Softmax(), "hajek")  # type: ignore[arg-type]
