"""A baseline for doubly robust weighting that no row had a part in: ridge regression, cross-fitted over users.

The doubly robust estimate of what user i would yield under arm j is ``m_ij + 1[t_i = j] / p_i · (y_i − m_ij)``. It is
unbiased for every m_i that does not depend on what the rows of user i yielded, and the better m predicts, the smaller
is its variance. The model in training is no such m, for it was fitted to row i. Here users fall into F folds, and the
baseline of a row is a linear model per arm, fitted to the rows outside its user's fold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_budget.batch import KeyedJaggedTensor, RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.hashing import hash_ids
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable

CHUNK = 65_536
"""Rows whose features lie in memory at once during a fit."""
MAX_COLUMNS = 512
"""Of ids, all features together: a fit holds F·K matrices of the square of this."""
FLOOR = 1e-9
"""Least penalty per row: collinear columns stay solvable even without ridge."""


def folds_of(user: Tensor, folds: int) -> Tensor:
    """Fold of each row, ``[N]`` uint8, from a hash of ``user`` (``[N]`` int64): whatever the order of the rows."""
    parts = [hash_ids(part.cpu().numpy(), 0, "cross_fitting") % folds for part in user.split(CHUNK)]
    return torch.cat([torch.from_numpy(part.astype("uint8")) for part in parts])


@dataclass(frozen=True)
class Features:
    """Columns that the linear models see: 1, D standardised dense features, C shares of ids.

    A list of ids counts as the share that each id has in it. An id feature with a large table is left out: it would
    need a column per id, and a user's own id is never seen outside the user's fold.

    Attributes:
        dense_mean, dense_std: ``[D]`` float32.
        first: column among the C of the first id of each id feature, in key order; −1 where it is left out.
        categories: C.
    """

    dense_mean: Tensor
    dense_std: Tensor
    first: Tensor
    categories: int

    @classmethod
    def of(cls, schema: DataSchema, statistics: DataStatistics, max_categories: int) -> Features:
        """Id features of at most ``max_categories`` table rows, smaller ones first while ``MAX_COLUMNS`` hold them."""
        # A managed id is no row: it is left out, as a table too large is.
        sizes = [f.num_embeddings if f.ids != "managed" else max_categories + 1 for f in schema.sparse]
        first, total = [-1] * len(sizes), 0
        for i in sorted(range(len(sizes)), key=sizes.__getitem__):
            if sizes[i] <= max_categories and total + sizes[i] <= MAX_COLUMNS:
                first[i], total = total, total + sizes[i]
        mean, std = (torch.tensor(x, dtype=torch.float32) for x in (statistics.dense_mean, statistics.dense_std))
        return cls(mean, std, torch.tensor(first, dtype=torch.long), total)

    @property
    def width(self) -> int:
        """P = 1 + D + C."""
        return 1 + len(self.dense_mean) + self.categories

    def standardised(self, dense: Tensor) -> Tensor:
        """``[n, D]``, clipped as the models clip."""
        return ((dense - self.dense_mean) * (1 / self.dense_std)).clamp(-8, 8)

    def shares(self, sparse: KeyedJaggedTensor, shift: Tensor, scrap: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of every id of n users its bag (feature · n + user), its column and its share of the bag.

        Args:
            sparse: the ids; shift: ``[n]``, added to the columns of a user.
            scrap: column of the ids that are left out, above all others; so no size depends on what is in the batch.
        """
        lengths, values = sparse.lengths(), sparse.values()
        bag = torch.arange(len(lengths), device=lengths.device)
        bag = torch.repeat_interleave(bag, lengths, output_size=len(values))
        first = self.first[:, None]
        start = (first.where(first >= 0, scrap) + shift).flatten()
        # index_select is several times as fast here as brackets.
        column = (values + start.index_select(0, bag)).clamp_max(scrap)
        return bag, column, lengths.float().reciprocal().index_select(0, bag)

    def matrix(self, batch: RCTBatch) -> Tensor:
        """``[n, P]`` float32."""
        n = len(batch)
        parts = [batch.dense.new_ones(n, 1), self.standardised(batch.dense)]
        if batch.sparse is not None and self.categories:
            bag, column, share = self.shares(batch.sparse, torch.zeros_like(batch.treatment), self.categories)
            ids = batch.dense.new_zeros(n, self.categories + 1)
            parts.append(ids.index_put_((bag % n, column), share, accumulate=True)[:, :-1])
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class CrossFittedBaseline:
    """Value and cost of every arm, predicted for each row of one table by what other users yielded.

    Computed anew for each batch: a matrix of all predictions would take 8·K bytes a row, and as much of a checkpoint.

    Attributes:
        fold: ``[N]`` uint8, fold of each row of the table.
        coefficient: ``[F, P, 2K]`` float32; ``[f]`` was fitted outside fold f, first to value, then to cost.
        features: what the P columns are.
    """

    fold: Tensor
    coefficient: Tensor
    features: Features

    def to(self, device: torch.device | str) -> CrossFittedBaseline:
        x = self.features
        x = replace(x, dense_mean=x.dense_mean.to(device), dense_std=x.dense_std.to(device), first=x.first.to(device))
        return CrossFittedBaseline(self.fold.to(device), self.coefficient.to(device), x)

    @torch.no_grad()
    def predict(self, batch: RCTBatch) -> ResponsePrediction:
        """Baseline of rows of the table that it was fitted to.

        Args:
            batch: n rows on this baseline's device, found by ``row``; filling gets that of row 0's fold.

        Returns:
            ``[n, K]`` float32 each, under autocast too; not clipped, not even where the outcome is binary.
        """
        return self._of_folds(batch, self.fold.index_select(0, batch.row.clamp_min(0)).long())

    @torch.no_grad()
    def predict_others(self, batch: RCTBatch) -> ResponsePrediction:
        """As :meth:`predict`, for rows of another table: the mean of what all folds' models say."""
        mean = replace(self, coefficient=self.coefficient.mean(0, keepdim=True))
        return mean._of_folds(batch, torch.zeros_like(batch.row))

    def _of_folds(self, batch: RCTBatch, fold: Tensor) -> ResponsePrediction:
        folds, _, outcomes = self.coefficient.shape
        n, dense = len(batch), len(self.features.dense_mean)
        intercept, slopes, ids = self.coefficient.split([1, dense, self.features.categories], dim=1)
        with torch.autocast(batch.dense.device.type, enabled=False):
            # Every fold's prediction of every row: cheaper than sorting the rows by fold.
            weight = slopes.transpose(0, 1).reshape(dense, folds * outcomes)
            out = torch.addmm(intercept.flatten(), self.features.standardised(batch.dense), weight)
            position = torch.arange(n, device=fold.device) * folds + fold
            out = out.view(n * folds, outcomes).index_select(0, position)
            if batch.sparse is not None and self.features.categories:
                out += self._of_ids(batch.sparse, fold, ids)
        value, cost = out.chunk(2, dim=1)
        return ResponsePrediction(value, cost)

    def _of_ids(self, sparse: KeyedJaggedTensor, fold: Tensor, coefficient: Tensor) -> Tensor:
        # Pooled as an embedding is: a product with the [n, C] indicators would multiply zeros for the most part.
        table = F.pad(coefficient.flatten(0, 1), (0, 0, 0, 1))
        shift = fold * self.features.categories
        _, column, share = self.features.shares(sparse, shift, scrap=len(table) - 1)
        offsets = sparse.offsets().to(column.dtype)
        pooled = F.embedding_bag(column, table, offsets, mode="sum", per_sample_weights=share, include_last_offset=True)
        return pooled.view(-1, len(fold), table.shape[1]).sum(0)

    def state_dict(self) -> dict[str, Tensor]:
        """Small tensors only; the folds are a function of the users."""
        x = self.features
        named = {"dense_mean": x.dense_mean, "dense_std": x.dense_std, "first": x.first}
        return {"coefficient": self.coefficient, **named, "categories": torch.tensor(x.categories)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], user: Tensor) -> CrossFittedBaseline:
        """Inverse of :meth:`state_dict`, on the device of the state.

        Args:
            state: of a baseline; user: ``[N]`` int64, the users of the table that it was fitted to.
        """
        x = Features(state["dense_mean"], state["dense_std"], state["first"], int(state["categories"]))
        coefficient = state["coefficient"]
        return cls(folds_of(user, len(coefficient)).to(coefficient.device), coefficient, x)


def cross_fit(
    table: RCTTable,
    schema: DataSchema,
    statistics: DataStatistics,
    folds: int = 5,
    ridge: float = 100.0,
    max_categories: int = 64,
    reduce: Callable[[Tensor], Tensor] | None = None,
    rows: range | None = None,
) -> CrossFittedBaseline:
    """Ridge regression of value and of cost on features, for each arm j and outside each fold f of users.

    Over the rows outside f that were given j, for either outcome y and with the columns x of :class:`Features`::

        minimise over (α, β)   Σ_i w_i (y_i − α − x_i·β)² + ridge · |β|²

    with sample weights w, divided by their mean over the split; 1 where the trial has none. It takes one pass over the
    table: the normal equations of a fold's complement are the sum of the other folds'. Where no row outside f was given
    j, the baseline is the mean of all rows outside f, and 0 where there is none: never anything of fold f itself.

    Args:
        table: N rows in host memory, the training split.
        schema, statistics: of that split.
        folds: F; the more, the more rows a fit sees. A user's rows share one; a fold without users does no harm.
        ridge: in rows: as if that many more showed each column at one standard deviation and no effect of it. Being no
            share of N, it steadies a hundred rows and leaves millions alone.
        max_categories: largest table, in rows, of an id feature that gets columns.
        reduce: sums a ``[F, K, P, P + 2]`` float64 tensor over ranks, each of which has seen its own rows.
        rows: which consecutive rows of the table this rank sums over, if not all. The baseline covers the whole table.

    Raises:
        InputError: if an argument is out of range, or features or outcomes are not finite.

    Sources: Chernozhukov et al. 2018, doi:10.1111/ectj.12097 (cross-fitting); Dudík, Langford, Li 2011,
    arXiv:1103.4601 (doubly robust).
    """
    check_arguments(folds, ridge, max_categories)
    features, fold = Features.of(schema, statistics, max_categories), folds_of(table.user, folds)
    rows = range(len(table)) if rows is None else rows
    moments = _moments(table, features, fold, (folds, schema.num_treatments), rows, statistics.weight_mean)
    if reduce is not None:
        moments = reduce(moments)
    if not moments.isfinite().all():
        raise InputError("features or outcomes that are not finite in the training split", "finite numbers", "mend it")
    return CrossFittedBaseline(fold, _coefficients(moments, ridge), features)


def check_arguments(folds: int, ridge: float, max_categories: int) -> None:
    """Refuse what :func:`cross_fit` does not take.

    Raises:
        InputError: naming the argument.
    """
    if not 2 <= folds <= 255:
        raise InputError(f"folds={folds}", "2 to 255", "5 is the default")
    if not 0 <= ridge < math.inf:
        raise InputError(f"ridge={ridge:g}", "0 or above, finite, in rows", "100 is the default")
    if max_categories < 0:
        raise InputError(f"max_categories={max_categories}", "0 or above", "64 is the default, 0 leaves out all ids")


def _moments(
    table: RCTTable, features: Features, fold: Tensor, groups: tuple[int, int], rows: range, weight_mean: float
) -> Tensor:
    """``Xᵀ W [X, value, cost]`` of each fold and arm, ``[F, K, P, P + 2]`` float64."""
    folds, arms = groups
    p = features.width
    total = torch.zeros(folds * arms, p, p + 2, dtype=torch.float64)
    for start in range(rows.start, rows.stop, CHUNK):
        stop = min(start + CHUNK, rows.stop)
        group = fold[start:stop].long() * arms + table.treatment[start:stop]
        batch = table.batch(start + group.argsort(stable=True))
        xy = torch.cat([features.matrix(batch), batch.value[:, None], batch.cost[:, None]], dim=1).double()
        x = xy[:, :p] if batch.weight is None else xy[:, :p] * (batch.weight / weight_mean)[:, None]
        sizes = torch.bincount(group, minlength=folds * arms).tolist()
        for into, left, right in zip(total, x.split(sizes), xy.split(sizes), strict=True):
            into.addmm_(left.T, right)
    return total.view(folds, arms, p, p + 2)


def _coefficients(moments: Tensor, ridge: float) -> Tensor:
    """Ridge outside each fold, ``[F, K, P, P + 2] → [F, P, 2K]`` float32."""
    folds, arms, p, _ = moments.shape
    # Not the total less the fold: its outcomes would come back in the rounding.
    others = 1 - torch.eye(folds, dtype=moments.dtype, device=moments.device)
    outside = torch.tensordot(others, moments, dims=1)
    rows = outside[..., 0, 0]
    mean = outside[..., 0, 1:] / rows.where(rows > 0, 1).unsqueeze(-1)
    x_mean, y_mean = mean[..., : p - 1], mean[..., p - 1 :]
    everyone = outside.sum(1)[:, 0]
    any_arm = (everyone[:, p:] / everyone[:, :1].where(everyone[:, :1] > 0, 1)).unsqueeze(1)
    y_mean = y_mean.where(rows.unsqueeze(-1) > 0, any_arm)
    # About the means the intercept drops out, unpenalised.
    weighted = (rows.unsqueeze(-1) * x_mean).unsqueeze(-1)
    square = outside[..., 1:, 1:p] - weighted * x_mean.unsqueeze(-2)
    product = outside[..., 1:, p:] - weighted * y_mean.unsqueeze(-2)
    penalty = ridge + FLOOR * rows.clamp_min(1)
    square = square + torch.diag_embed(penalty.unsqueeze(-1).expand(-1, -1, p - 1))
    slope = torch.cholesky_solve(product, torch.linalg.cholesky(square))
    intercept = y_mean.unsqueeze(-2) - x_mean.unsqueeze(-2) @ slope
    solution = torch.cat([intercept, slope], dim=2)
    return solution.permute(0, 2, 3, 1).reshape(folds, p, 2 * arms).float().contiguous()
