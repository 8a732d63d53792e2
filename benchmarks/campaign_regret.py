"""What allocating by posterior means leaves of the value of the best policy, true means known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from campaign_posterior import Acceptance, draws
from campaign_traits import TRAITS, natural
from campaign_trial import Trial
from torch import Tensor

from lightning_budget.campaign import Campaign

FEATURES, ALL, SIGN = "features", "features and outcomes", "… and the sign of thrift"
"""What is known of users."""


class Means:
    """Weighted sums over draws of value and cost ``[n, K]``, and of the weights and their squares ``[n]``."""

    def __init__(self, rows: int, arms: int) -> None:
        self.value, self.cost = torch.zeros(rows, arms), torch.zeros(rows, arms)
        self.weight, self.squares = torch.zeros(rows), torch.zeros(rows)

    def add(self, weight: Tensor, value: Tensor, cost: Tensor) -> None:
        self.value.addcmul_(weight[:, None], value)
        self.cost.addcmul_(weight[:, None], cost)
        self.weight += weight
        self.squares.addcmul_(weight, weight)

    def or_else(self, other: Means) -> Means:
        """With the sums of ``other`` for rows that have no weight."""
        found, none = Means(*self.value.shape), self.weight == 0
        for name in ("value", "cost", "weight", "squares"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(found, name, torch.where(none if mine.ndim == 1 else none[:, None], theirs, mine))
        return found


def regret(trial: Trial, by: Sequence[Means]) -> Tensor:
    """``[B]``, of the policy by the mean of all these draws."""
    weight, value, cost = (torch.stack([getattr(m, name) for m in by]).sum(0) for name in ("weight", "value", "cost"))
    return trial.best - trial.value_of(value / weight[:, None], cost / weight[:, None])


@dataclass(frozen=True)
class Found:
    """By one set of information.

    Attributes:
        regret: ``[B]``; halves: two of them, ``[B]``, by the first and the second half of the draws.
        with_sign: ``[B]``, of the same draws where each user's sign of thrift is known.
        covered: ``[6]`` share of users with training rows whose trait the 90 % posterior interval holds.
        acceptance: mean over proposals.
        effective: least number of draws, in 99 of 100 test rows, that the weights are worth.
    """

    regret: Tensor
    halves: tuple[Tensor, Tensor]
    with_sign: Tensor
    covered: Tensor
    acceptance: float
    effective: float


@torch.no_grad()
def study(trial: Trial, with_outcomes: bool, count: int, warm_up: int, seed: int) -> Found:
    """Draw ``count`` times, and allocate.

    A test row that shares its user's chain weighs the draws by the likelihood of its own features.
    """
    posterior = trial.posterior(with_outcomes)
    rows, arms = len(trial.test.user), len(trial.face)
    sums = trial.test.sums * ~trial.own[:, None]
    halves, signs = [[Means(rows, arms) for _ in range(2)] for _ in range(2)]
    below, seen, first = torch.zeros(trial.users, len(TRAITS)), Acceptance(), None
    sign = trial.traits[trial.test.user, 1] > 0
    for i, z in enumerate(draws(posterior, count, warm_up, seed, seen)):
        below += z[: trial.users] < trial.traits
        of_row = z[trial.row_chain]
        likelihood = (sums * natural(of_row)).sum(1)
        first = likelihood if first is None else first
        weight = (likelihood - first).clamp(-30, 30).exp()
        value, cost = trial.means(of_row)
        halves[2 * i // count].add(weight, value, cost)
        signs[2 * i // count].add(weight * ((of_row[:, 1] > 0) == sign), value, cost)
    known = torch.bincount(trial.train.user, minlength=trial.users) > 0
    share = below[known] / count
    weight, squares = (torch.stack([getattr(m, name) for m in halves]).sum(0) for name in ("weight", "squares"))
    return Found(
        regret=regret(trial, halves),
        halves=(regret(trial, halves[:1]), regret(trial, halves[1:])),
        with_sign=regret(trial, [s.or_else(h) for s, h in zip(signs, halves, strict=True)]),
        covered=((share >= 0.05) & (share <= 0.95)).double().mean(0),
        acceptance=seen.mean,
        effective=float((weight.square() / squares).quantile(0.01)),
    )


@dataclass(frozen=True)
class Bound:
    """One data set with one seed.

    Attributes:
        best, control: ``[B]``, value per row.
        error: of the means by true traits.
        found: by what is known.
    """

    best: Tensor
    control: Tensor
    error: float
    found: dict[str, Found]

    @classmethod
    def of(cls, campaign: Campaign, count: int, warm_up: int, shown: Iterable[object]) -> Bound:
        """Draw with and without outcomes; ``shown`` goes on by one each."""
        trial, steps, found = Trial.of(campaign), iter(shown), {}
        for name in (FEATURES, ALL):
            found[name] = study(trial, name == ALL, count, warm_up, campaign.seed)
            next(steps, None)
        return cls(trial.best, trial.control, trial.error, found)

    @property
    def values(self) -> dict[str, Tensor]:
        """``[B]``, by policy."""
        regret = {name: f.regret for name, f in self.found.items()} | {SIGN: self.found[ALL].with_sign}
        return {"oracle": self.best, "control": self.control} | {n: self.best - r for n, r in regret.items()}
