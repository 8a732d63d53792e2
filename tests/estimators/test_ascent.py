"""Following any estimator's gradient on the scores raises what the hard choice earns."""

from __future__ import annotations

import pytest
import torch

from lightning_budget.estimators import ESTIMATORS, build_estimator
from tests.estimators.oracles import hard_goal

USERS, TREATMENTS, STEPS = 40, 4, 200


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_ascent_on_oracle_gains_raises_the_hard_goal(name: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    value = torch.rand(TREATMENTS, USERS, generator=g, dtype=torch.float64)
    cost = torch.rand(TREATMENTS, USERS, generator=g, dtype=torch.float64)
    multiplier = torch.tensor([0.3, 1.0], dtype=torch.float64)
    gains = value - multiplier[:, None, None] * cost
    given = torch.randint(0, TREATMENTS, (USERS,), generator=g)
    scores = torch.randn(2, TREATMENTS, USERS, generator=g, dtype=torch.float64)
    estimator = build_estimator({"name": name})
    width = torch.full((2,), estimator.width, dtype=torch.float64)
    # A step of the gradient of goals of unit size moves scores by a twentieth of their width.
    step = width[:, None, None].square() / (20 * gains.std())
    start, best = hard_goal(scores, gains), gains.amax(1).sum(1)
    for _ in range(STEPS):
        scores = scores + step * estimator.estimate(scores, gains, width, given, g).gradient
    gained = (hard_goal(scores, gains) - start) / (best - start)
    assert float(gained.min()) > 0.25
