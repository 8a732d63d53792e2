"""A campaign of any size, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_budget.campaign.checks import check_campaign
from lightning_budget.campaign.drift import Drift
from lightning_budget.campaign.lists import Ints, Lists
from lightning_budget.campaign.population import CITIES, TIERS, activity, join_day, traits_of
from lightning_budget.campaign.randomization import draw_treatment
from lightning_budget.campaign.responses import Draws, World, respond
from lightning_budget.campaign.sessions import CATEGORIES, DENSE, DEVICES, draw_session
from lightning_budget.schema import DataSchema, SparseFeature

if TYPE_CHECKING:
    from lightning_budget.table import RCTTable

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Exposures:
    """One partition as numpy columns of n rows; ids count from 0.

    Attributes:
        user, day: who was shown something, and when.
        dense: ``[n, 8]`` in the order of ``DENSE``.
        treatment: arm given; propensity: its probability.
        value, cost: observed.
        true_value, true_cost: ``[n, K]``, their means under every arm.
    """

    user: Ints
    day: Ints
    city: Ints
    tier: Ints
    device: Ints
    viewed: Lists
    dense: NDArray[np.float32]
    treatment: Ints
    propensity: NDArray[np.float32]
    value: NDArray[np.float32]
    cost: NDArray[np.float32]
    true_value: NDArray[np.float32]
    true_cost: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)


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
        purchase_logit: b of the package's formula; lower is rarer purchases, hence noisier outcomes.
        spend_sigma: standard deviation of the logarithm of a purchase's spend; 0 makes it a function of the features
            and traits.
        uniform: treatments uniformly at random; ``False`` is ``propensity="tiers"``.
        propensity: ``uniform``, ``tiers`` or ``targeted``, see :mod:`lightning_budget.campaign.randomization`;
            ``None``: as ``uniform`` says.
        propensity_floor: least probability of an arm under ``targeted``.
        repeat: Zipf exponent of the users' activity, see :func:`lightning_budget.campaign.population.top_share`;
            0: all are equally active.
        zero_inflation: z, share of users' exposures that cannot end in a purchase whatever the arm, see
            :func:`lightning_budget.campaign.population.lapse_of`.
        spend_tail: tail index α of spend; ``None``: log-normal alone.
        drift_base, drift_sensitivity: change of the purchase logit and of the log sensitivity from the first day to
            the last; weekly_base, weekly_sensitivity: amplitudes of their weeks; see
            :class:`lightning_budget.campaign.drift.Drift`.
        seed: names the population and all of its draws.
        partition_rows: rows generated at once; another number is another draw.

    Raises:
        InputError: for arguments out of range.
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
    propensity: str | None = None
    propensity_floor: float = 0.05
    repeat: float = 1.0
    zero_inflation: float = 0.0
    spend_tail: float | None = None
    drift_base: float = 0.0
    drift_sensitivity: float = 0.0
    weekly_base: float = 0.0
    weekly_sensitivity: float = 0.0

    def __post_init__(self) -> None:
        check_campaign(self)

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

    @property
    def days(self) -> int:
        """Of all splits together."""
        return self.train_days + self.val_days + self.test_days

    def rows(self, split: str) -> int:
        return {"train": self.train_rows, "val": self.val_rows, "test": self.test_rows}[split]

    def partitions(self, split: str) -> int:
        """Number of partitions of a split."""
        return -(-self.rows(split) // self.partition_rows)

    def partition(self, split: str, index: int) -> RCTTable:
        """One partition of a split as a table, oracle included; see :meth:`exposures`."""
        # Processes that write partitions need no torch.
        from lightning_budget.campaign.table import table_of

        return table_of(self.exposures(split, index))

    def exposures(self, split: str, index: int) -> Exposures:
        """Generate one partition of a split: a function of the campaign's arguments, ``split`` and ``index`` alone.

        Raises:
            IndexError: if the split has no such partition.
        """
        if not 0 <= index < self.partitions(split):
            raise IndexError(f"split {split!r} has partitions 0 … {self.partitions(split) - 1}, not {index}")
        n = min(self.partition_rows, self.rows(split) - index * self.partition_rows)
        place = [self.seed, SPLITS.index(split), index]
        rng, more = np.random.default_rng(place), np.random.default_rng([*place, 1])
        user, day = self._exposed(rng, split, n)
        traits = traits_of(user, self.users, self.seed, self.zero_inflation)
        session, viewed, dense = draw_session(rng, self.seed, user, day, traits)
        world = self._world()
        kind = self.propensity or ("uniform" if self.uniform else "tiers")
        treatment, propensity = draw_treatment(rng, kind, traits.tier, dense, world.face, self.propensity_floor)
        found = respond(world, traits, session, treatment, Draws.draw(rng, more, n, world))
        return Exposures(
            user=user,
            day=day,
            city=traits.city,
            tier=traits.tier,
            device=session.device,
            viewed=viewed,
            dense=dense,
            treatment=treatment,
            propensity=propensity.astype(np.float32),
            value=found.value,
            cost=found.cost,
            true_value=found.true_value,
            true_cost=found.true_cost,
        )

    def _exposed(self, rng: np.random.Generator, split: str, n: int) -> tuple[Ints, Ints]:
        """Users and days of n exposures; nobody is exposed before joining."""
        lengths = (self.train_days, self.val_days, self.test_days)
        first = sum(lengths[: SPLITS.index(split)])
        last = first + lengths[SPLITS.index(split)]
        user, day = np.empty(0, np.int64), np.empty(0, np.int64)
        while len(user) < n:
            drawn = (activity(rng.random(n), self.repeat) * self.users).astype(np.int64)
            u, d = np.minimum(drawn, self.users - 1), rng.integers(first, last, n)
            joined = join_day(u, self.seed, self.newcomers, self.days) <= d
            user, day = np.concatenate([user, u[joined]]), np.concatenate([day, d[joined]])
        return user[:n], day[:n]

    def _world(self) -> World:
        moves = {
            "base": self.drift_base,
            "sensitivity": self.drift_sensitivity,
            "weekly_base": self.weekly_base,
            "weekly_sensitivity": self.weekly_sensitivity,
        }
        return World(
            seed=self.seed,
            face=np.asarray(self.face_values),
            purchase_logit=self.purchase_logit,
            spend_sigma=self.spend_sigma,
            drift=Drift(self.days, **moves) if any(moves.values()) else None,
            zero_inflation=self.zero_inflation > 0,
            spend_tail=self.spend_tail,
        )
