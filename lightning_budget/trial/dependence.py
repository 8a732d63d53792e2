"""Do the levels of an id feature tell the arm? A chi-square of arms × levels that holds at any number of levels.

From :class:`~lightning_budget.trial.levels.LevelSums`, with n_l rows at level l, κ(u, u') summed over pairs of
different users, and the mismatch of the whole trial taken out::

    S = Σ_l (1 / n_l) Σ_{u ≠ u' at l} κ(u, u') − (1 / N) Σ_{u ≠ u'} κ(u, u')      E S = 0 where levels tell nothing

With constant propensities and one row a user S is Pearson's chi-square minus what chance adds to it. S over twice the
rows compared, n_l − 1 at a level of n_l users, estimates the mutual information of level and arm to second order: 0 on
average where there is none, however rare the levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_budget.trial.distributions import bonferroni, chi_square_p
from lightning_budget.trial.levels import LevelSums, level_sums
from lightning_budget.trial.logged import Logged

MIN_EXPECTED = 50.0
MIN_USERS = 20


@dataclass(frozen=True)
class Dependence:
    """``information`` in nats, of ``arm`` the most telling; of a list feature that of ``level``, the most telling."""

    information: float
    p_value: float
    arm: int
    level: int | None = None


def totals(trial: Logged) -> LevelSums:
    """All rows as one level."""
    return level_sums(trial, torch.zeros(len(trial), dtype=torch.int64), 1)


def dependence(trial: Logged, sums: LevelSums, total: LevelSums) -> Dependence:
    """Of a feature of one level a row; all levels together, rare ones included.

    The null distribution is a scaled chi-square with the mean and variance of S (Satterthwaite 1946).
    """
    n, share = len(trial), trial.mean_share()
    shared = sums.clusters > 1
    per_row = torch.where(shared, 1 / sums.rows.clamp(min=1).double(), torch.zeros_like(sums.own))
    between = sums.excess.square() @ share - sums.own
    s = float((per_row * between).sum() - (total.excess.square() @ share - total.own)[0] / n)
    half_variance = float(((per_row.square() - 2 * per_row / n) * sums.square).sum() + total.square[0] / n**2)
    chance = float((per_row * sums.own).sum() - total.own[0] / n)
    off = sums.excess - sums.rows[:, None] / n * total.excess
    arm = int((per_row @ (off.square() * share / (1 - share).clamp(min=1e-9))).argmax())
    if half_variance <= 1e-9 or int(shared.sum()) < 1:
        return Dependence(0.0, 1.0, arm)
    # S + mean is scale · χ²_df with df = mean² / half_variance; a mean from rare levels alone can be too low for it.
    mean = max(chance, half_variance**0.5)
    df, scale = mean**2 / half_variance, half_variance / mean
    p = float(chi_square_p(torch.tensor((s + mean) / scale), df))
    # Rows that have another user to be compared with: all but one of a level, where every row is a user.
    compared = float((sums.rows * (1 - 1 / sums.clusters.clamp(min=1).double())).sum())
    return Dependence(max(s, 0.0) / (2 * compared), p, arm)


def list_dependence(trial: Logged, sums: LevelSums, total: LevelSums) -> Dependence:
    """Of a feature of many levels a row: each level against all rows, Bonferroni over the levels that are frequent."""
    n, k, share = len(trial), len(trial.arms), trial.mean_share()
    index = ((sums.rows * float(share.min()) >= MIN_EXPECTED) & (sums.clusters >= MIN_USERS)).nonzero().flatten()
    if not len(index):
        return Dependence(0.0, 1.0, 0)
    rows = sums.rows[index].double()
    part = (rows / n).clamp(max=0.99)
    off = sums.excess[index] - part[:, None] * total.excess
    arms = off.square() * share / rows[:, None]
    chance = (sums.own[index] * (1 - 2 * part) + part.square() * total.own) / rows
    chance = torch.maximum(chance, (1 - part) * 1e-9)
    statistic = arms.sum(1) / chance * (k - 1)
    worst = int(statistic.argmax())
    information = float((arms[worst].sum() - chance[worst]).clamp(min=0) / (2 * n * (1 - part[worst])))
    p = float(bonferroni(chi_square_p(statistic[worst], float(k - 1)), len(index)))
    return Dependence(information, p, int(arms[worst].argmax()), int(index[worst]))
