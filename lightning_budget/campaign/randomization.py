"""Who is given which arm, with probabilities that are known for every row.

``uniform``
    1/K for every arm.
``tiers``
    control 0.15 + 0.1 · tier (0 … 4), the coupons share the rest: the loyal get control more often.
``targeted``
    a campaign as a marketing team would run it: the larger a coupon, the likelier for those who look like bargain
    hunters. With s_i from the features as they stand in the row, discount share and log frequency::

        s_i  = tanh(3 (discount_share_i − 0.4) + 0.6 (1.6 − log_frequency_i))
        p_ij = p_min + (1 − K p_min) softmax_j(1.5 s_i (2 a_j / max a − 1))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_budget.campaign.lists import Floats, Ints
from lightning_budget.campaign.rows import chunks
from lightning_budget.campaign.sessions import DENSE

PROPENSITIES = ("uniform", "tiers", "targeted")
STRENGTH = 1.5


def draw_treatment(
    rng: np.random.Generator,
    kind: str,
    tier: Ints,
    dense: NDArray[np.float32],
    face: Floats,
    floor: float,
) -> tuple[Ints, Floats]:
    """``[n]`` arms and their probabilities.

    Args:
        kind: one of ``PROPENSITIES``.
        dense: ``[n, 8]`` features.
        face: ``[K]`` face values.
        floor: p_min of ``targeted``.
    """
    if kind == "targeted":
        return _draw_targeted(rng, dense, face, floor)
    n, k = len(tier), len(face)
    control = np.full(n, 1 / k) if kind == "uniform" else 0.15 + 0.1 * tier
    given = rng.random(n) >= control
    treatment = np.where(given, rng.integers(1, k, n), 0)
    return treatment, np.where(given, (1 - control) / (k - 1), control)


def targeted(dense: NDArray[np.float32], face: Floats, floor: float) -> Floats:
    """``[n, K]`` probabilities of ``targeted``."""
    share, frequency = (dense[:, DENSE.index(name)].astype(np.float64) for name in ("discount_share", "log_frequency"))
    score = np.tanh(3 * (share - 0.4) + 0.6 * (1.6 - frequency))
    weight = np.exp(STRENGTH * score[:, None] * (2 * face / face.max() - 1))
    return floor + (1 - len(face) * floor) * weight / weight.sum(1, keepdims=True)


def _draw_targeted(
    rng: np.random.Generator, dense: NDArray[np.float32], face: Floats, floor: float
) -> tuple[Ints, Floats]:
    n = len(dense)
    draw, treatment, propensity = rng.random(n), np.empty(n, np.int64), np.empty(n)
    for part in chunks(n):
        p = targeted(dense[part], face, floor)
        # The last bound is 1 whatever the sum rounds to.
        arm = (draw[part, None] >= np.cumsum(p, 1)[:, :-1]).sum(1)
        treatment[part], propensity[part] = arm, p[np.arange(len(p)), arm]
    return treatment, propensity
