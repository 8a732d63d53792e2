"""The compiled goal equals the one in plain torch, whatever the switches, sizes and numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trials import random_batch
from torch import Tensor

from lightning_budget.allocation.compiled import SWITCH
from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.estimators import Gaussian, Softmax
from lightning_budget.losses import fused_goal
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.compiled.softmax_goal import USERS
from lightning_budget.losses.goal_state import GoalState
from tests.losses.goal_reference import SWITCHES

VANISHING = 1e-33
"""A share below e⁻⁸⁸ is 0 in the compiled goal, and tiny in torch."""

MULTIPLIERS = torch.tensor([0.0, 0.3, 1.5, 20.0])


@pytest.fixture(autouse=True)
def with_compiler() -> None:
    pytest.importorskip("numba")


def random_case(
    users: int, arms: int, seed: int = 0, size: float = 1.0
) -> tuple[RCTBatch, ResponsePrediction, ResponsePrediction]:
    g = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return size * torch.randn(users, arms, generator=g)

    batch = random_batch(users, arms, seed)
    batch = replace(batch, value=size * torch.randn(users, generator=g))
    own = ResponsePrediction(normal().requires_grad_(), torch.rand(users, arms, generator=g).requires_grad_())
    return batch, own, ResponsePrediction(normal(), torch.rand(users, arms, generator=g))


def both_ways(
    monkeypatch: pytest.MonkeyPatch, term: BudgetRegularizer, *how: object
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Goal and gradients, compiled and in torch."""
    results = []
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        goal = term(*how)  # type: ignore[arg-type]
        own = how[1]
        assert isinstance(own, ResponsePrediction)
        results.append((goal.detach(), *torch.autograd.grad(goal, [own.value, own.cost])))
    return results[0], results[1]


def check(
    actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 1e-5, least: float = VANISHING
) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=20 * tolerance, atol=max(tolerance * float(b.abs().max()), least))


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("cost_term", ["none", "lambda", "mu"])
@pytest.mark.parametrize("entropy", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("weighting", "baseline"), SWITCHES)
def test_every_switch(
    weighting: str, baseline: str, entropy: float, cost_term: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, own, model = random_case(2 * USERS + 37, 4)
    term = BudgetRegularizer(Softmax(0.7), GoalForm(form, cost_term, weighting, baseline, entropy))  # type: ignore[arg-type]
    state = term.measure(own, batch, MULTIPLIERS, torch.full_like(MULTIPLIERS, 0.3), model)
    check(*both_ways(monkeypatch, term, batch, own, state, model, 1.3))


@settings(max_examples=60, deadline=None)
@given(
    users=st.sampled_from([1, 2, 31, USERS - 1, USERS, USERS + 1, 5 * USERS + 3]),
    arms=st.sampled_from([2, 3, 5, 8, 17]),
    size=st.sampled_from([1e-3, 1.0, 1e4]),
    temperature=st.sampled_from([0.1, 1.0, 50.0]),
    seed=st.integers(0, 1000),
)
def test_any_size_and_width(users: int, arms: int, size: float, temperature: float, seed: int) -> None:
    batch, own, _ = random_case(users, arms, seed, size)
    term = BudgetRegularizer(Softmax(temperature), GoalForm(width_unit="value"))
    state = term.measure(own, batch, MULTIPLIERS)
    with pytest.MonkeyPatch.context() as patch:
        compiled, plain = both_ways(patch, term, batch, own, state)
    # Scores and gains are rounded, and the width magnifies both.
    rounding = 2e-6 * (1 + 40 * (size + float(MULTIPLIERS.max())) / temperature)
    check(compiled, plain, rounding, least=rounding * float(MULTIPLIERS.max()) / users)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e20])
def test_stays_finite_at_extreme_widths(size: float, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, own, _ = random_case(USERS + 9, 3, size=size)
    term = BudgetRegularizer(Softmax(temperature), GoalForm(width_unit="value"))
    compiled, plain = both_ways(monkeypatch, term, batch, own, term.measure(own, batch, MULTIPLIERS))
    assert [bool(x.isfinite().all()) for x in compiled] == [bool(x.isfinite().all()) for x in plain]
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, own, _ = random_case(USERS + 5, 3)
    term = BudgetRegularizer(Softmax(1.0))
    state = term.measure(own, batch, MULTIPLIERS)
    for name in ("value", "cost"):
        for arm in range(3):
            broken = {n: getattr(own, n).detach().clone() for n in ("value", "cost")}
            broken[name][USERS + 2, arm] = bad
            prediction = ResponsePrediction(*(x.requires_grad_() for x in broken.values()))
            compiled, plain = both_ways(monkeypatch, term, batch, prediction, state)
            assert bool(compiled[0].isfinite()) == bool(plain[0].isfinite())
            clean = [i for i in range(USERS + 5) if i != USERS + 2]
            check(tuple(x[clean] for x in compiled[1:]), tuple(x[clean] for x in plain[1:]))


def test_stays_out_of_what_it_was_not_written_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert fused_goal.can_fuse(Softmax(1.0), single)
    assert not fused_goal.can_fuse(Softmax(1.0), double)
    assert not fused_goal.can_fuse(Gaussian(1.0), single)

    class Wider(Softmax):
        pass

    assert not fused_goal.can_fuse(Wider(1.0), single)
    monkeypatch.setenv(SWITCH, "0")
    assert not fused_goal.can_fuse(Softmax(1.0), single)


def test_a_state_from_another_device_or_type_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, own, model = random_case(50, 3)
    term = BudgetRegularizer(Softmax(1.0))
    state = term.measure(own, batch, MULTIPLIERS, model=model)
    wide = GoalState.from_tensors({name: x.double() for name, x in state.tensors().items()})
    check(*both_ways(monkeypatch, term, batch, own, wide, model))
