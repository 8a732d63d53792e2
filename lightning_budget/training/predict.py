"""Predictions of a whole table, in its order, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError

Part = tuple[Tensor, Tensor, Tensor]
"""Position in the table ``[n]`` (−1: filling), value ``[n, K]`` and cost ``[n, K]`` of one batch."""


def gather_rows(parts: Iterable[Part]) -> tuple[Tensor, ResponsePrediction]:
    """What all ranks predicted, in the order of the table, filling left out; on every rank, in host memory.

    Returns:
        Positions ``[n]``, ascending, and predictions ``[n, K]`` each.
    """
    row, value, cost = (torch.cat(x).cpu() for x in zip(*parts, strict=True))
    if dist.is_initialized() and dist.get_world_size() > 1:
        row, value, cost = (_all_gather(x) for x in (row, value, cost))
    row, order = row.sort(stable=True)
    order = order[row >= 0]
    return row[row >= 0], ResponsePrediction(value[order], cost[order])


def in_table_order(parts: Iterable[Part], rows: int) -> ResponsePrediction:
    """As :func:`gather_rows`, for a table predicted whole: ``[N, K]`` each.

    Raises:
        InputError: if rows are missing.
    """
    row, prediction = gather_rows(parts)
    if not torch.equal(row, torch.arange(rows)):
        raise InputError(
            f"predictions for {len(row)} of {rows} rows", "all rows", "leave out trainer.limit_predict_batches"
        )
    return prediction


def _all_gather(x: Tensor) -> Tensor:
    # Evaluation batches are equal on all ranks, so the shapes agree.
    device = "cpu" if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    x = x.to(device).contiguous()
    everyone = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, x)
    return torch.cat(everyone).cpu()


@torch.no_grad()
def predict_batches(
    module: torch.nn.Module, batches: Iterable[RCTBatch], rows: int, device: torch.device
) -> ResponsePrediction:
    """Predict a table with the model as it stands; every rank must call it, with its share of the batches.

    Args:
        module: maps an :class:`RCTBatch` to a :class:`ResponsePrediction`; its train or eval mode is restored.
        batches: in evaluation order; rows: N of the table.
        device: where the model lives.

    Returns:
        ``[N, K]`` each, in host memory, on every rank.
    """
    training = module.training
    module.eval()
    try:
        parts = []
        for batch in batches:
            on_device = batch.to(device, non_blocking=True)
            prediction = module(on_device)
            parts.append((on_device.row, prediction.value, prediction.cost))
        return in_table_order(parts, rows)
    finally:
        module.train(training)
