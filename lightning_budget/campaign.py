"""The embedded campaign: a randomized coupon trial with repeat users and known potential outcomes.

Every partition of rows is a function of ``(seed, split, partition)`` and every user trait of ``(seed, user)``, so any
part of a campaign of any size is generated alone, in constant memory, with the same result.

For the exposure i of user u on a day, to a coupon of face value a_j (a_0 = 0: control)::

    dose         h_ij = a_j / (a_j + κ_u)                                  saturating, half effect at face value κ_u
    purchase     P_ij = σ(b + base_i + s_i h_ij)                           b = purchase_logit
    spend | buy       ~ LogNormal(m_i + g_i h_ij, σ_spend)                 value = spend (0 without purchase)
    redeem | buy      ~ Bernoulli(ρ_ij)                                    cost  = a_j on redemption
    oracle       v_ij = P_ij exp(m_i + g_i h_ij + σ_spend² / 2),  c_ij = a_j P_ij ρ_ij

How much there is to learn from a row hangs on b and σ_spend (``spend_sigma``): the rarer a purchase and the wider the
spend, the noisier the outcomes. By default about 35 % of exposures end in a purchase, 27 % under control.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_budget.errors import InputError
from lightning_budget.hashing import hash_ids, hashed_normal, hashed_uniform
from lightning_budget.schema import DataSchema, SparseFeature
from lightning_budget.table import IdList, RCTTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SPLITS = ("train", "val", "test")
DENSE = ("recency", "log_frequency", "basket", "tenure", "app_minutes", "discount_share", "weekend", "hour")
CITIES, TIERS, DEVICES, CATEGORIES = 60, 5, 4, 120
MAX_VIEWED = 8
# Beyond these a trial of this size holds no purchase, or one spend outweighs all others.
MAX_PURCHASE_LOGIT, MAX_SPEND_SIGMA = 8.0, 2.0


@dataclass(frozen=True)
class Campaign:
    """A seeded coupon trial.

    Args:
        train_rows, val_rows, test_rows: exposures in each split.
        users: number of user ids; activity over them is heavy-tailed (shifted Zipf).
        face_values: currency paid on redemption of each arm's coupon, control (0) first.
        train_days, val_days, test_days: the splits follow each other in time; users who join after the training days
            are cold in the later splits.
        newcomers: share of users who join on a uniformly random day instead of before the first.
        purchase_logit: b of the formula above; lower is rarer purchases, hence noisier outcomes.
        spend_sigma: standard deviation of the logarithm of a purchase's spend; 0 makes it a function of the features
            and traits.
        uniform: treatments uniformly at random; otherwise loyal tiers get control more often (propensities stay known).
        seed: names the population and all of its draws.
        partition_rows: rows generated at once.
    """

    train_rows: int = 240_000
    val_rows: int = 240_000
    test_rows: int = 100_000
    users: int = 20_000
    face_values: tuple[float, ...] = (0.0, 2.0, 4.0, 7.0, 11.0)
    train_days: int = 10
    val_days: int = 2
    test_days: int = 2
    newcomers: float = 0.3
    purchase_logit: float = -1.2
    spend_sigma: float = 0.6
    uniform: bool = True
    seed: int = 0
    partition_rows: int = 1 << 18

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if isinstance(field.default, (bool, tuple)):
                continue
            wanted, name = (Integral, "a whole number") if isinstance(field.default, int) else (Real, "a number")
            if not isinstance(given, wanted) or isinstance(given, bool):
                raise InputError(f"{field.name}={given!r}", name, f"{field.default} is the default")
        for name in (
            "train_rows",
            "val_rows",
            "test_rows",
            "users",
            "train_days",
            "val_days",
            "test_days",
            "partition_rows",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}", "at least 1", f"raise {name}")
        control, *coupons = self.face_values or (None,)
        if control != 0 or not coupons or not all(isinstance(a, Real) and 0 < a < math.inf for a in coupons):
            raise InputError(
                f"face_values={list(self.face_values)}",
                "0 for control first, then values above 0",
                "put control's 0 in front",
            )
        if len({f"{a:g}" for a in coupons}) < len(coupons):
            raise InputError(f"face_values={list(self.face_values)}", "each value once", "remove what is repeated")
        if not 0 <= self.newcomers < 1:
            raise InputError(f"newcomers={self.newcomers}", "a share in [0, 1)", "lower newcomers")
        if not abs(self.purchase_logit) <= MAX_PURCHASE_LOGIT:
            raise InputError(
                f"purchase_logit={self.purchase_logit}",
                f"-{MAX_PURCHASE_LOGIT:g} to {MAX_PURCHASE_LOGIT:g}",
                "-1.2 is the default, -2.2 halves the purchases",
            )
        if not 0 <= self.spend_sigma <= MAX_SPEND_SIGMA:
            raise InputError(f"spend_sigma={self.spend_sigma}", f"0 to {MAX_SPEND_SIGMA:g}", "0.6 is the default")

    @property
    def schema(self) -> DataSchema:
        """Names and kinds of the columns; the cost of control is known to be 0."""
        return DataSchema(
            treatments=tuple("control" if a == 0 else f"coupon_{a:g}" for a in self.face_values),
            dense=DENSE,
            sparse=(
                SparseFeature("user_id", self.users + 1),
                SparseFeature("city", CITIES + 1),
                SparseFeature("tier", TIERS + 1),
                SparseFeature("device", DEVICES + 1),
                SparseFeature("viewed", CATEGORIES + 1, is_list=True),
            ),
            known_cost=tuple(0.0 if a == 0 else None for a in self.face_values),
            value_unit="spend",
            cost_unit="currency",
        )

    def rows(self, split: str) -> int:
        return {"train": self.train_rows, "val": self.val_rows, "test": self.test_rows}[split]

    def partitions(self, split: str) -> int:
        """Number of partitions of a split."""
        return -(-self.rows(split) // self.partition_rows)

    def partition(self, split: str, index: int) -> RCTTable:
        """Generate one partition of a split, oracle included.

        Raises:
            IndexError: if the split has no such partition.
        """
        if not 0 <= index < self.partitions(split):
            raise IndexError(f"split {split!r} has partitions 0 … {self.partitions(split) - 1}, not {index}")
        n = min(self.partition_rows, self.rows(split) - index * self.partition_rows)
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        user, day = self._exposures(rng, split, n)
        return self._respond(rng, user, day)

    def _activity(self, quantile: Floats) -> Floats:
        """Inverse distribution function of the shifted Zipf law over user ids scaled to [0, 1)."""
        shift = 0.003
        return shift * ((1 + shift) / shift) ** quantile - shift

    def _exposures(self, rng: np.random.Generator, split: str, n: int) -> tuple[Ints, Ints]:
        lengths = (self.train_days, self.val_days, self.test_days)
        first = sum(lengths[: SPLITS.index(split)])
        last = first + lengths[SPLITS.index(split)]
        user, day = np.empty(0, np.int64), np.empty(0, np.int64)
        while len(user) < n:
            u = np.minimum((self._activity(rng.random(n)) * self.users).astype(np.int64), self.users - 1)
            d = rng.integers(first, last, n)
            joined = self._join_day(u) <= d
            user, day = np.concatenate([user, u[joined]]), np.concatenate([day, d[joined]])
        return user[:n], day[:n]

    def _join_day(self, user: Ints) -> Ints:
        total = self.train_days + self.val_days + self.test_days
        draw = hashed_uniform(user, self.seed, "join")
        # User 0 is always there: a small population may consist of newcomers alone.
        newcomer = (draw < self.newcomers) & (user > 0)
        return np.where(newcomer, draw / max(self.newcomers, 1e-12) * total, 0.0).astype(np.int64)

    def _respond(self, rng: np.random.Generator, user: Ints, day: Ints) -> RCTTable:
        n, seed = len(user), self.seed
        face = np.asarray(self.face_values)

        def trait(name: str) -> Floats:
            return hashed_normal(user, seed, name)

        # What the user is: persistent, and only partly visible in the features.
        rank = (user + 0.5) / self.users
        engagement = 0.8 * trait("engagement") + 0.4 * (0.5 - rank)
        thrift, basket = trait("thrift"), trait("basket")
        half_dose = 4.0 * np.exp(0.4 * trait("half_dose"))
        habit, trade_up = trait("redemption"), trait("trade_up")
        city = (hashed_uniform(user, seed, "city") ** 2 * CITIES).astype(np.int64)
        tier = np.clip(
            np.floor(2.0 + 1.2 * (0.7 * engagement + 0.3 * basket + 0.6 * trait("tier"))), 0, TIERS - 1
        ).astype(np.int64)

        # What happens on the day: seen by the model, except for the noise in the measurements.
        device = rng.choice(DEVICES, n, p=[0.5, 0.3, 0.15, 0.05])
        weekend = (day % 7 >= 5).astype(np.float64)
        hour = rng.integers(0, 24, n).astype(np.float64)
        viewed = self._viewed(rng, user, thrift)
        elastic = viewed.mean_of(hashed_normal(np.arange(CATEGORIES), seed, "category_elasticity"))
        dense = np.stack(
            [
                rng.exponential(6.0 * np.exp(-0.5 * engagement)),
                np.log1p(rng.poisson(4.0 * np.exp(0.6 * engagement))),
                np.exp(3.0 + 0.5 * basket + 0.4 * rng.standard_normal(n)),
                30.0 * np.exp(0.7 * trait("tenure")) + day,
                rng.gamma(2.0, 3.0 * np.exp(0.3 * engagement + 0.2 * thrift)),
                1 / (1 + np.exp(-(0.8 * thrift - 0.5 + 0.9 * rng.standard_normal(n)))),
                weekend,
                hour,
            ],
            axis=1,
        )

        base = (
            self.purchase_logit
            + 0.7 * engagement
            + 0.3 * hashed_normal(city, seed, "city_base")
            + 0.25 * weekend
            + 0.3 * np.sin(hour / 24 * 2 * np.pi)
            - 0.2 * (device == 2)
        )
        # Engaged users buy anyway; thrifty ones and those who browse elastic categories respond to a coupon.
        log_sensitivity = (
            0.1
            + 0.45 * thrift
            + 0.5 * elastic
            - 0.35 * engagement
            + 0.2 * hashed_normal(city, seed, "city_sensitivity")
            - 0.15 * weekend
        )
        sensitivity = np.exp(log_sensitivity) - 0.3
        log_spend = 2.8 + 0.45 * basket + 0.15 * engagement + 0.15 * hashed_normal(tier, seed, "tier_spend")
        growth = 0.1 + 0.2 * trade_up - 0.1 * thrift

        dose = face / (face + half_dose[:, None])
        buy = 1 / (1 + np.exp(-(base[:, None] + sensitivity[:, None] * dose)))
        log_mean = log_spend[:, None] + growth[:, None] * dose
        redeem = 1 / (1 + np.exp(-(0.6 + 0.8 * habit[:, None] + 0.08 * face)))
        true_value = buy * np.exp(log_mean + self.spend_sigma**2 / 2)
        true_cost = face * buy * redeem

        treatment, propensity = self._randomize(rng, tier)
        i = np.arange(n)
        bought = rng.random(n) < buy[i, treatment]
        value = bought * np.exp(log_mean[i, treatment] + self.spend_sigma * rng.standard_normal(n))
        cost = face[treatment] * (bought & (rng.random(n) < redeem[i, treatment]))

        def floats(x: Floats) -> torch.Tensor:
            return torch.from_numpy(x.astype(np.float32))

        return RCTTable(
            user=torch.from_numpy(user),
            dense=floats(dense),
            ids={
                # Row 0 of every table is for unknown ids.
                "user_id": torch.from_numpy(user + 1),
                "city": torch.from_numpy(city + 1),
                "tier": torch.from_numpy(tier + 1),
                "device": torch.from_numpy(device.astype(np.int64) + 1),
                "viewed": IdList(torch.from_numpy(viewed.values + 1), torch.from_numpy(viewed.offsets)),
            },
            treatment=torch.from_numpy(treatment),
            value=floats(value),
            cost=floats(cost),
            propensity=floats(propensity),
            true_value=floats(true_value),
            true_cost=floats(true_cost),
        )

    def _viewed(self, rng: np.random.Generator, user: Ints, thrift: Floats) -> _Lists:
        """Categories seen in the session: mostly the user's favourites, which lean towards bargains for the thrifty."""
        lengths = np.minimum(rng.poisson(2.5, len(user)), MAX_VIEWED)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        owner = np.repeat(np.arange(len(user)), lengths)
        slot = rng.integers(0, 3, len(owner))
        favourite = hash_ids(user[owner] * 3 + slot, self.seed, "favourite") % np.uint64(CATEGORIES)
        anything = rng.integers(0, CATEGORIES, len(owner)).astype(np.uint64)
        values = np.where(rng.random(len(owner)) < 0.7, favourite, anything).astype(np.int64)
        # The thrifty pass over half of the first ten (full-price) categories.
        swap = (values < 10) & (rng.random(len(owner)) < 0.5) & (thrift[owner] > 0)
        return _Lists(np.where(swap, values + 10, values), offsets)

    def _randomize(self, rng: np.random.Generator, tier: Ints) -> tuple[Ints, Floats]:
        k = len(self.face_values)
        control = np.full(len(tier), 1 / k) if self.uniform else 0.15 + 0.1 * tier
        given = rng.random(len(tier)) >= control
        treatment = np.where(given, rng.integers(1, k, len(tier)), 0)
        return treatment, np.where(given, (1 - control) / (k - 1), control)


@dataclass(frozen=True)
class _Lists:
    values: Ints
    offsets: Ints

    def mean_of(self, effect: Floats) -> Floats:
        """Mean effect of each user's list, 0 for an empty one."""
        total = np.concatenate([[0.0], np.cumsum(effect[self.values])])
        return (total[self.offsets[1:]] - total[self.offsets[:-1]]) / np.maximum(np.diff(self.offsets), 1)
