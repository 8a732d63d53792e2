"""The columns of a trial as its checks read them: what was given, how probable that was, features, and whose rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import check_outcomes, check_treatment, check_user
from lightning_budget.schema import UNKNOWN

CHUNK = 1 << 16


@dataclass(frozen=True)
class IdFeature:
    """An id feature, one level or a list of levels a row.

    Attributes:
        name: of the feature.
        values: ``[N]`` int64 levels in 0 … levels − 1; of a list feature ``[total]``.
        levels: number of levels; level 0 is that of unknown ids.
        offsets: of a list feature ``[N + 1]``: row i has ``values[offsets[i]:offsets[i + 1]]``.
        names: of the levels from 1 on; ``None``: level i + 1 is called i.
    """

    name: str
    values: Tensor
    levels: int
    offsets: Tensor | None = None
    names: tuple[str, ...] | None = None

    def label(self, level: int) -> str:
        """``feature=level`` as a reader knows it."""
        if level == UNKNOWN:
            return f"{self.name}=unknown"
        return f"{self.name}={level - 1 if self.names is None else self.names[level - 1]}"

    def entries(self) -> tuple[Tensor, Tensor]:
        """Levels and the row of each, a level once a row, ``[entries]`` both."""
        if self.offsets is None:
            return self.values, torch.arange(len(self.values))
        row = torch.repeat_interleave(self.offsets.diff(), output_size=len(self.values))
        once = (row * self.levels + self.values).unique()
        return once % self.levels, once // self.levels

    def of_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of the rows ``rows`` (``[n]``), and for each its position in ``rows``."""
        if self.offsets is None:
            return self.values.index_select(0, rows), torch.arange(len(rows))
        start, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        ends = lengths.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        place = torch.repeat_interleave(lengths, output_size=total)
        return self.values[torch.arange(total) + (start - ends + lengths)[place]], place

    def lengths(self) -> Tensor | None:
        """``[N]`` entries a row of a list feature."""
        return None if self.offsets is None else self.offsets.diff()


@dataclass(frozen=True)
class Logged:
    """N rows of a trial with K arms; made by :func:`logged_trial`.

    Attributes:
        arms: K names, control first.
        treatment: ``[N]`` int64.
        propensity: ``[N]`` probability of the arm given.
        value, cost: ``[N]`` outcomes.
        dense: ``[N, D]``.
        dense_names: D.
        ids: the id features.
        weight: ``[N]`` float64, 1 / propensity.
        cluster: ``[N]`` int64 in 0 … clusters − 1, the user of each row; ``None`` where no user has two rows.
        clusters: number of users, N without repeats.
    """

    arms: tuple[str, ...]
    treatment: Tensor
    propensity: Tensor
    value: Tensor
    cost: Tensor
    dense: Tensor
    dense_names: tuple[str, ...]
    ids: tuple[IdFeature, ...]
    weight: Tensor
    cluster: Tensor | None
    clusters: int

    def __len__(self) -> int:
        return len(self.treatment)

    def arm_rows(self) -> Tensor:
        """``[K]`` rows of each arm, float64."""
        return torch.bincount(self.treatment, minlength=len(self.arms)).double()

    def arm_sums(self, of_rows: Tensor) -> Tensor:
        """``[K]`` float64, Σ over the rows of each arm."""
        return torch.bincount(self.treatment, weights=of_rows.double(), minlength=len(self.arms))

    def mean_share(self) -> Tensor:
        """``[K]`` probability of each arm, averaged over the rows: 1 / (Σ w² / Σ w) over the arm's rows, w = 1 / p.

        That is the harmonic mean of the arm's propensities over all rows, as its own rows estimate it, and the
        propensity itself where it is constant. Arms without rows share what is left of 1.
        """
        total, square = self.arm_sums(self.weight), self.arm_sums(self.weight.square())
        given = total > 0
        share = torch.where(given, total / square.clamp(min=1e-300), torch.zeros_like(total))
        rest = (1 - share.sum()).clamp(min=1e-9) / (~given).sum().clamp(min=1)
        return torch.where(given, share, rest)

    def by_cluster(self) -> Tensor:
        """``[N]`` rows in an order that keeps those of one user together."""
        return torch.arange(len(self)) if self.cluster is None else self.cluster.argsort()

    def chunks(self) -> Iterator[Tensor]:
        """Rows, some ten thousand at a time, no user in two chunks."""
        if self.cluster is None:
            yield from torch.arange(len(self)).split(CHUNK)
            return
        order = self.by_cluster()
        sizes = torch.bincount(self.cluster, minlength=self.clusters)
        ends = sizes.cumsum(0)
        low = 0
        while low < len(order):
            last = int(torch.searchsorted(ends, low + CHUNK))
            high = int(ends[min(last, self.clusters - 1)])
            yield order[low:high]
            low = high


def logged_trial(
    arms: tuple[str, ...],
    treatment: Tensor,
    propensity: Tensor,
    value: Tensor,
    cost: Tensor,
    dense: Tensor | None = None,
    dense_names: tuple[str, ...] = (),
    ids: tuple[IdFeature, ...] = (),
    user: Tensor | None = None,
) -> Logged:
    """Check the columns of a trial and find the users with several rows.

    Args:
        user: ``[N]`` int64; ``None``: every row is a user of its own.
        others: as in :class:`Logged`.

    Raises:
        InputError: for columns of other lengths, numbers that are not finite, propensities outside (0, 1], and
            treatments or levels out of range (:func:`~lightning_budget.trial.screen_rows` counts such rows first).
    """
    n = len(treatment)
    check_treatment(treatment, n, len(arms))
    check_outcomes(value, cost, propensity, n)
    dense = torch.empty(n, 0) if dense is None else dense
    if dense.shape != (n, len(dense_names)):
        raise InputError(
            f"dense has shape {list(dense.shape)} for {n} rows and {len(dense_names)} names",
            f"[{n}, {len(dense_names)}]",
            "give one column per name",
        )
    if not bool(torch.isfinite(dense.sum(dtype=torch.float64))):
        bad = [name for name, column in zip(dense_names, dense.unbind(1), strict=True) if not column.isfinite().all()]
        raise InputError(f"dense feature {bad[0]!r} has entries that are not finite", "finite numbers", "fill them in")
    for feature in ids:
        if len(feature.values) and not 0 <= int(feature.values.min()) <= int(feature.values.max()) < feature.levels:
            raise InputError(
                f"id feature {feature.name!r} has levels from {int(feature.values.min())} to "
                f"{int(feature.values.max())}",
                f"0 to {feature.levels - 1}",
                "number its levels from 0, or raise their number",
            )
        rows = len(feature.values) if feature.offsets is None else len(feature.offsets) - 1
        if rows != n:
            raise InputError(
                f"id feature {feature.name!r} has {rows} rows", f"{n}, as treatment has", "align it with treatment"
            )
    cluster, clusters = None, n
    if user is not None:
        check_user(user, n)
        distinct, index = user.unique(return_inverse=True)
        if len(distinct) < n:
            cluster, clusters = index, len(distinct)
    return Logged(
        arms=arms,
        treatment=treatment,
        propensity=propensity,
        value=value,
        cost=cost,
        dense=dense,
        dense_names=dense_names,
        ids=ids,
        weight=1 / propensity.double(),
        cluster=cluster,
        clusters=clusters,
    )
