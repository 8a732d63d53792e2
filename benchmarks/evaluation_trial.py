"""A population with known outcomes of every arm, and randomized trials drawn from it.

The formulas are those of the embedded campaign (:mod:`lightning_budget.campaign`): purchases are rare, spend is
log-normal, a coupon costs what is redeemed, and loyal users are given control more often. Unlike there, users are drawn
independently from a fixed population, so that what a trial estimates is one number that is known without noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.metrics.functional import aucc, policy_curve, predicted_roi

FACE = np.array([0.0, 2.0, 4.0, 7.0, 11.0])
SIGMA = 0.7
"""Standard deviation of the logarithm of a purchase."""
FRACTIONS = (0.1, 0.3, 0.6)
"""Budgets, of what it costs to give everyone the dearest arm."""
AUCC_ARM = 3
MODELS = {"a": 0.4, "b": 1.0}
"""Spread of the logarithm of a model's error in an arm's gain and cost."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """N rows of a randomized trial.

    Attributes:
        row: ``[N]``, of the population.
        user: ``[N]`` int64, whose rows were drawn together; the others as the metrics take them, ``[N]`` float64.
    """

    row: Tensor
    user: Tensor
    treatment: Tensor
    value: Tensor
    cost: Tensor
    propensity: Tensor


@dataclass(frozen=True)
class Population:
    """M rows of U users.

    Attributes:
        first: ``[U + 1]``, where each user's rows start.
        buy, log_mean, redeem: ``[M, K]``, parameters of the outcomes of every arm.
        propensity: ``[M, K]``, with which a trial gives each arm.
        predictions: by model, value and cost ``[M, K]`` float32.
    """

    first: NDArray[np.int64]
    buy: Floats
    log_mean: Floats
    redeem: Floats
    propensity: Floats
    predictions: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def draw(cls, users: int, seed: int = 0) -> Population:
        """Six users in ten have one row, the others up to eight."""
        rng = np.random.default_rng([seed, users])
        rows = np.where(rng.random(users) < 0.6, 1, np.minimum(1 + rng.geometric(0.45, users), 8))
        user = np.repeat(np.arange(users), rows)
        n = len(user)
        engagement, thrift, basket, habit, trade_up = rng.standard_normal((5, users))[:, user]
        half_dose = 4.0 * np.exp(0.4 * rng.standard_normal(users))[user]
        tier = np.clip(np.floor(2.0 + engagement + 0.6 * rng.standard_normal(users)[user]), 0, 4)
        mood, need = rng.standard_normal((2, n))

        dose = FACE / (FACE + half_dose[:, None])
        sensitivity = np.exp(0.1 + 0.45 * thrift - 0.35 * engagement + 0.5 * mood) - 0.3
        buy = _sigmoid((-1.2 + 0.8 * engagement + 0.4 * need)[:, None] + sensitivity[:, None] * dose)
        log_mean = (2.8 + 0.45 * basket)[:, None] + (0.1 + 0.2 * trade_up - 0.1 * thrift)[:, None] * dose
        redeem = _sigmoid(0.6 + 0.8 * habit[:, None] + 0.08 * FACE)
        control = (0.15 + 0.1 * tier)[:, None]
        propensity = np.concatenate([control, np.repeat((1 - control) / 4, 4, 1)], 1)

        truth = buy * np.exp(log_mean + SIGMA**2 / 2), FACE * buy * redeem
        predictions = {}
        for name, spread in MODELS.items():
            # An error of a row is common to its arms, and another one of each arm smaller.
            error = [spread * (rng.standard_normal((n, 1)) + 0.3 * rng.standard_normal((n, 5))) for _ in range(2)]
            value, cost = (x[:, :1] + (x - x[:, :1]) * np.exp(e) for x, e in zip(truth, error, strict=True))
            predictions[name] = torch.from_numpy(value).float(), torch.from_numpy(cost).float()
        return cls(np.append(0, rows.cumsum()), buy, log_mean, redeem, propensity, predictions)

    @cached_property
    def true_value(self) -> Tensor:
        """``[M, K]`` means."""
        return torch.from_numpy(self.buy * np.exp(self.log_mean + SIGMA**2 / 2))

    @cached_property
    def true_cost(self) -> Tensor:
        """``[M, K]`` means."""
        return torch.from_numpy(FACE * self.buy * self.redeem)

    @cached_property
    def budgets(self) -> list[float]:
        """Currency per row."""
        return [f * float(self.true_cost[:, -1].mean()) for f in FRACTIONS]

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """By model, predicted ROI of ``AUCC_ARM``, ``[M]``."""
        return {
            model: predicted_roi(value[:, AUCC_ARM] - value[:, 0], cost[:, AUCC_ARM] - cost[:, 0])
            for model, (value, cost) in self.predictions.items()
        }

    def true_eom(self, model: str) -> Tensor:
        """Value per row of a model's policy where its true spend is each budget, ``[B]``."""
        return policy_curve(*self.predictions[model], self.true_value, self.true_cost).at_budget(self.budgets).value

    def true_aucc(self, model: str) -> float:
        """AUCC without noise: every row is there under the arm and under control, with its means."""
        score, rows = self.scores[model], len(self.buy)
        value, cost = (torch.cat([x[:, AUCC_ARM], x[:, 0]]) for x in (self.true_value, self.true_cost))
        return float(aucc(torch.arange(2 * rows).lt(rows).long(), value, cost, score=torch.cat([score, score])))

    def trial(self, users: int, seed: int) -> Trial:
        """All rows of users drawn with replacement, each row given an arm at random."""
        rng = np.random.default_rng([seed, users, 1])
        drawn = rng.integers(0, len(self.first) - 1, users)
        length = self.first[drawn + 1] - self.first[drawn]
        user = np.repeat(np.arange(users), length)
        row = np.arange(len(user)) + np.repeat(self.first[drawn] - (length.cumsum() - length), length)
        n = len(row)
        below = self.propensity[row].cumsum(1)
        arm = (rng.random(n)[:, None] > below[:, :-1]).sum(1)
        bought = rng.random(n) < self.buy[row, arm]
        value = bought * np.exp(self.log_mean[row, arm] + SIGMA * rng.standard_normal(n))
        cost = FACE[arm] * (bought & (rng.random(n) < self.redeem[row, arm]))
        columns = (row, user, arm, value, cost, self.propensity[row, arm])
        return Trial(*(torch.from_numpy(x) for x in columns))


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))
