"""Purchase, spend and redemption under every arm, and what is observed under the one given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_budget.campaign.drift import Drift
from lightning_budget.campaign.lists import Floats, Ints
from lightning_budget.campaign.population import CITIES, TIERS, Traits
from lightning_budget.campaign.rows import Rows, chunks
from lightning_budget.campaign.sessions import Session
from lightning_budget.hashing import hashed_normal


@dataclass(frozen=True)
class World:
    """What responses hang on besides users and sessions.

    Args:
        seed: of the campaign.
        face: ``[K]`` face values.
        purchase_logit, spend_sigma: b and σ_spend.
        drift: ``None``: every day is alike.
        zero_inflation: whether there are exposures that cannot end in a purchase; ``Traits.lapse`` says how many.
        spend_tail: α of the factor on spend; ``None``: none.
    """

    seed: int
    face: Floats
    purchase_logit: float
    spend_sigma: float
    drift: Drift | None = None
    zero_inflation: bool = False
    spend_tail: float | None = None

    def effects(self) -> Effects:
        """Those of cities and tiers."""

        def normal(n: int, name: str) -> Floats:
            return hashed_normal(np.arange(n), self.seed, name)

        return Effects(
            0.3 * normal(CITIES, "city_base"),
            0.2 * normal(CITIES, "city_sensitivity"),
            0.15 * normal(TIERS, "tier_spend"),
            0.3 * np.sin(np.arange(24.0) / 24 * 2 * np.pi),
        )


@dataclass(frozen=True)
class Effects:
    """Of each city, tier and hour."""

    city_base: Floats
    city_sensitivity: Floats
    tier_spend: Floats
    hour_base: Floats


@dataclass(frozen=True)
class Draws(Rows):
    """The chance behind the outcomes. ``[n]`` each: uniform on [0, 1), but ``spend``, which is standard normal."""

    buy: Floats
    spend: Floats
    redeem: Floats
    lapse: Floats
    tail: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, more: np.random.Generator, n: int, world: World) -> Draws:
        """``more`` is asked for what only options need, so that they leave all other draws as they are."""
        buy, spend, redeem = rng.random(n), rng.standard_normal(n), rng.random(n)
        none = np.broadcast_to(np.zeros(()), n)
        lapse = more.random(n) if world.zero_inflation else none
        return cls(buy, spend, redeem, lapse, none if world.spend_tail is None else more.random(n))


@dataclass(frozen=True)
class Outcomes:
    """Observed value and cost ``[n]``, and their means under every arm ``[n, K]``."""

    value: NDArray[np.float32]
    cost: NDArray[np.float32]
    true_value: NDArray[np.float32]
    true_cost: NDArray[np.float32]


def respond(world: World, traits: Traits, session: Session, treatment: Ints, draws: Draws) -> Outcomes:
    """Outcomes of n exposures, given ``treatment``."""
    n, k = len(treatment), len(world.face)
    effects = world.effects()
    out = Outcomes(*(np.empty(shape, np.float32) for shape in (n, n, (n, k), (n, k))))
    for part in chunks(n):
        t, s, d = traits.rows(part), session.rows(part), draws.rows(part)
        buy, log_mean, redeem = _curves(world, effects, t, s)
        value = buy * np.exp(log_mean + world.spend_sigma**2 / 2)
        cost = world.face * buy * redeem
        if world.zero_inflation:
            able = (1 - t.lapse)[:, None]
            value, cost = value * able, cost * able
        out.true_value[part], out.true_cost[part] = value, cost
        arm = treatment[part]
        i = np.arange(len(arm))
        bought = d.buy < buy[i, arm]
        if world.zero_inflation:
            bought &= d.lapse >= t.lapse
        spend = np.exp(log_mean[i, arm] + world.spend_sigma * d.spend)
        if world.spend_tail is not None:
            spend *= pareto(d.tail, world.spend_tail)
        out.value[part] = bought * spend
        out.cost[part] = world.face[arm] * (bought & (d.redeem < redeem[i, arm]))
    return out


def pareto(uniform: Floats, index: float) -> Floats:
    """Pareto draws with tail index α > 1 and mean 1: (α − 1)/α · (1 − U)^(−1/α)."""
    return (index - 1) / index * (1 - uniform) ** (-1 / index)


def _curves(world: World, effects: Effects, t: Traits, s: Session) -> tuple[Floats, Floats, Floats]:
    """P, mean of log spend, and ρ: ``[n, K]`` each."""
    face = world.face
    base = (
        world.purchase_logit
        + 0.7 * t.engagement
        + effects.city_base[t.city]
        + 0.25 * s.weekend
        + effects.hour_base[s.hour.astype(np.int64)]
        - 0.2 * (s.device == 2)
    )
    # Engaged users buy anyway; thrifty ones and those who browse elastic categories respond to a coupon.
    log_sensitivity = (
        0.1
        + 0.45 * t.thrift
        + 0.5 * s.elastic
        - 0.35 * t.engagement
        + effects.city_sensitivity[t.city]
        - 0.15 * s.weekend
    )
    if world.drift is not None:
        base = base + world.drift.of_base(s.day)
        log_sensitivity = log_sensitivity + world.drift.of_sensitivity(s.day)
    sensitivity = np.exp(log_sensitivity) - 0.3
    log_spend = 2.8 + 0.45 * t.basket + 0.15 * t.engagement + effects.tier_spend[t.tier]
    growth = 0.1 + 0.2 * t.trade_up - 0.1 * t.thrift

    dose = face / (face + t.half_dose[:, None])
    buy = 1 / (1 + np.exp(-(base[:, None] + sensitivity[:, None] * dose)))
    log_mean = log_spend[:, None] + growth[:, None] * dose
    redeem = 1 / (1 + np.exp(-(0.6 + 0.8 * t.habit[:, None] + 0.08 * face)))
    return buy, log_mean, redeem
