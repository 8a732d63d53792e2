"""What the objective shares between ranks; in one process each of these returns what it was given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.losses.gains import Outcomes


@dataclass(frozen=True)
class BatchOutcomes:
    """Outcomes and sample weights of the rows of a batch, ``[n]`` each."""

    treatment: Tensor
    value: Tensor
    cost: Tensor
    propensity: Tensor
    weight: Tensor | None = None


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def part_of_rank(rows: int) -> slice:
    """The rows that this rank measures."""
    world, rank = (1, 0) if _alone() else (dist.get_world_size(), dist.get_rank())
    return slice(rows * rank // world, rows * (rank + 1) // world)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks, on the device of ``x``."""
    if _alone():
        return x
    device = "cpu" if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    total = x.to(device, copy=True)
    dist.all_reduce(total)
    return total.to(x.device)


def gather_batch(
    batch: RCTBatch, prediction: ResponsePrediction, model: ResponsePrediction | None
) -> tuple[ResponsePrediction, Outcomes, ResponsePrediction | None]:
    """Rows, predictions and baseline of the global batch, rank by rank; all ranks hold equally many rows."""
    weight = None if batch.weight is None else _gather(batch.weight)
    columns = (batch.treatment, batch.value, batch.cost, batch.propensity)
    rows = BatchOutcomes(*(_gather(x) for x in columns), weight=weight)
    predicted = ResponsePrediction(_gather(prediction.value), _gather(prediction.cost))
    return predicted, rows, None if model is None else ResponsePrediction(_gather(model.value), _gather(model.cost))


def _gather(x: Tensor) -> Tensor:
    x = x.detach()
    if _alone():
        return x
    everyone = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, x.contiguous())
    return torch.cat(everyone)
