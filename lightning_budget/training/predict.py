"""Predictions of a whole table, in its order, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction


def in_table_order(parts: Iterable[tuple[Tensor, Tensor, Tensor]], rows: int) -> ResponsePrediction:
    """Put what the ranks predicted into the table's order, on every rank.

    Args:
        parts: this rank's ``(row [n], value [n, K], cost [n, K])``; row −1 is filling.
        rows: N of the table.

    Returns:
        ``[N, K]`` each, in host memory.
    """
    row, value, cost = (torch.cat(x).cpu() for x in zip(*parts, strict=True))
    if dist.is_initialized() and dist.get_world_size() > 1:
        row, value, cost = (_gather(x) for x in (row, value, cost))
    real = row >= 0
    out = ResponsePrediction(value.new_empty(rows, value.shape[1]), cost.new_empty(rows, cost.shape[1]))
    out.value[row[real]] = value[real]
    out.cost[row[real]] = cost[real]
    return out


def _gather(x: Tensor) -> Tensor:
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
