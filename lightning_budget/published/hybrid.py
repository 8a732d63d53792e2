"""CRITEO-UPLIFT v2.1 (Hybrid): few randomized rows and many that a marketing policy chose, as Bi-DFCL builds it.

Of all rows, 5 % train a two-stage model; a policy by its predictions is simulated on another 50 %, of which the rows
stay whose treatment is the policy's (``obs``: an observational data set); of the remaining 45 %, randomized, 5 % train,
10 % validate and 30 % test.

This is a reconstruction. Published are the shares, that the model is a two-stage one with cross-entropy, and the sizes:
3,498,294 observational rows, 698,980 randomized for training, 1,397,959 and 4,193,878 for validation and test. Ours
are: which rows (DFCL's shuffle, so that validation and test are those of its split), the model (logistic regressions of
visit and conversion in each arm), and how many the policy treats (half of the users, those of the highest predicted
conversions per visit: with 85 % treated, half the rows then match, as they do in the published sizes).

Source: Zhang et al. 2025, arXiv 2510.19517, appendix B.1.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from lightning_budget.errors import InputError
from lightning_budget.published.splits import bounds, shuffled_position

HYBRID = ("train", "val", "test", "obs", "model", "unmatched")
"""Roles of rows: three randomized splits, the observational rows, those that trained the policy's model, and those
whose treatment was not the policy's."""
ENDS = (0.5, 0.55, 0.6, 0.7)
"""Cumulative shares of the policy's pool, the rows of its model, and those that train and validate."""
TREATED_SHARE = 0.5
RIDGE = 1.0
NEWTON_STEPS = 25
MIN_COST = 1e-6

Floats = NDArray[np.float64]


def hybrid_pools(rows: int) -> NDArray[np.int8]:
    """``[N]`` codes of :data:`HYBRID` before the policy is known: all of its pool is ``unmatched``."""
    order = np.array([HYBRID.index(role) for role in ("unmatched", "model", "train", "val", "test")], np.int8)
    return order[np.searchsorted(bounds(rows, *ENDS), shuffled_position(rows), side="right")]


def hybrid_roles(path: Path, features: Sequence[str]) -> NDArray[np.int8]:
    """``[N]`` codes of :data:`HYBRID` for the rows of a Parquet file of Criteo's columns.

    Reads the file twice, a row group at once: once for the rows of the model, once to score the pool.

    Raises:
        InputError: for so few rows that the model sees one arm alone.
    """
    names = [*features, "treatment", "conversion", "visit"]
    with pyarrow.parquet.ParquetFile(path) as file:
        role = hybrid_pools(file.metadata.num_rows)
        pool, model = HYBRID.index("unmatched"), HYBRID.index("model")
        x, y = _rows(file, names, role == model)
        if not 0 < y[:, 0].sum() < len(y):
            raise InputError(
                f"{len(role):,} rows, of which {len(x)} train the policy's model",
                "both arms among these",
                "bring more rows",
            )
        policy = fit_policy(x, y)
        score = np.empty(int((role == pool).sum()))
        treated = np.empty(len(score), bool)
        done = 0
        for x, y in _groups(file, names, role == pool):
            score[done : done + len(x)] = policy(x)
            treated[done : done + len(x)] = y[:, 0] == 1
            done += len(x)
    matched = policy_treats(score) == treated
    role[np.flatnonzero(role == pool)[matched]] = HYBRID.index("obs")
    return role


def policy_treats(score: Floats, share: float = TREATED_SHARE) -> NDArray[np.bool_]:
    """``[N]``: whether a user is among the given share of the highest scores; of equal scores, the first."""
    treats = np.zeros(len(score), bool)
    treats[np.argsort(-score, kind="stable")[: round(len(score) * share)]] = True
    return treats


def fit_policy(x: Floats, y: Floats) -> Policy:
    """Fit the two-stage model.

    Args:
        x: ``[N, D]`` features.
        y: ``[N, 3]`` treatment, conversion and visit, 0 or 1.
    """
    centre, scale = x.mean(0), x.std(0)
    scale[scale < 1e-8] = 1.0
    z = (x - centre) / scale
    treated = y[:, 0] == 1
    weights = {(a, k): logistic(z[treated == bool(a)], y[treated == bool(a), k]) for a in (0, 1) for k in (1, 2)}
    return Policy(centre, scale, weights)


class Policy:
    """Scores users by predicted added conversions per added visit."""

    def __init__(self, centre: Floats, scale: Floats, weights: dict[tuple[int, int], Floats]) -> None:
        self.centre, self.scale, self.weights = centre, scale, weights

    def __call__(self, x: Floats) -> Floats:
        """``[N]`` scores of ``[N, D]`` features."""
        z = _with_one((x - self.centre) / self.scale)
        value, cost = (_sigmoid(z @ self.weights[1, k]) - _sigmoid(z @ self.weights[0, k]) for k in (1, 2))
        return value / np.where(np.abs(cost) < MIN_COST, MIN_COST, cost)


def logistic(z: Floats, y: Floats, ridge: float = RIDGE, steps: int = NEWTON_STEPS) -> Floats:
    """``[D + 1]`` weights, the constant last, of least cross-entropy plus ``ridge`` / 2 times their squares.

    Newton's method; the constant is not penalised, but for what keeps it finite where all outcomes are equal.

    Args:
        z: ``[N, D]``.
        y: ``[N]``, 0 or 1.
    """
    z = _with_one(z)
    penalty = np.full(z.shape[1], ridge)
    penalty[-1] = 1e-3
    w = np.zeros(z.shape[1])
    for _ in range(steps):
        p = _sigmoid(z @ w)
        gradient = z.T @ (p - y) + penalty * w
        hessian = (z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        # A step longer than this would overshoot where outcomes are rare.
        w -= step * min(1.0, 5.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-8:
            break
    return w


def _with_one(z: Floats) -> Floats:
    return np.concatenate([z, np.ones((len(z), 1))], 1)


def _sigmoid(a: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(a, -30, 30)))


def _groups(
    file: pyarrow.parquet.ParquetFile, names: list[str], mask: NDArray[np.bool_]
) -> Iterator[tuple[Floats, Floats]]:
    """Features ``[n, D]`` and treatment, conversion, visit ``[n, 3]`` of a mask's rows, a row group at once."""
    first = 0
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, columns=names).select(names)
        kept = mask[first : first + len(table)]
        first += len(table)
        values = np.stack([table[name].to_numpy()[kept] for name in names], 1).astype(np.float64)
        yield values[:, :-3], values[:, -3:]


def _rows(file: pyarrow.parquet.ParquetFile, names: list[str], mask: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    parts = list(_groups(file, names, mask))
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
