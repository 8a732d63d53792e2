"""Where the goal's multipliers and constants come from: the whole training split, or batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_budget.allocation import policy_treatment, solve_multipliers
from lightning_budget.allocation.dual import treatment_cost
from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.budget_regularizer import BudgetRegularizer
from lightning_budget.losses.gains import Outcomes
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.losses.measure import ModelPrediction
from lightning_budget.metrics.functional.checks import check_outcomes

SourceName = Literal["full", "running", "batch"]
SAMPLE = 1 << 16
"""Users whose treatments are kept between refreshes, to see how many change."""


@dataclass(frozen=True)
class Source:
    """What the goal's numbers are measured on.

    Attributes:
        name: ``full``, predictions of the whole training split, every epoch or every few steps; ``batch``, each global
            batch for itself; ``running``, their running average.
        every_n_steps: of ``full``; ``None``: at the start of every epoch.
        momentum: of ``running``, the share that the past keeps at each step.

    Raises:
        InputError: for an unknown name or a number out of range.
    """

    name: SourceName = "full"
    every_n_steps: int | None = None
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.name not in get_args(SourceName):
            allowed = ", ".join(get_args(SourceName))
            raise InputError(f"objective.source={self.name!r}", allowed, "choose one of the allowed")
        if self.every_n_steps is not None and (self.every_n_steps < 1 or self.name != "full"):
            raise InputError(
                f"objective.refresh_every_n_steps={self.every_n_steps} with source={self.name}",
                "at least 1, with source=full",
                "leave it out to refresh every epoch",
            )
        if not 0 <= self.momentum < 1:
            raise InputError(f"objective.momentum={self.momentum}", "at least 0, below 1", "0.95 averages 20 batches")


def measure_goal(
    regularizer: BudgetRegularizer,
    prediction: ResponsePrediction,
    outcomes: Outcomes,
    budgets: Tensor | None,
    multipliers: Sequence[float] | None,
    **how: Any,
) -> GoalState:
    """Solve the multipliers of the budgets, unless they are given, and measure what the goal needs at them.

    Args:
        prediction: ``[N, K]``; outcomes: the N rows.
        budgets: ``[B]``, currency per user; or multipliers: B of them.
        how: as :meth:`BudgetRegularizer.measure` takes.

    Raises:
        InputError: for predictions or outcomes that are not finite, propensities outside (0, 1], or a budget below the
            cheapest feasible spend.
    """
    check_outcomes(outcomes.value, outcomes.cost, outcomes.propensity, len(prediction.value))
    if multipliers is None:
        assert budgets is not None
        found = solve_multipliers(prediction.value, prediction.cost, budgets)
    else:
        budgets, found = None, torch.tensor(multipliers, dtype=torch.float64)
    return regularizer.measure(prediction, outcomes, found, budgets, **how)


def free_optimum_spend(prediction: ResponsePrediction) -> float:
    """Predicted spend per user where money costs nothing."""
    return float(treatment_cost(prediction.cost, policy_treatment(prediction.value, prediction.cost, 0.0)).mean())


def check_multipliers(multipliers: Sequence[float]) -> tuple[float, ...]:
    """Multipliers of a dual goal as given.

    Raises:
        InputError: if there are none, or one is negative or not finite.
    """
    if not multipliers or not all(0 <= m < math.inf for m in multipliers):
        raise InputError(
            f"objective.multipliers={list(multipliers)}", "numbers of 0 or more, value per currency", "mend them"
        )
    return tuple(float(m) for m in multipliers)


def treatments_at(prediction: ResponsePrediction, multipliers: Tensor) -> Tensor:
    """Treatment of every user at each multiplier, ``[B, n]`` uint8."""
    chosen = [policy_treatment(prediction.value, prediction.cost, float(m)) for m in multipliers]
    return torch.stack(chosen).to(torch.uint8).cpu()


def sample_of(prediction: ResponsePrediction) -> ResponsePrediction:
    """Every so-many-th user, the same ones at every refresh, at most :data:`SAMPLE`."""
    step = -(-len(prediction.value) // SAMPLE)
    return ResponsePrediction(prediction.value[::step], prediction.cost[::step])


def part_of_rank(rows: int) -> slice:
    """The rows that this rank measures."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if world > 1 else 0
    return slice(rows * rank // world, rows * (rank + 1) // world)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks; ``x`` itself in one process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    device = "cpu" if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    total = x.to(device, copy=True)
    dist.all_reduce(total)
    return total.to(x.device)


def gather_batch(
    batch: RCTBatch, prediction: ResponsePrediction, model: ResponsePrediction | None
) -> tuple[ResponsePrediction, Outcomes, ResponsePrediction | None]:
    """The rows of all ranks; their batches are equally large."""

    def gather(x: Tensor) -> Tensor:
        x = x.detach()
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return x
        everyone = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, x.contiguous())
        return torch.cat(everyone)

    rows = BatchOutcomes(*(gather(x) for x in (batch.treatment, batch.value, batch.cost, batch.propensity)))
    both = [None if p is None else ResponsePrediction(gather(p.value), gather(p.cost)) for p in (prediction, model)]
    assert both[0] is not None
    return both[0], rows, both[1]


@dataclass(frozen=True)
class BatchOutcomes:
    """Outcomes of the rows of a batch, ``[n]`` each."""

    treatment: Tensor
    value: Tensor
    cost: Tensor
    propensity: Tensor


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """What is drawn inside leaves no trace: a refresh does not change what training draws."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


__all__ = [
    "ModelPrediction",
    "Source",
    "check_multipliers",
    "free_optimum_spend",
    "gather_batch",
    "measure_goal",
    "part_of_rank",
    "same_random_numbers",
    "sample_of",
    "sum_over_ranks",
    "treatments_at",
]
