"""What rows of the embedded campaign tell of the hidden traits of their users, and traits of responses.

The laws are those of ``lightning_budget/campaign``, constants included. Given the traits, the features of a session are
an exponential family, and so are spends and redemptions but for the half dose: a user's rows come down to a few sums.
Purchases hang on the row too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_budget.campaign import Campaign
from lightning_budget.campaign.population import traits_of
from lightning_budget.campaign.responses import World
from lightning_budget.campaign.sessions import CATEGORIES, DENSE
from lightning_budget.hashing import hashed_normal

TRAITS = ("engagement", "thrift", "basket", "habit", "trade-up", "half dose")
"""The half dose as log(κ / 4) / 0.4."""
SPREAD = torch.tensor([0.8, 1.0, 1.0, 1.0, 1.0, 1.0])
"""Standard deviations in the population."""


@dataclass(frozen=True)
class Rows:
    """n rows of a split.

    Attributes:
        user, treatment: ``[n]`` int64.
        tier: ``[n]`` int64.
        sums: ``[n, 6]``, of each row's features, what :func:`natural` multiplies.
        base, sensitivity, spend: ``[n]``, what row, city and tier add to the purchase logit, the log sensitivity and
            the log spend.
        value, cost: ``[n]`` observed; true_value, true_cost: ``[n, K]``.
    """

    user: Tensor
    treatment: Tensor
    tier: Tensor
    sums: Tensor
    base: Tensor
    sensitivity: Tensor
    spend: Tensor
    value: Tensor
    cost: Tensor
    true_value: Tensor
    true_cost: Tensor


def rows_of(campaign: Campaign, split: str) -> Rows:
    """All rows of a split, in their order; of a campaign without drift, zero inflation and heavy tail."""
    parts = [campaign.exposures(split, i) for i in range(campaign.partitions(split))]
    user, day, city, tier, device, dense, treatment, value, cost, true_value, true_cost = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in (
            *("user", "day", "city", "tier", "device", "dense", "treatment", "value", "cost"),
            *("true_value", "true_cost"),
        )
    )
    elasticity = hashed_normal(np.arange(CATEGORIES), campaign.seed, "category_elasticity")
    elastic = np.concatenate([part.viewed.mean_of(elasticity) for part in parts])
    effects = World(campaign.seed, np.array(campaign.face_values), 0.0, 0.0).effects()
    hour, weekend = dense[:, DENSE.index("hour")].astype(np.int64), day % 7 >= 5
    base = campaign.purchase_logit + effects.city_base[city] + 0.25 * weekend + effects.hour_base[hour]
    columns = (
        *(user, treatment, tier, _sums(dense.astype(np.float64)), base - 0.2 * (device == 2)),
        0.1 + 0.5 * elastic + effects.city_sensitivity[city] - 0.15 * weekend,
        *(2.8 + effects.tier_spend[tier], value, cost, true_value, true_cost),
    )
    tensors = [torch.from_numpy(np.ascontiguousarray(column)) for column in columns]
    return Rows(*(t.float() if t.is_floating_point() else t for t in tensors))


def _sums(dense: np.ndarray) -> np.ndarray:
    recency, log_frequency, basket, _, minutes, discount = dense.T[:6]
    frequency = np.round(np.expm1(log_frequency))
    return np.stack(
        [
            *(np.ones(len(dense)), recency, frequency, np.log(basket) - 3),
            *(minutes, np.log(discount / (1 - discount)) + 0.5),
        ],
        1,
    )


def natural(z: Tensor) -> Tensor:
    """``[n, 6]``, of traits ``[n, 6]``: its product with the sums is the log likelihood of the features.

    Up to a sum without traits. Recency is exponential, frequency Poisson, basket and discount share normal after a
    logarithm and a logit, minutes Gamma(2).
    """
    engagement, thrift, basket = z.unbind(1)[:3]
    scale = 0.3 * engagement + 0.2 * thrift
    once = (
        0.5 * engagement
        - 4 * torch.exp(0.6 * engagement)
        - 2 * scale
        - 0.5 * (0.5 / 0.4 * basket).square()
        - 0.5 * (0.8 / 0.9 * thrift).square()
    )
    return torch.stack(
        [
            *(once, -torch.exp(0.5 * engagement) / 6, 0.6 * engagement, 0.5 / 0.4**2 * basket),
            *(-torch.exp(-scale) / 3, 0.8 / 0.9**2 * thrift),
        ],
        1,
    )


@dataclass(frozen=True)
class Curves:
    """What n users' responses hang on, of their traits.

    Attributes:
        base, factor: ``[n]``, added to the purchase logit; what multiplies the exponential of the row's sensitivity.
        dose: ``[n, K]``; log_spend: ``[n, K]``, added to that of the row.
        redeem: ``[n, K]``, the logit of redemption.
    """

    base: Tensor
    factor: Tensor
    dose: Tensor
    log_spend: Tensor
    redeem: Tensor


def curves_of(z: Tensor, face: Tensor) -> Curves:
    """Of traits ``[n, 6]``, for K face values."""
    engagement, thrift, basket, habit, trade_up, half_dose = z.unbind(1)
    dose = face / (face + 4 * torch.exp(0.4 * half_dose)[:, None])
    growth = 0.1 + 0.2 * trade_up - 0.1 * thrift
    return Curves(
        base=0.7 * engagement,
        factor=torch.exp(0.45 * thrift - 0.35 * engagement),
        dose=dose,
        log_spend=(0.45 * basket + 0.15 * engagement)[:, None] + growth[:, None] * dose,
        redeem=0.6 + 0.8 * habit[:, None] + 0.08 * face,
    )


def means(z: Tensor, rows: Rows, face: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean value and cost ``[n, K]`` of every row under every arm, its user's traits ``z`` (``[n, 6]``) given."""
    c = curves_of(z, face)
    sensitivity = rows.sensitivity.exp() * c.factor - 0.3
    buy = torch.sigmoid((rows.base + c.base)[:, None] + sensitivity[:, None] * c.dose)
    value = buy * torch.exp(rows.spend[:, None] + c.log_spend + sigma**2 / 2)
    return value, face * buy * torch.sigmoid(c.redeem)


def prior_mean(user: Tensor, users: int) -> Tensor:
    """``[n, 6]``: the busiest, who come first, are somewhat more engaged."""
    mean = torch.zeros(len(user), len(TRAITS))
    mean[:, 0] = 0.4 * (0.5 - (user + 0.5) / users)
    return mean


def tier_bounds(tier: Tensor) -> tuple[Tensor, Tensor]:
    """``[n]`` between which 0.7 engagement + 0.3 basket + 0.6 ε lies; everything for tier −1, which is unknown."""
    low, high = (tier - 2) / 1.2, (tier - 1) / 1.2
    return torch.where(tier <= 0, -math.inf, low), torch.where((tier < 0) | (tier == 4), math.inf, high)


def true_traits(campaign: Campaign) -> Tensor:
    """``[users, 6]``, in the order of ``TRAITS``."""
    t = traits_of(np.arange(campaign.users), campaign.users, campaign.seed)
    columns = (t.engagement, t.thrift, t.basket, t.habit, t.trade_up, np.log(t.half_dose / 4) / 0.4)
    return torch.from_numpy(np.stack(columns, 1)).float()
