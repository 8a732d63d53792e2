"""A refresh on the whole data: multipliers of all budgets, and what the goal needs at them."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass, field

import torch
from estimator_cost import SWITCHES, tensor_bytes
from estimator_trial import Trial
from machine import memory

from lightning_budget.allocation import solve_multipliers
from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.table import concatenate
from lightning_budget.training.objective.refresh import measure_goal, sample_of, treatments_at

TREATMENTS = 5
THREADS = 2
CALM = 0.1
"""Share of the cores, used by others, below which the clock tells what a refresh takes."""
COPIES = 4
"""Of each user that is drawn: their predictions are made to differ."""


@dataclass
class Refresh:
    """Elapsed seconds of each refresh, as the callback does it, on two threads.

    Attributes:
        others: share of all cores that other processes had meanwhile.
        solve, measure: seconds of processor time of its main parts on one thread, which other processes hardly change.
        peak_mib: memory on top of predictions and outcomes while the first one ran.
        state_bytes: of what it leaves behind; sample_bytes: of the users' treatments that the callback keeps.
        prediction_bytes: of value and cost of all users in float32.
    """

    users: int
    whole: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    solve: float = 0.0
    measure: float = 0.0
    peak_mib: float = 0.0
    state_bytes: int = 0
    sample_bytes: int = 0
    prediction_bytes: int = 0

    @property
    def undisturbed(self) -> list[float]:
        """The refreshes during which others had little of the machine; the least disturbed one if there is none."""
        calm = [s for s, other in zip(self.whole, self.others, strict=True) if other < CALM]
        return calm or [min(zip(self.others, self.whole, strict=True))[1]]


def refresh(users: int, repeats: int, seconds: float) -> Refresh:
    """Body of a process: as many repeats as the time allows, at least one.

    Each has other predictions, so that nothing can be left from the last.
    """
    trial = Trial.draw(users // COPIES, TREATMENTS)
    table, budgets = concatenate([trial.table] * COPIES), trial.budgets
    exact = ResponsePrediction(*(x.repeat(COPIES, 1) for x in (trial.prediction.value, trial.prediction.cost)))
    del trial
    goal, found = BudgetRegularizer(Softmax(), GoalForm(**SWITCHES)), Refresh(users)
    generator = torch.Generator().manual_seed(0)

    def changed() -> ResponsePrediction:
        value, cost = (x * (1 + 0.02 * torch.randn(x.shape, generator=generator)) for x in (exact.value, exact.cost))
        return ResponsePrediction(value, cost)

    torch.set_num_threads(1)
    prediction = changed()
    start = time.process_time()
    multipliers = solve_multipliers(prediction.value, prediction.cost, budgets)
    middle = time.process_time()
    goal.measure(prediction, table, multipliers, budgets)
    found.solve, found.measure = middle - start, time.process_time() - middle

    torch.set_num_threads(THREADS)
    while len(found.whole) < repeats and sum(found.whole) < seconds:
        prediction = changed()
        before = _restart_peak()
        busy, start = _busy_seconds(), time.perf_counter()
        state = measure_goal(goal, prediction, table, budgets, None)
        found.whole.append(time.perf_counter() - start)
        found.others.append((_busy_seconds() - busy) / (found.whole[-1] * (os.cpu_count() or 1)))
        if len(found.whole) == 1:
            found.peak_mib = 1024 * (memory("VmHWM") - before)
            found.state_bytes = tensor_bytes(state)
            found.sample_bytes = tensor_bytes(treatments_at(sample_of(prediction), state.multiplier))
            found.prediction_bytes = tensor_bytes(prediction)
    return found


def _restart_peak() -> float:
    """Give free memory back and forget the peak so far; GiB in use."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return memory("VmRSS")


def _busy_seconds() -> float:
    """Processor time of all cores since the start of the machine, less this process's own."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, soft_irq, *_ = (int(x) for x in file.readline().split()[1:])
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK") - time.process_time()
