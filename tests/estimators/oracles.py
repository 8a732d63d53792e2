"""What estimators are checked against: quadrature, loops over the whole goal, and problems to try them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import integrate, special
from torch import Tensor

LAWS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "gaussian": (lambda x: np.exp(-x * x / 2) / np.sqrt(2 * np.pi), special.ndtr),
    "gumbel": (lambda x: np.exp(-x - np.exp(-x)), lambda x: np.exp(-np.exp(-x))),
}
"""Density and distribution function of the noise, by name."""


class Problem(NamedTuple):
    """Scores and gains ``[B, K, N]``, width ``[B]``, given ``[N]``."""

    scores: Tensor
    gains: Tensor
    width: Tensor
    given: Tensor


def random_problem(users: int, treatments: int, seed: int = 0, kind: torch.dtype = torch.float64) -> Problem:
    """Three multipliers whose scores have the spreads of their widths."""
    g = torch.Generator().manual_seed(seed)
    width = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)
    scores = width[:, None, None] * torch.randn(3, treatments, users, generator=g, dtype=torch.float64)
    gains = torch.randn(3, treatments, users, generator=g, dtype=torch.float64)
    given = torch.randint(0, treatments, (users,), generator=g)
    return Problem(scores.to(kind), gains.to(kind), width.to(kind), given)


def copies(users: int, seed: int = 0, treatments: int = 3) -> Problem:
    """One user ``users`` times over, so that means over users are means over independent noise."""
    one = random_problem(1, treatments, seed)
    wide = (len(one.width), treatments, users)
    return Problem(
        one.scores.expand(wide).contiguous(), one.gains.expand(wide).contiguous(), one.width, one.given.expand(users)
    )


def choice_probabilities(scores: np.ndarray, width: float, law: str) -> np.ndarray:
    """Chance that each of a user's noisy scores is the largest, by adaptive quadrature; ``[..., K]`` both."""
    behind = (scores - scores.max(-1, keepdims=True)) / width
    density, below = LAWS[law]
    arms = range(scores.shape[-1])

    def wins(x: float) -> np.ndarray:
        chance = below(x - behind)
        others = np.stack([np.delete(chance, j, axis=-1).prod(-1) for j in arms], axis=-1)
        return density(x - behind) * others

    return integrate.quad_vec(wins, -12, 40, epsabs=1e-13, epsrel=1e-12, points=[-2, 0, 2])[0]


def central_difference(goal: Callable[[np.ndarray], np.ndarray], scores: np.ndarray, step: float) -> np.ndarray:
    """Derivative of ``goal``, ``[M, K] → [M]``, by each of ``[K]`` scores."""
    shifts = step * np.eye(len(scores))
    return (goal(scores + shifts) - goal(scores - shifts)) / (2 * step)


def smoothed(problem: Problem, law: str) -> tuple[Tensor, Tensor, Tensor]:
    """Choice probabilities ``[B, K, N]``, goal ``[B]`` and its derivative ``[B, K, N]``, all by quadrature."""
    q, gradient = torch.zeros_like(problem.scores), torch.zeros_like(problem.scores)
    for b, i, scores, gains in each_user(problem):
        w = float(problem.width[b])
        q[b, :, i] = torch.from_numpy(choice_probabilities(scores, w, law))
        slope = central_difference(lambda a, g=gains, w=w: choice_probabilities(a, w, law) @ g, scores, 1e-3 * w)
        gradient[b, :, i] = torch.from_numpy(slope)
    return q, (q * problem.gains).sum(dim=(1, 2)), gradient


def each_user(problem: Problem) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Multiplier, user, and that user's ``[K]`` scores and gains."""
    multipliers, _, users = problem.scores.shape
    for b in range(multipliers):
        for i in range(users):
            yield b, i, problem.scores[b, :, i].numpy(), problem.gains[b, :, i].numpy()


def hard_goal(scores: Tensor, gains: Tensor) -> Tensor:
    """``[B]``, Σ_i of the gain of the first of user i's largest scores, user by user."""
    total = torch.zeros(len(scores), dtype=torch.float64)
    for b, _, own, gain in each_user(Problem(scores, gains, total, total)):
        total[b] += gain[max(range(len(own)), key=lambda j, a=own: a[j])]
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def largest_z(samples: Tensor, expected: Tensor) -> float:
    """Largest standard score of means over the last dimension against ``expected``.

    The standard error must be small beside what is expected, or any wrong estimator would pass.
    """
    error = samples.std(dim=-1) / samples.shape[-1] ** 0.5
    assert float(error.norm()) < 0.1 * float(expected.norm())
    return float(((samples.mean(dim=-1) - expected) / error).abs().max())
