"""Estimators without noise of their own, against the derivative of their smoothed goal by quadrature."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from lightning_budget.estimators import IFD, Gaussian, GradientEstimator, Softmax, StraightThrough
from tests.estimators.oracles import Problem, hard_goal, random_problem, smoothed

SMOOTH: list[tuple[GradientEstimator, str]] = [(Softmax(), "gumbel"), (Gaussian(), "gaussian")]


@pytest.mark.parametrize("treatments", [2, 3, 5, 8])
@pytest.mark.parametrize(("estimator", "law"), SMOOTH)
def test_gradient_of_its_own_smoothed_goal(estimator: GradientEstimator, law: str, treatments: int) -> None:
    p = random_problem(4, treatments, seed=treatments)
    q, value, slope = smoothed(p, law)
    found = estimator.estimate(p.scores, p.gains, p.width)
    largest = slope.abs().amax(dim=1, keepdim=True)
    assert float(((found.gradient - slope).abs() / largest).max()) < 1e-3
    torch.testing.assert_close(found.value, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(estimator.assignment(p.scores, p.width), q, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("estimator", "law"), SMOOTH)
def test_arms_far_behind_keep_their_small_derivatives(estimator: GradientEstimator, law: str) -> None:
    scores = torch.tensor([0.0, -4.0, -5.5], dtype=torch.float64)[None, :, None]
    gains = torch.tensor([0.3, 1.0, -2.0], dtype=torch.float64)[None, :, None]
    p = Problem(scores, gains, torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.long))
    slope = smoothed(p, law)[2]
    torch.testing.assert_close(estimator.estimate(*p).gradient, slope, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("estimator", "margin_law"),
    [(Softmax(), stats.logistic()), (Gaussian(), stats.norm(scale=2**0.5)), (IFD(1.0), stats.uniform(-1, 2))],
)
def test_gumbel_gaussian_and_box_are_one_estimator_with_three_kernels(
    estimator: GradientEstimator, margin_law: stats.rv_continuous
) -> None:
    p = random_problem(50, 2)
    margin = (p.scores[:, 1] - p.scores[:, 0]) / p.width[:, None]
    kernel = torch.from_numpy(margin_law.pdf(margin.numpy())) / p.width[:, None]
    pull = kernel * (p.gains[:, 1] - p.gains[:, 0])
    found = estimator.estimate(*p)
    torch.testing.assert_close(found.gradient, torch.stack([-pull, pull], dim=1))


def test_the_closed_form_of_two_arms_is_the_limit_of_the_quadrature() -> None:
    p = random_problem(30, 2)
    third = torch.full_like(p.scores[:, :1], -1e6)
    more = Gaussian().estimate(torch.cat([p.scores, third], dim=1), torch.cat([p.gains, third], dim=1), p.width)
    two = Gaussian().estimate(*p)
    torch.testing.assert_close(more.gradient[:, :2], two.gradient, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(more.gradient[:, 2:], torch.zeros_like(third))
    torch.testing.assert_close(more.value, two.value, rtol=1e-5, atol=1e-5)


def test_nodes_of_the_quadrature_converge() -> None:
    p = random_problem(50, 20)
    exact = Gaussian(nodes=60).estimate(*p).gradient
    errors = [float((Gaussian(nodes=n).estimate(*p).gradient - exact).norm()) for n in (8, 16, 32)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_straight_through_goes_forward_hard_and_back_as_softmax() -> None:
    p = random_problem(20, 4)
    found = StraightThrough().estimate(*p)
    assert torch.equal(found.gradient, Softmax().estimate(*p).gradient)
    torch.testing.assert_close(found.value, hard_goal(p.scores, p.gains))
    best = torch.nn.functional.one_hot(p.scores.argmax(1), 4).movedim(2, 1).double()
    assert torch.equal(StraightThrough().assignment(p.scores, p.width), best)


@pytest.mark.parametrize(("estimator", "law"), SMOOTH)
def test_small_widths_tend_to_the_hard_choice_and_large_ones_to_chance(estimator: GradientEstimator, law: str) -> None:
    p = random_problem(20, 4)
    best = StraightThrough().assignment(p.scores, p.width)
    torch.testing.assert_close(estimator.assignment(p.scores, 1e-9 * p.width), best)
    hot = estimator.assignment(p.scores, 1e9 * p.width)
    torch.testing.assert_close(hot, torch.full_like(hot, 0.25))
    errors = [float((estimator.assignment(p.scores, t * p.width) - best).abs().sum()) for t in (3.0, 1.0, 0.3, 0.1)]
    assert errors == sorted(errors, reverse=True)
