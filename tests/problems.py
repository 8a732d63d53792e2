"""Allocation problems whose solution is known in closed form, each with where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SolvedProblem:
    """A multiple-choice knapsack and what its solution must be.

    Attributes:
        value, cost: ``[N, K]`` float64.
        budget: total currency.
        multiplier: the smallest λ ≥ 0 whose policy fits.
        relaxed: optimum of the linear relaxation, the least dual value.
        best: value of the best integer allocation.
    """

    name: str
    value: Tensor
    cost: Tensor
    budget: float
    multiplier: float
    relaxed: float
    best: float
    source: str


def _rows(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def solved_problems() -> list[SolvedProblem]:
    """Small problems that can be redone with pencil and paper."""
    alike = 8
    return [
        SolvedProblem(
            "dantzig",
            _rows([0, 60], [0, 100], [0, 120]),
            _rows([0, 10], [0, 20], [0, 30]),
            budget=50.0,
            multiplier=4.0,
            relaxed=240.0,
            best=220.0,
            source="ratios 6, 5, 4: 60 + 100 + 20/30 of 120; best is users 2 and 3 (Dantzig 1957,"
            " doi:10.1287/opre.5.2.266; numbers of Cormen et al., Introduction to Algorithms, 16.2)",
        ),
        SolvedProblem(
            "free optimum",
            _rows([0, 3, 5], [1, 4, 2]),
            _rows([0, 1, 2], [0, 1, 2]),
            budget=10.0,
            multiplier=0.0,
            relaxed=9.0,
            best=9.0,
            source="everyone's most valuable arm costs 2 + 1 < 10",
        ),
        SolvedProblem(
            "identical users",
            _rows(*([[0, 2, 3]] * alike)),
            _rows(*([[0, 1, 2]] * alike)),
            budget=5.0,
            multiplier=2.0,
            relaxed=10.0,
            best=10.0,
            source="slopes 2 then 1 for each of 8 users; 5 of them take the first step",
        ),
        SolvedProblem(
            "dominated arms",
            _rows([0, 1, 4, 4, 3], [0, 1, 4, 4, 3]),
            _rows([0, 1, 2, 3, 2], [0, 1, 2, 3, 2]),
            budget=3.0,
            multiplier=2.0,
            relaxed=6.0,
            best=5.0,
            source="hull of each user is (0, 0), (2, 4); the best one tops up with arm (1, 1) inside it",
        ),
        SolvedProblem(
            "an arm that pays",
            _rows([5, 0], [0, 1]),
            _rows([0, -4], [0, 5]),
            budget=1.0,
            multiplier=1 / 5,
            relaxed=5.2,
            best=5.0,
            source="arm 1 of user 0 returns 4 for a loss of 5 (slope 1.25), user 1 gains 1 for 5 (slope 0.2)",
        ),
        SolvedProblem(
            "losses only",
            _rows([-3, -1], [-4, -2]),
            _rows([1, 2], [1, 3]),
            budget=3.0,
            multiplier=1.0,
            relaxed=-5.0,
            best=-5.0,
            source="least spend 2, one unit left, slopes 2 and 1: user 0 takes it",
        ),
    ]
