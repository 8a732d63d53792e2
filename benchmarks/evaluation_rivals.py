"""The loop over multipliers that a cost curve takes without its one sort, in numpy, in three forms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
BLOCK = 8_192
"""Rows of the tuned loop at once: their scores stay in the cache."""


def loop_by_arm(
    value_hat: Array,
    cost_hat: Array,
    treatment: NDArray[np.integer],
    value: Array,
    cost: Array,
    propensity: Array,
    multipliers: Array,
) -> Array:
    """Spend and value of the policy at each multiplier, self-normalised; the ten lines that everybody writes.

    Args:
        value_hat, cost_hat: ``[K, N]``; multipliers: ``[M]``, of their type: in float64 all scores would become so.

    Returns:
        ``[M, 2]`` float64.
    """
    points = []
    for multiplier in multipliers:
        matched = (value_hat - multiplier * cost_hat).argmax(0) == treatment
        weight = matched / propensity
        total = weight.sum()
        points.append(((weight * cost).sum() / total, (weight * value).sum() / total))
    return np.array(points, np.float64)


def loop_by_row(
    value_hat: Array,
    cost_hat: Array,
    treatment: NDArray[np.integer],
    value: Array,
    cost: Array,
    propensity: Array,
    multipliers: Array,
) -> Array:
    """The same with predictions ``[N, K]``, of which numpy finds the maxima faster."""
    points = []
    for multiplier in multipliers:
        matched = (value_hat - multiplier * cost_hat).argmax(1) == treatment
        weight = matched / propensity
        total = weight.sum()
        points.append(((weight * cost).sum() / total, (weight * value).sum() / total))
    return np.array(points, np.float64)


def loop_tuned(
    value_hat: Array,
    cost_hat: Array,
    treatment: NDArray[np.integer],
    value: Array,
    cost: Array,
    propensity: Array,
    multipliers: Array,
) -> Array:
    """The fastest loop that we found: a row is matched where no arm scores above its own, block by block.

    Ties count for every arm, so it is right only where there are none. Predictions ``[K, N]``.
    """
    sums = np.zeros((len(multipliers), 3))
    inverse = 1 / propensity
    columns = np.stack([inverse, inverse * cost, inverse * value])
    scores = np.empty((len(value_hat), BLOCK), value_hat.dtype)
    for start in range(0, len(treatment), BLOCK):
        block = slice(start, start + BLOCK)
        v, c, given, rows = value_hat[:, block], cost_hat[:, block], treatment[block], columns[:, block]
        own_value, own_cost = (np.take_along_axis(x, given[None], 0)[0] for x in (v, c))
        out = scores[:, : len(given)]
        for m, multiplier in enumerate(multipliers):
            np.multiply(c, multiplier, out=out)
            np.subtract(v, out, out=out)
            matched = own_value - multiplier * own_cost >= out.max(0)
            sums[m] += rows @ matched.astype(rows.dtype)
    return sums[:, 1:] / sums[:, :1]
