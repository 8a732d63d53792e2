"""Time, memory and quality of whole allocations, beside what they are measured against."""

from __future__ import annotations

import ctypes
import gc
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from allocation_policy import in_turn, predictions
from allocation_rivals import PASSES, bisection, interior_point, read_once
from machine import memory
from torch import Tensor

from lightning_budget.allocation import allocate, compiled, solve_multipliers

BUDGETS = 16
_BISECTIONS = 6
"""Passes that are timed; the time of all of them is in proportion."""


@dataclass(frozen=True)
class Case:
    """One problem, solved in every way.

    Attributes:
        ms: milliseconds of the processor, by way.
        gap: relative; increment: largest value of one user, over the optimum.
        overspend: spend recounted in extended precision over the budget, at most 0 if the budget holds.
    """

    name: str
    users: int
    ms: dict[str, float]
    gap: float
    increment: float
    overspend: float

    def over(self, a: str, b: str) -> float:
        """How many times the time of ``b`` the time of ``a`` is."""
        return self.ms[a] / self.ms[b]


def problem(name: str, users: int) -> tuple[Tensor, Tensor, float]:
    """Value and cost ``[N, 5]`` float32, stored arm by arm, and a total budget."""
    value, cost = (x.T for x in predictions(users, seed=0))
    g = torch.Generator().manual_seed(1)
    if name == "Pareto(1.2)":
        size = torch.rand(users, generator=g).clamp_(min=1e-7).pow_(-1 / 1.2)
        value, cost = value * size, cost * size
    if name == "concentrated":
        cost = torch.arange(5.0)[:, None] * (1 + 1e-4 * torch.rand(5, users, generator=g))
    budget = 0.09 * float(cost[-1].sum(dtype=torch.float64))
    return value.T, cost.T, budget


@contextmanager
def plain_torch() -> Iterator[None]:
    """Without compiled passes."""
    before = os.environ.get(compiled.SWITCH)
    os.environ[compiled.SWITCH] = "0"
    try:
        yield
    finally:
        os.environ.pop(compiled.SWITCH) if before is None else os.environ.update({compiled.SWITCH: before})


def solve(name: str, users: int, rounds: int, slow: bool) -> Case:
    """Time one problem; ``slow``: also what takes seconds."""
    torch.set_num_threads(1)
    value, cost, budget = problem(name, users)
    v, c = value.T.numpy(), cost.T.numpy()
    found = allocate(value, cost, budget)
    several = torch.linspace(0.1, 1.2, BUDGETS, dtype=torch.float64) * budget / users

    def in_torch() -> None:
        with plain_torch():
            allocate(value, cost, budget)

    ms = in_turn(
        {
            "one read": lambda: read_once(v, c),
            "compiled": lambda: allocate(value, cost, budget),
            "compiled, warm": lambda: allocate(value, cost, budget, multiplier=found.multiplier),
            "one budget's multiplier": lambda: solve_multipliers(value, cost, budget / users),
            f"{BUDGETS} budgets' multipliers": lambda: solve_multipliers(value, cost, several),
        },
        rounds,
    )
    ms |= in_turn({"torch": in_torch}, max(rounds // 3, 1))
    if slow:
        by_user = value.contiguous(), cost.contiguous()
        ms |= in_turn({"bisection": lambda: bisection(*by_user, budget, _BISECTIONS)}, 1)
        ms["bisection"] *= PASSES / _BISECTIONS
    chosen = cost.gather(1, found.assignment.long()[:, None]).numpy()
    spend = np.sum(chosen, dtype=np.longdouble)
    step = float((value.amax(1) - value.amin(1)).amax())
    return Case(
        name,
        users,
        {way: 1e3 * s for way, s in ms.items()},
        found.gap / abs(found.dual_bound),
        step / abs(found.dual_bound),
        float(spend - np.longdouble(budget)),
    )


def extra_memory(users: int) -> tuple[float, float]:
    """GiB that one allocation takes at its peak beyond its input, and GiB of the input. For a process of its own."""
    torch.set_num_threads(1)
    allocate(*problem("even", 1 << 16))
    value, cost, budget = problem("even", users)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again unseen
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    allocate(value, cost, budget)
    return memory("VmHWM") - before, 2 * value.numel() * value.element_size() / 2**30


def highs(users: int) -> tuple[float, float]:
    """Processor seconds of HiGHS, and how far our dual bound is from its optimum, relatively."""
    value, cost, budget = problem("even", users)
    best, seconds = interior_point(value, cost, budget)
    return seconds, abs(allocate(value, cost, budget).dual_bound / best - 1)


def exponent(small: Case, large: Case, way: str) -> float:
    """Of the time's growth with the number of users."""
    return math.log(large.ms[way] / small.ms[way]) / math.log(large.users / small.users)
