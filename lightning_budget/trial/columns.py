"""Features of a trial as numeric columns: dense features as they are, the levels of id features as indicators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.trial.logged import CHUNK, IdFeature, Logged

MAX_LEVELS = 8
MIN_EXPECTED = 50.0


@dataclass(frozen=True)
class Grouped:
    """An id feature with its rare levels pooled: ``group`` (``[levels]``) is the place of a level's column."""

    feature: IdFeature
    group: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """M columns, standardised over all rows.

    Attributes:
        names: M: dense features, lengths of lists, ``feature=level`` and ``feature=rare (n levels)``.
        grouped: the id features.
        mean, std: ``[M]`` float64; a constant column has ``std`` 0 and stands for zeros.
    """

    names: tuple[str, ...]
    grouped: tuple[Grouped, ...]
    mean: Tensor
    std: Tensor

    def of_rows(self, trial: Logged, rows: Tensor) -> Tensor:
        """``[n, M]`` float64 standardised columns of the rows ``rows``."""
        raw = _raw(trial, self.grouped, rows, len(self.names)).sub_(self.mean)
        return raw.mul_(torch.where(self.std > 0, 1 / self.std.clamp(min=1e-300), torch.zeros_like(self.std)))


def feature_columns(trial: Logged) -> Columns:
    """Lay out the columns and measure their means and standard deviations.

    An id feature has columns for its 8 most frequent levels that can be expected 50 times in every arm, and one for
    all others together; of a list feature they say whether the row has the level, and one more counts its entries.
    """
    grouped = tuple(_group(trial, f) for f in trial.ids)
    names = [*trial.dense_names, *(f"{f.name} (entries)" for f in trial.ids if f.offsets is not None)]
    names += [name for g in grouped for name in g.names]
    total = square = torch.zeros(len(names), dtype=torch.float64)
    # Sums of squares about a mean that is nearly right lose no digits.
    centre = None
    for rows in torch.arange(len(trial)).split(CHUNK):
        x = _raw(trial, grouped, rows, len(names))
        centre = x.mean(0) if centre is None else centre
        x.sub_(centre)
        total, square = total + x.sum(0), square + x.square_().sum(0)
    assert centre is not None
    off = total / len(trial)
    variance = square / len(trial) - off.square()
    mean = centre + off
    # Rounding leaves a constant column a tiny variance.
    constant = variance <= 1e-24 * (mean.square() + variance)
    std = torch.where(constant, torch.zeros_like(variance), variance.clamp(min=0).sqrt())
    return Columns(tuple(names), grouped, mean, std)


def _group(trial: Logged, feature: IdFeature) -> Grouped:
    count = torch.bincount(feature.values, minlength=feature.levels)
    enough = count * float(trial.mean_share().min()) >= MIN_EXPECTED
    top = torch.where(enough, count, torch.zeros_like(count)).topk(min(MAX_LEVELS, feature.levels))
    own = top.indices[top.values > 0].sort().values
    group = torch.full((feature.levels,), len(own))
    group[own] = torch.arange(len(own))
    names = [feature.label(level) for level in own.tolist()]
    if rare := int(((group == len(own)) & (count > 0)).sum()):
        names.append(f"{feature.name}=rare ({rare:,} levels)")
    return Grouped(feature, group, tuple(names))


def _raw(trial: Logged, grouped: tuple[Grouped, ...], rows: Tensor, width: int) -> Tensor:
    x = torch.zeros(len(rows), width, dtype=torch.float64)
    dense = trial.dense.shape[1]
    x[:, :dense] = trial.dense.index_select(0, rows)
    at = dense
    for g in grouped:
        if g.feature.offsets is not None:
            x[:, at] = (g.feature.offsets[rows + 1] - g.feature.offsets[rows]).double()
            at += 1
    flat = x.view(-1)
    for g in grouped:
        level, place = g.feature.of_rows(rows)
        flat.index_fill_(0, g.group.index_select(0, level).add_(place * width + at), 1.0)
        at += len(g.names)
    return x
