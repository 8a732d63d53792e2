"""Rows collected over batches and processes, each once and in one order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_budget.errors import InputError


class RowMetric(Metric):
    """Base of the metrics that need all rows of a split at once, exact under any batching and sharding.

    Rows are put in order of ``row``, their position in the split; a row seen twice (a sampler's padding, two processes)
    counts once, and a row below 0 only fills up a batch.

    Args:
        columns: names of the columns that are kept beside ``row``.
        kwargs: of :class:`torchmetrics.Metric`; ``compute_on_cpu=True`` keeps the rows off the accelerator.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    row: list[Tensor]

    def __init__(self, columns: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.columns = (*columns, "row")
        for column in self.columns:
            self.add_state(column, default=[], dist_reduce_fx="cat")

    def keep(self, **batch: Tensor) -> None:
        """Keep a batch, one tensor of ``[n, …]`` for each column and ``row``.

        Raises:
            InputError: if the columns are not equally long.
        """
        lengths = {name: len(batch[name]) for name in self.columns}
        if len(set(lengths.values())) > 1:
            raise InputError(f"columns of lengths {lengths}", "one length", "give one entry per row of the batch")
        for name in self.columns:
            getattr(self, name).append(batch[name].detach())

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        # A rank that saw no row would take part in no gathering while the others wait for it.
        mine = {name: (x[0].dtype, x[0].shape[1:]) for name in self.columns if (x := getattr(self, name))}
        everyone: list[dict[str, tuple[torch.dtype, torch.Size]]] = [{}] * dist.get_world_size(process_group)
        dist.all_gather_object(everyone, mine, group=process_group)
        for name, (dtype, shape) in max(everyone, key=len).items():
            if not mine:
                getattr(self, name).append(torch.empty(0, *shape, dtype=dtype, device=self.device))
        super()._sync_dist(dist_sync_fn, process_group)

    def rows(self) -> dict[str, Tensor]:
        """The columns over all distinct rows.

        Raises:
            InputError: if no row was kept.
        """
        if isinstance(self.row, list) and not self.row:
            raise InputError(f"0 rows in {type(self).__name__}", "at least 1", "update it with a batch before compute")
        columns = {name: dim_zero_cat(getattr(self, name)) for name in self.columns}
        row, order = columns.pop("row").sort(stable=True)
        kept = row >= 0
        kept[1:] &= row[1:] != row[:-1]
        return {name: x[order[kept]] for name, x in columns.items()}


def ones(weight: Tensor | None, row: Tensor) -> Tensor:
    """The weights of a batch, 1 each if none are given."""
    return torch.ones_like(row, dtype=torch.float64) if weight is None else weight
