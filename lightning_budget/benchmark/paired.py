"""Every method minus the best two-stage one, cell by cell on the same rows, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.benchmark.results import Results, mean
from lightning_budget.benchmark.store import Store
from lightning_budget.benchmark.suite import Cell
from lightning_budget.metrics.functional import (
    bootstrap_curves,
    matched_interval,
    paired_oracle_difference,
    percentile_interval,
)

TWO_STAGE = "two_stage"
"""Kind of the methods whose best the others are compared with."""

T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
T += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
"""97.5 % quantiles of Student's t with 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class Paired:
    """A method minus a baseline, at B budgets, over the seeds that both have.

    Attributes:
        seeds: those.
        estimate, low, high: B each, mean over seeds and its 95 % interval; value units per user.
        mean, mean_low, mean_high: of the mean over budgets.
    """

    dataset: str
    method: str
    baseline: str
    seeds: tuple[int, ...]
    estimate: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: float
    mean_low: float
    mean_high: float


def best_two_stage(results: Results, dataset: str) -> str | None:
    """The two-stage method with the best validation EOM, mean over seeds; ``None`` where there is none.

    Of methods that lack cells only those with the most are compared, on the seeds that these share.
    """
    names = [m for m in results.methods(dataset) if results.kinds[m] == TWO_STAGE]
    seeds = {m: set(results.seeds(dataset, m)) for m in names}
    most = max((len(s) for s in seeds.values()), default=0)
    names = [m for m in names if len(seeds[m]) == most]
    if not names:
        return None
    shared = sorted(set.intersection(*(seeds[m] for m in names))) or sorted(seeds[names[0]])
    names = [m for m in names if set(shared) <= seeds[m]]
    return max(names, key=lambda m: mean([results.found[Cell(dataset, m, s)]["validation"] for s in shared]))


def against(results: Results, dataset: str, method: str, baseline: str) -> Paired | None:
    """The difference, ``None`` where no seed has both.

    Where the truth is known and there are several seeds, the interval is Student's t over seeds, which are other
    populations. Else it is a bootstrap over users: of a single seed, or of the mean over seeds, in which a user who is
    in the test split of several seeds counts equally often in all of them. Made once for the same ``results``.
    """
    key = (dataset, method, baseline)
    if key not in results.pairs:
        results.pairs[key] = _against(results, *key)
    return results.pairs[key]


def _against(results: Results, dataset: str, method: str, baseline: str) -> Paired | None:
    seeds = [s for s in results.seeds(dataset, method) if s in results.seeds(dataset, baseline)]
    if not seeds:
        return None
    pairs = [(results.values(dataset, method, s), results.values(dataset, baseline, s)) for s in seeds]
    by_seed = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
    by_budget = list(zip(*by_seed, strict=True))
    estimate, centre = [mean(x) for x in by_budget], mean([mean(x) for x in by_seed])
    if not results.has_oracle(dataset):
        samples = _samples(results, dataset, method, baseline, seeds)
        ends = _ends(*percentile_interval(samples))
        (mean_ends,) = _ends(*percentile_interval(samples.mean(1, keepdim=True)))
    elif len(seeds) > 1:
        ends = [interval(x) for x in by_budget]
        mean_ends = interval([mean(x) for x in by_seed])
    else:
        ends, mean_ends = _of_one_seed(results, dataset, method, baseline, seeds[0])
    low, high = zip(*ends, strict=True)
    return Paired(dataset, method, baseline, tuple(seeds), tuple(estimate), low, high, centre, *mean_ends)


def interval(x: Sequence[float]) -> tuple[float, float]:
    """95 % t interval of the mean of at least two numbers."""
    n, centre = len(x), mean(x)
    sd = math.sqrt(sum((value - centre) ** 2 for value in x) / (n - 1))
    half = (T[n - 2] if n - 2 < len(T) else 1.96) * sd / math.sqrt(n)
    return centre - half, centre + half


def _of_one_seed(
    results: Results, dataset: str, method: str, baseline: str, seed: int
) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """Intervals of the true difference for the sampling of users alone, at each budget and of their mean."""
    store = Store(results.suite.folder)
    table = store.rows(dataset, seed)
    p, q = (store.predictions(Cell(dataset, m, seed)) for m in (method, baseline))
    assert table.true_value is not None
    assert table.true_cost is not None
    budgets = results.found[Cell(dataset, method, seed)]["budgets"]
    found = paired_oracle_difference(
        (p.value, p.cost),
        (q.value, q.cost),
        table.true_value,
        table.true_cost,
        table.user,
        budgets,
        results.suite.resamples,
        weight=table.weight,
    )
    return _ends(found.low, found.high), (float(found.mean_low), float(found.mean_high))


def _samples(results: Results, dataset: str, method: str, baseline: str, seeds: Sequence[int]) -> Tensor:
    """``[R, B]`` differences of EOM on resamples of users, mean over seeds."""
    store, drawn = Store(results.suite.folder), []
    for seed in seeds:
        table = store.rows(dataset, seed)
        logged = (table.user, table.value, table.cost, table.propensity)
        budgets = results.found[Cell(dataset, method, seed)]["budgets"]

        predictions = [store.predictions(Cell(dataset, m, seed)) for m in (method, baseline)]
        matched = [matched_interval(p.value, p.cost, table.treatment) for p in predictions]
        # One seed of the bootstrap: a user's count is the same in all splits.
        of, base = (
            bootstrap_curves(m, *logged, budgets, results.suite.resamples, weight=table.weight) for m in matched
        )
        drawn.append(of - base)
    return torch.stack(drawn).mean(0)


def _ends(low: Tensor, high: Tensor) -> list[tuple[float, float]]:
    return list(zip(low.tolist(), high.tolist(), strict=True))
