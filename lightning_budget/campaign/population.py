"""Who the users are: a function of ``(seed, user)`` alone, whatever the partition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_budget.campaign.lists import Floats, Ints
from lightning_budget.campaign.rows import Rows
from lightning_budget.hashing import hashed_normal, hashed_uniform

CITIES, TIERS = 60, 5
SHIFT = 0.003
"""Of the Zipf law: users before it are about equally active."""


def activity(quantile: Floats, exponent: float = 1.0) -> Floats:
    """Inverse distribution function of the user behind an exposure, ids scaled to [0, 1).

    Shifted Zipf law, density ∝ (x + SHIFT)^−exponent: 0 is uniform, more gives more rows to the same few users.
    """
    if exponent == 1:
        return SHIFT * ((1 + SHIFT) / SHIFT) ** quantile - SHIFT
    power = 1 - exponent
    low, high = SHIFT**power, (1 + SHIFT) ** power
    return (low + quantile * (high - low)) ** (1 / power) - SHIFT


def top_share(share: float, exponent: float = 1.0) -> float:
    """Share of the exposures that the most active ``share`` of the users make, newcomers aside.

    The distribution function to :func:`activity`; for 1 % of the users and exponents 0, 0.5, 1, 1.5, 2 it is
    0.01, 0.06, 0.25, 0.55, 0.77.
    """
    if exponent == 1:
        return float(np.log1p(share / SHIFT) / np.log1p(1 / SHIFT))
    power = 1 - exponent
    low, high = SHIFT**power, (1 + SHIFT) ** power
    return ((share + SHIFT) ** power - low) / (high - low)


def join_day(user: Ints, seed: int, newcomers: float, days: int) -> Ints:
    """Day on which a user is first there: 0, or for newcomers a uniformly random one."""
    draw = hashed_uniform(user, seed, "join")
    # User 0 is always there: a small population may consist of newcomers alone.
    newcomer = (draw < newcomers) & (user > 0)
    return np.where(newcomer, draw / max(newcomers, 1e-12) * days, 0.0).astype(np.int64)


@dataclass(frozen=True)
class Traits(Rows):
    """What a user is: persistent, and only partly visible in the features. ``[n]`` each.

    Attributes:
        engagement, thrift, basket, habit (of redeeming), trade_up: about standard normal.
        half_dose: κ, the face value with half of the full effect.
        tenure: days since joining, before the first day of the trial.
        city, tier: ids, 0 … .
        lapse: π, probability that an exposure cannot end in a purchase; see :func:`lapse_of`.
    """

    engagement: Floats
    thrift: Floats
    basket: Floats
    habit: Floats
    trade_up: Floats
    half_dose: Floats
    tenure: Floats
    city: Ints
    tier: Ints
    lapse: Floats


def traits_of(user: Ints, users: int, seed: int, zero_inflation: float = 0.0) -> Traits:
    """Traits of ``user`` (``[n]`` ids of a population of ``users``); the busiest are somewhat more engaged."""

    def normal(name: str) -> Floats:
        return hashed_normal(user, seed, name)

    rank = (user + 0.5) / users
    engagement = 0.8 * normal("engagement") + 0.4 * (0.5 - rank)
    basket = normal("basket")
    city = (hashed_uniform(user, seed, "city") ** 2 * CITIES).astype(np.int64)
    tier = np.clip(np.floor(2.0 + 1.2 * (0.7 * engagement + 0.3 * basket + 0.6 * normal("tier"))), 0, TIERS - 1)
    return Traits(
        engagement=engagement,
        thrift=normal("thrift"),
        basket=basket,
        habit=normal("redemption"),
        trade_up=normal("trade_up"),
        half_dose=4.0 * np.exp(0.4 * normal("half_dose")),
        tenure=30.0 * np.exp(0.7 * normal("tenure")),
        city=city,
        tier=tier.astype(np.int64),
        lapse=lapse_of(user, seed, zero_inflation),
    )


def lapse_of(user: Ints, seed: int, zero_inflation: float) -> Floats:
    """π_u = V_u^((1 − z) / z) with V_u uniform on (0, 1) and z = ``zero_inflation``: Beta(z / (1 − z), 1), mean z.

    A small z is few users who hardly ever buy beside many who are as without it.
    """
    if zero_inflation == 0:
        return np.zeros(len(user))
    return hashed_uniform(user, seed, "lapse") ** ((1 - zero_inflation) / zero_inflation)
