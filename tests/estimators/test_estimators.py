"""What every gradient estimator promises, and the softmax in particular."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_budget.errors import InputError
from lightning_budget.estimators import ESTIMATORS, Softmax, build_estimator

SPREAD = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)


def random_scores(users: int, treatments: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return SPREAD[:, None, None] * torch.randn(len(SPREAD), users, treatments, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_declared_properties(name: str) -> None:
    kind = ESTIMATORS[name]
    assert isinstance(kind.is_random, bool)
    assert isinstance(kind.is_unbiased, bool)
    assert isinstance(kind.evaluations_per_step, int)
    assert kind.evaluations_per_step >= 1
    assert "Source: " in (kind.__doc__ or "")


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("treatments", [2, 5])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_an_assignment_is_a_distribution_with_a_gradient(name: str, treatments: int, kind: torch.dtype) -> None:
    scores = random_scores(40, treatments).to(kind).requires_grad_()
    q = build_estimator({"name": name}).assignment(scores, SPREAD.to(kind))
    assert q.shape == scores.shape
    assert q.dtype == kind
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(2), torch.ones(3, 40, dtype=kind))
    weights = torch.randn_like(q)
    (gradient,) = torch.autograd.grad((q * weights).sum(), scores)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    # Raising every score of a user alike changes no choice.
    torch.testing.assert_close(gradient.sum(2), torch.zeros(3, 40, dtype=kind), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if not e.is_random])
def test_estimators_that_are_not_random_repeat_themselves(name: str) -> None:
    estimator, scores = build_estimator({"name": name}), random_scores(20, 4)
    state = torch.get_rng_state()
    first = estimator.assignment(scores, SPREAD)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(estimator.assignment(scores, SPREAD), first)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_softmax_is_the_frequency_of_each_arm_under_gumbel_noise(temperature: float) -> None:
    draws, scores = 200_000, random_scores(1, 4, seed=5)
    q = Softmax(temperature).assignment(scores, SPREAD)
    g = torch.Generator().manual_seed(1)
    for b, spread in enumerate(SPREAD.tolist()):
        gumbel = -torch.empty(draws, 4, dtype=torch.float64).exponential_(generator=g).log()
        best = (scores[b, 0] + temperature * spread * gumbel).argmax(1)
        frequency = torch.bincount(best, minlength=4) / draws
        z = (frequency - q[b, 0]) / (q[b, 0] * (1 - q[b, 0]) / draws).sqrt()
        assert float(z.abs().max()) < 4.2


def test_its_gradient_is_that_of_the_goal_under_gumbel_noise() -> None:
    temperature, spread, step, draws = 0.8, 1.5, 0.05, 400_000
    scores = torch.tensor([[[0.3, -0.4, 1.1]]], dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    goal = (Softmax(temperature).assignment(scores, torch.tensor([spread])) * gain).sum()
    (gradient,) = torch.autograd.grad(goal, scores)
    g = torch.Generator().manual_seed(2)
    noise = -temperature * spread * torch.empty(draws, 3, dtype=torch.float64).exponential_(generator=g).log()
    for j in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[j]
        up, down = (gain[(scores.detach()[0, 0] + s + noise).argmax(1)] for s in (shift, -shift))
        slope = (up - down) / (2 * step)
        error = float(slope.std()) / draws**0.5
        # The central difference itself errs by less than 1e-3 of a unit at this step.
        assert abs(float(slope.mean()) - float(gradient[0, 0, j])) < 4.2 * error + 1e-3


@given(seed=st.integers(0, 50))
def test_low_temperatures_tend_to_the_best_arm_and_high_ones_to_chance(seed: int) -> None:
    scores = random_scores(20, 4, seed)
    best = torch.nn.functional.one_hot(scores.argmax(2), 4).double()
    torch.testing.assert_close(Softmax(1e-9).assignment(scores, SPREAD), best)
    hot = Softmax(1e9).assignment(scores, SPREAD)
    torch.testing.assert_close(hot, torch.full_like(hot, 0.25))
    errors = [float((Softmax(t).assignment(scores, SPREAD) - best).abs().sum()) for t in (3.0, 1.0, 0.3, 0.1)]
    assert errors == sorted(errors, reverse=True)


@given(unit=st.floats(1e-3, 1e3), temperature=st.floats(0.1, 10))
def test_softmax_does_not_depend_on_the_unit_of_value(unit: float, temperature: float) -> None:
    scores = random_scores(10, 3)
    q = Softmax(temperature).assignment(scores, SPREAD)
    torch.testing.assert_close(Softmax(temperature).assignment(unit * scores, unit * SPREAD), q)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_is_a_number_above_zero(temperature: float) -> None:
    with pytest.raises(InputError, match=r"estimator\.temperature="):
        Softmax(temperature)


def test_configs_build_what_they_name() -> None:
    config = {"name": "softmax", "temperature": 2.5}
    estimator = build_estimator(config)
    assert isinstance(estimator, Softmax)
    assert estimator.temperature == 2.5
    assert config == {"name": "softmax", "temperature": 2.5}


def test_unknown_estimators_are_named() -> None:
    with pytest.raises(InputError, match=r"estimator\.name='softmx'; allowed: softmax"):
        build_estimator({"name": "softmx"})
