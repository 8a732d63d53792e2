"""What happens on the day of an exposure: what the model sees, except for the noise in the measurements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_budget.campaign.lists import Floats, Ints, Lists
from lightning_budget.campaign.population import Traits
from lightning_budget.campaign.rows import Rows
from lightning_budget.hashing import hash_ids, hashed_normal

DENSE = ("recency", "log_frequency", "basket", "tenure", "app_minutes", "discount_share", "weekend", "hour")
DEVICES, CATEGORIES = 4, 120
MAX_VIEWED = 8


@dataclass(frozen=True)
class Session(Rows):
    """One exposure. ``[n]`` each.

    Attributes:
        device: id; weekend: 0 or 1; hour: 0 … 23.
        elastic: mean elasticity of the categories viewed.
    """

    day: Ints
    device: Ints
    weekend: Floats
    hour: Floats
    elastic: Floats


def draw_session(
    rng: np.random.Generator, seed: int, user: Ints, day: Ints, traits: Traits
) -> tuple[Session, Lists, NDArray[np.float32]]:
    """Sessions, categories viewed, and the ``[n, 8]`` features in the order of ``DENSE``."""
    n = len(user)
    device = rng.choice(DEVICES, n, p=[0.5, 0.3, 0.15, 0.05])
    weekend = (day % 7 >= 5).astype(np.float64)
    hour = rng.integers(0, 24, n).astype(np.float64)
    viewed = _viewed(rng, seed, user, traits.thrift)
    elastic = viewed.mean_of(hashed_normal(np.arange(CATEGORIES), seed, "category_elasticity"))
    session = Session(day, device, weekend, hour, elastic)
    return session, viewed, _features(rng, session, traits)


def _features(rng: np.random.Generator, session: Session, traits: Traits) -> NDArray[np.float32]:
    n, engagement, thrift = len(session.day), traits.engagement, traits.thrift
    dense = np.empty((n, len(DENSE)), np.float32)
    dense[:, 0] = rng.exponential(6.0 * np.exp(-0.5 * engagement))
    dense[:, 1] = np.log1p(rng.poisson(4.0 * np.exp(0.6 * engagement)))
    dense[:, 2] = np.exp(3.0 + 0.5 * traits.basket + 0.4 * rng.standard_normal(n))
    dense[:, 3] = traits.tenure + session.day
    dense[:, 4] = rng.gamma(2.0, 3.0 * np.exp(0.3 * engagement + 0.2 * thrift))
    dense[:, 5] = 1 / (1 + np.exp(-(0.8 * thrift - 0.5 + 0.9 * rng.standard_normal(n))))
    dense[:, 6] = session.weekend
    dense[:, 7] = session.hour
    return dense


def _viewed(rng: np.random.Generator, seed: int, user: Ints, thrift: Floats) -> Lists:
    """Categories seen in the session: mostly the user's favourites, which lean towards bargains for the thrifty."""
    lengths = np.minimum(rng.poisson(2.5, len(user)), MAX_VIEWED)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    owner = np.repeat(np.arange(len(user)), lengths)
    slot = rng.integers(0, 3, len(owner))
    favourite = hash_ids(user[owner] * 3 + slot, seed, "favourite") % np.uint64(CATEGORIES)
    anything = rng.integers(0, CATEGORIES, len(owner)).astype(np.uint64)
    values = np.where(rng.random(len(owner)) < 0.7, favourite, anything).astype(np.int64)
    # The thrifty pass over half of the first ten (full-price) categories.
    swap = (values < 10) & (rng.random(len(owner)) < 0.5) & (thrift[owner] > 0)
    return Lists(np.where(swap, values + 10, values), offsets)
