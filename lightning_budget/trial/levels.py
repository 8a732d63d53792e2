"""How often each arm was given at each level of an id feature, beside how often it should have been.

Row i of level l adds g_ij = 1[t_i = j] / p_i − 1 to each arm j: mean 0 given everything known before the assignment,
whatever the assignment rule. Rows of one user may be dependent, those of different users are not, so for the parts
g_ul = Σ g_i over the rows of user u at level l::

    κ(u, u') = Σ_j q_j g_ulj g_u'lj,      E κ(u, u') = 0 for u ≠ u',      q_j: probability of arm j, averaged

Σ κ over pairs of different users of a level is its chi-square (times its rows) minus what chance adds; it is unbiased
at any number of rows, users and levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.trial.logged import IdFeature, Logged

CHUNK_BYTES, MIN_CHUNK = 1 << 25, 1 << 12


@dataclass(frozen=True)
class LevelSums:
    """Sums of L levels, K arms.

    Attributes:
        rows: ``[L]`` rows.
        clusters: ``[L]`` different users; of a list feature without repeat users, different rows.
        count: ``[L, K]`` rows of each arm.
        excess: ``[L, K]`` Σ_u g_ulj = Σ 1[t = j] / p − rows.
        own: ``[L]`` Σ_u κ(u, u), what chance adds to Σ_j q_j excess_j².
        row_own: ``[L]`` the same with every row a user of its own.
        square: ``[L]`` Σ_{u ≠ u'} κ(u, u')², half the variance of Σ_{u ≠ u'} κ(u, u').
    """

    rows: Tensor
    clusters: Tensor
    count: Tensor
    excess: Tensor
    own: Tensor
    row_own: Tensor
    square: Tensor

    def chi_square(self, share: Tensor) -> Tensor:
        """``[L]`` Σ_j q_j excess_j² / rows, ``share`` being q (``[K]``): Pearson's where propensities are constant."""
        return (self.excess.square() @ share) / self.rows.clamp(min=1)

    def design_effect(self) -> Tensor:
        """``[L]`` by how much dependent rows of users widen the counts' variance, at least 1 (Rao, Scott 1984)."""
        return (self.own / self.row_own.clamp(min=1e-300)).clamp(min=1)


def feature_sums(trial: Logged, feature: IdFeature) -> LevelSums:
    """Sums of the levels of an id feature; a row of a list feature counts at each of its levels."""
    if feature.offsets is None:
        return level_sums(trial, feature.values, feature.levels)
    values, row = feature.entries()
    return level_sums(trial, values, feature.levels, row)


def level_sums(trial: Logged, values: Tensor, levels: int, row: Tensor | None = None) -> LevelSums:
    """Sums of the levels ``values`` of the rows ``row``, in one sort and one pass.

    Args:
        values: ``[entries]`` int64 in 0 … levels − 1.
        levels: L.
        row: ``[entries]`` row of each, see :meth:`IdFeature.entries`; ``None``: entry i is row i.
    """
    if row is None and trial.cluster is None:
        return _of_rows(trial, values, levels)
    k = len(trial.arms)
    share = trial.mean_share()
    count = torch.zeros(levels * k, dtype=torch.int64)
    excess, own = torch.zeros(levels, k, dtype=torch.float64), torch.zeros(levels, dtype=torch.float64)
    clusters, row_own, square = torch.zeros(levels, dtype=torch.int64), own.clone(), own.clone()
    # The level whose users may go on in the next chunk, and its Σ g g'.
    open_level, open_outer = -1, torch.zeros(k, k, dtype=torch.float64)
    for level, group, index in _chunks(trial, values, row):
        t, w = trial.treatment.index_select(0, index), trial.weight.index_select(0, index)
        count += torch.bincount(level * k + t, minlength=levels * k)
        row_own += torch.bincount(level, weights=share[t] * (w.square() - 2 * w) + share.sum(), minlength=levels)
        groups = int(group[-1]) + 1
        given = torch.zeros(groups * k, dtype=torch.float64).index_add_(0, group * k + t, w).view(groups, k)
        g = given - torch.bincount(group, minlength=groups).double()[:, None]
        first = torch.ones(len(group), dtype=torch.bool)
        first[1:] = group[1:] != group[:-1]
        of_group = level[first]
        lowest = int(of_group[0])
        local = of_group - lowest
        span = int(local[-1]) + 1
        mine = g.square() @ share
        clusters[lowest : lowest + span] += torch.bincount(local, minlength=span)
        excess[lowest : lowest + span].index_add_(0, local, g)
        own[lowest : lowest + span] += torch.bincount(local, weights=mine, minlength=span)
        square[lowest : lowest + span] -= torch.bincount(local, weights=mine.square(), minlength=span)
        outer = _outer_sums(g, local, span)
        if open_level == lowest:
            outer[0] += open_outer
        elif open_level >= 0:
            square[open_level] += _squared(open_outer[None], share)[0]
        square[lowest : lowest + span - 1] += _squared(outer[:-1], share)
        open_level, open_outer = lowest + span - 1, outer[-1].clone()
    if open_level >= 0:
        square[open_level] += _squared(open_outer[None], share)[0]
    count = count.view(levels, k)
    # The squares of one user alone cancel but for rounding.
    square = torch.where(clusters > 1, square.clamp(min=0), torch.zeros_like(square))
    return LevelSums(count.sum(1), clusters, count, excess, own, row_own, square)


def _of_rows(trial: Logged, values: Tensor, levels: int) -> LevelSums:
    """Every row a user of its own: all that is wanted follows from counts and sums of w and w² by level and arm."""
    k, share, w = len(trial.arms), trial.mean_share(), trial.weight
    key = values * k + trial.treatment
    count = torch.bincount(key, minlength=levels * k).view(levels, k)
    total = torch.bincount(key, weights=w, minlength=levels * k).view(levels, k)
    squared = torch.bincount(key, weights=w.square(), minlength=levels * k).view(levels, k)
    rows = count.sum(1)
    mine = share[trial.treatment] * (w.square() - 2 * w) + share.sum()
    own = torch.bincount(values, weights=mine, minlength=levels)
    square = torch.bincount(values, weights=-mine.square(), minlength=levels)
    # Σ (1[t = i] w − 1) (1[t = j] w − 1), squared and weighted, without a matrix for every level.
    for i in range(k):
        for j in range(k):
            outer = rows - total[:, i] - total[:, j] + (squared[:, i] if i == j else 0.0)
            square += share[i] * share[j] * outer.square()
    square = torch.where(rows > 1, square.clamp(min=0), torch.zeros_like(square))
    return LevelSums(rows, rows, count, total - rows[:, None], own, own, square)


def _chunks(trial: Logged, values: Tensor, row: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Entries by level and user: level, number of the (level, user) group in the chunk, row; no group in two chunks."""
    size = max(CHUNK_BYTES // (8 * len(trial.arms) ** 2), MIN_CHUNK)
    row = torch.arange(len(values)) if row is None else row
    of_user = row if trial.cluster is None else trial.cluster[row]
    key, order = (values * trial.clusters + of_user).sort()
    low = 0
    while low < len(order):
        high = min(low + size, len(order))
        # The whole of the last group.
        high = int(torch.searchsorted(key, key[high - 1], right=True))
        part = key[low:high]
        new = (part[1:] != part[:-1]).long()
        yield part // trial.clusters, torch.cat([new.new_zeros(1), new.cumsum(0)]), row.index_select(0, order[low:high])
        low = high


def _outer_sums(g: Tensor, local: Tensor, span: int) -> Tensor:
    """``[span, K, K]`` Σ g g' over the groups of each level; groups are in the order of their levels."""
    if span == 1:
        return (g.T @ g)[None]
    k = g.shape[1]
    outer = torch.empty(span, k, k, dtype=g.dtype)
    for i in range(k):
        for j in range(i, k):
            outer[:, i, j] = outer[:, j, i] = torch.bincount(local, weights=g[:, i] * g[:, j], minlength=span)
    return outer


def _squared(outer: Tensor, share: Tensor) -> Tensor:
    """``[n]`` Σ_ij q_i q_j outer_ij²."""
    return torch.einsum("nij,i,j->n", outer.square(), share, share)
