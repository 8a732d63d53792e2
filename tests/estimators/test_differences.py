"""Estimators that difference the hard goal, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_budget.errors import InputError
from lightning_budget.estimators import IFD, FiniteDifference
from tests.estimators.oracles import Problem, central_difference, each_user, hard_goal, random_problem


def with_ties(problem: Problem) -> Problem:
    """Scores that are whole numbers, so that ties and steps onto ties are common."""
    return Problem(
        problem.scores.div(problem.width[:, None, None]).round(), problem.gains, problem.width, problem.given
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("treatments", [2, 4])
def test_finite_difference_is_the_naive_loop_over_the_whole_goal(tied: bool, treatments: int) -> None:
    p = random_problem(15, treatments, seed=1)
    p = with_ties(p)._replace(width=torch.tensor([1.0, 2.0, 0.5]).double()) if tied else p
    naive = torch.zeros_like(p.scores)
    for j in range(treatments):
        for i in range(15):
            step = torch.zeros_like(p.scores)
            step[:, j, i] = p.width
            change = hard_goal(p.scores + step, p.gains) - hard_goal(p.scores - step, p.gains)
            naive[:, j, i] = change / (2 * p.width)
    assert 0 < int((naive != 0).sum()) < naive.numel()
    found = FiniteDifference(1.0).estimate(*p)
    torch.testing.assert_close(found.gradient, naive)
    torch.testing.assert_close(found.value, hard_goal(p.scores, p.gains))


def ifd_loop(problem: Problem, kernel: str, floor: float = 0.1, ceiling: float = 1.0) -> torch.Tensor:
    """User by user: the least push of the given arm's score, and what the kernel makes of it."""
    gradient = torch.zeros_like(problem.scores)
    for b, i, scores, gains in each_user(problem):
        h, t = float(problem.width[b]), int(problem.given[i])
        rival = max((k for k in range(len(scores)) if k != t), key=lambda k, a=scores: a[k])
        push = abs(scores[t] - scores[rival])
        if kernel == "box":
            k = 1 / (2 * h) if push < h else 0.0
        else:
            k = 0.0 if push >= ceiling * h else 1 / max(push, floor * h)
        gradient[b, t, i] += k * (gains[t] - gains[rival])
        gradient[b, rival, i] -= k * (gains[t] - gains[rival])
    return gradient


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("treatments", [2, 5])
def test_ifd_is_its_kernel_form(treatments: int, tied: bool) -> None:
    p = random_problem(60, treatments, seed=2)
    p = with_ties(p) if tied else p
    box = IFD(1.0).estimate(*p)
    torch.testing.assert_close(box.gradient, ifd_loop(p, "box"))
    assert 0 < int((box.gradient != 0).sum()) < box.gradient.numel()
    torch.testing.assert_close(box.value, hard_goal(p.scores, p.gains))
    push = IFD(1.0, clip="push").estimate(*p)
    torch.testing.assert_close(push.gradient, ifd_loop(p, "push"))
    other = IFD(1.0, clip="push", floor=0.5, ceiling=2.0).estimate(*p)
    torch.testing.assert_close(other.gradient, ifd_loop(p, "push", 0.5, 2.0))
    assert not torch.equal(other.gradient, push.gradient)


def test_ifd_box_is_the_gradient_under_box_noise_in_the_given_score() -> None:
    p = random_problem(12, 4, seed=3)
    found = IFD(1.0).estimate(*p).gradient
    checked = 0
    for b, i, scores, gains in each_user(p):
        h, t = float(p.width[b]), int(p.given[i])
        if abs(abs(scores[t] - np.delete(scores, t).max()) - h) < 0.1 * h:
            continue  # at the edge of the box the central difference straddles a jump of the derivative
        noise = (np.arange(200_000) + 0.5) / 100_000 - 1

        def goal(moved: np.ndarray, t: int = t, g: np.ndarray = gains, u: np.ndarray = h * noise) -> np.ndarray:
            noisy = np.repeat(moved[:, :, None], len(u), axis=2)
            noisy[:, t] += u
            return g[noisy.argmax(1)].mean(1)

        slope = central_difference(goal, scores, 0.05 * h)
        np.testing.assert_allclose(found[b, :, i].numpy(), slope, rtol=1e-3, atol=1e-9)
        checked += int(abs(slope).max() > 0)
    assert checked > 8


def test_push_is_the_quotient_of_the_change_of_the_goal_and_the_push() -> None:
    p = random_problem(30, 3, seed=4)
    found = IFD(1.0, clip="push", floor=1e-6, ceiling=1e6).estimate(*p).gradient
    for b, i, scores, gains in each_user(p):
        t = int(p.given[i])
        margin = scores[t] - np.delete(scores, t).max()
        pushed = scores.copy()
        pushed[t] -= margin * (1 + 1e-12)
        change = gains[pushed.argmax()] - gains[scores.argmax()]
        np.testing.assert_allclose(found[b, t, i], change / -margin, rtol=1e-6)


def test_ifd_asks_for_the_given_arms() -> None:
    p = random_problem(3, 2)
    with pytest.raises(InputError, match="given"):
        IFD().estimate(p.scores, p.gains, p.width)


@pytest.mark.parametrize(
    ("floor", "ceiling"), [(0.0, 1.0), (-1.0, 1.0), (0.5, 0.4), (float("nan"), 1.0), (0.1, float("inf"))]
)
def test_rules_of_clipping_are_ordered(floor: float, ceiling: float) -> None:
    with pytest.raises(InputError, match=r"estimator\.floor="):
        IFD(clip="push", floor=floor, ceiling=ceiling)
