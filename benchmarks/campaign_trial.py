"""A campaign's rows, whose traits are drawn by which chain, and what policies are worth there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from campaign_posterior import Outcomes, Posterior
from campaign_traits import Rows, means, rows_of, true_traits
from torch import Tensor

from lightning_budget.campaign import Campaign
from lightning_budget.metrics.functional import policy_curve

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Budgets, of what the best policy without a budget spends."""
FEW = 4
"""Training rows; a test row of a user with fewer of them has a chain of its own."""


@dataclass(frozen=True)
class Trial:
    """A campaign's training and test rows, with the chains that its users are drawn by.

    Attributes:
        train, test: their rows.
        users: of the campaign; traits: ``[users, 6]``, the true ones.
        face: ``[K]``; sigma: of log spends.
        chain_user: ``[C]``, first every user, then those of test rows with a chain of their own.
        row_chain: ``[n_test]`` of each test row; own: ``[n_test]``, whether it is its own.
    """

    train: Rows
    test: Rows
    users: int
    traits: Tensor
    face: Tensor
    sigma: float
    chain_user: Tensor
    row_chain: Tensor
    own: Tensor

    @classmethod
    def of(cls, campaign: Campaign) -> Trial:
        """Generate the rows."""
        train, test = rows_of(campaign, "train"), rows_of(campaign, "test")
        own = torch.bincount(train.user, minlength=campaign.users)[test.user] < FEW
        row_chain = torch.where(own, campaign.users + own.cumsum(0) - 1, test.user)
        chain_user = torch.cat([torch.arange(campaign.users), test.user[own]])
        face = torch.tensor(campaign.face_values)
        sigma = campaign.spend_sigma
        return cls(train, test, campaign.users, true_traits(campaign), face, sigma, chain_user, row_chain, own)

    def posterior(self, with_outcomes: bool) -> Posterior:
        """Of all chains, given training rows, and the test row's features in the chain that is its own."""
        order = torch.argsort(self.train.user, stable=True)
        count = torch.bincount(self.train.user, minlength=self.users)
        length = count[self.chain_user]
        chain = torch.repeat_interleave(torch.arange(len(length)), length)
        # The rows of a user lie together in ``order``, from ``first`` on.
        first = (count.cumsum(0) - count)[self.chain_user]
        index = order[torch.arange(len(chain)) + torch.repeat_interleave(first - (length.cumsum(0) - length), length)]
        sums = torch.zeros(len(length), self.train.sums.shape[1]).index_add_(0, chain, self.train.sums[index])
        sums[self.users :] += self.test.sums[self.own]
        tier = torch.full((self.users,), -1)
        for rows in (self.train, self.test):
            tier[rows.user] = rows.tier
        outcomes = None
        if with_outcomes:
            outcomes = Outcomes.of(self.train, index, chain, len(length), self.face, self.sigma)
        return Posterior.of(self.chain_user, self.users, tier[self.chain_user], sums, outcomes)

    def means(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Value and cost ``[n_test, K]``, of traits ``[n_test, 6]``."""
        return means(z, self.test, self.face, self.sigma)

    @property
    def error(self) -> float:
        """Largest relative difference of the means by true traits from the campaign's own."""
        value, cost = self.means(self.traits[self.test.user])
        pairs = (value, self.test.true_value), (cost, self.test.true_cost)
        return max(float(((a - b).abs() / b.clamp(min=1e-3)).max()) for a, b in pairs)

    @cached_property
    def budgets(self) -> Tensor:
        """``[B]``, currency per row."""
        spend = policy_curve(*[self.test.true_value, self.test.true_cost] * 2).spend[-1]
        return torch.tensor(FRACTIONS, dtype=torch.float64) * spend

    def value_of(self, value: Tensor, cost: Tensor) -> Tensor:
        """``[B]`` true value per row of the policy by means ``[n_test, K]``, its true spend each budget."""
        return policy_curve(value, cost, self.test.true_value, self.test.true_cost).at_budget(self.budgets).value

    @cached_property
    def best(self) -> Tensor:
        """``[B]``, of the best policy."""
        return self.value_of(self.test.true_value, self.test.true_cost)

    @property
    def control(self) -> Tensor:
        """``[B]``, of no coupons, which spends nothing."""
        return self.test.true_value[:, 0].double().mean().expand(len(FRACTIONS))
