"""Peak memory of the streaming metric over a number of rows, and time of the validation callback's metrics."""

from __future__ import annotations

import ctypes
import dataclasses
import statistics
import time

import torch
from machine import memory

from lightning_budget.batch import ResponsePrediction
from lightning_budget.campaign import Campaign
from lightning_budget.metrics.streaming import StreamingOutcome
from lightning_budget.training.callbacks.allocation_metrics import allocation_metrics

BATCH = 65_536
TREATMENTS = 5
BUDGETS = (0.2, 0.4, 0.8, 1.2, 1.6)
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)


def stream(rows: int, resamples: int) -> tuple[float, int, float]:
    """Body of a process: feed generated rows to the metric, batch by batch, none of them kept.

    Returns:
        MiB that the process had at its peak above what it had before the metric was made, bytes of the metric's state,
        and seconds of processor time, generation included.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    _feed(StreamingOutcome(BUDGETS, resamples=2), BATCH, generator)  # loads what is compiled
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, start = memory("VmRSS"), time.process_time()
    metric = StreamingOutcome(BUDGETS, resamples=resamples)
    for first in range(0, rows, BATCH):
        _feed(metric, min(BATCH, rows - first), generator)
    metric.compute()
    seconds = time.process_time() - start
    state = (metric.changes, metric.total, metric.resampled, metric.resampled_total)
    return 1024 * (memory("VmHWM") - before), sum(x.nbytes for x in state), seconds


def _feed(metric: StreamingOutcome, rows: int, generator: torch.Generator) -> None:
    cost_hat = torch.rand(TREATMENTS, rows, generator=generator)
    cost_hat[0] = 0
    cost_hat.cumsum_(0)
    value_hat = torch.rand(rows, generator=generator) * cost_hat.sqrt()
    treatment = torch.randint(TREATMENTS, (rows,), generator=generator)
    value, cost = (x.gather(0, treatment[None])[0] for x in (value_hat, cost_hat))
    propensity = torch.full((rows,), 1 / TREATMENTS)
    user = torch.randint(1 << 40, (rows,), generator=generator)
    metric.update(value_hat.T, cost_hat.T, treatment, value, cost, propensity, user)


def validation(rows: int, repeats: int) -> dict[str, list[float]]:
    """Body of a process: seconds of processor time of what the callback logs after an epoch.

    With the oracle's regret, as on the simulator, and without, as on the logs of a real trial.
    """
    torch.set_num_threads(1)
    campaign = Campaign(train_rows=1, val_rows=rows, test_rows=1)
    table = campaign.partition("val", 0)
    assert table.true_value is not None
    assert table.true_cost is not None
    generator = torch.Generator().manual_seed(0)
    value, cost = (
        x * (1 + 0.2 * torch.randn(x.shape, generator=generator)) for x in (table.true_value, table.true_cost)
    )
    prediction = ResponsePrediction(value, cost)
    budgets = torch.tensor(FRACTIONS, dtype=torch.float64) * float(table.true_cost[:, -1].mean())
    arms = campaign.schema.treatments
    tables = {"simulator": table, "logs": dataclasses.replace(table, true_value=None, true_cost=None)}
    found: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for name, rows_of in tables.items():
            start = time.process_time()
            allocation_metrics(rows_of, prediction, budgets, arms, FRACTIONS, "hajek")
            found.setdefault(name, []).append(time.process_time() - start)
    return {name: seconds[1:] for name, seconds in found.items()}


def median_ms(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)
