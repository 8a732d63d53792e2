from __future__ import annotations

import os

import pytest
import torch
from metrics_reference import predictions, random_trial, rng

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import MultiplierGrid, cost_curve, matched_interval, paired_difference
from lightning_budget.metrics.streaming import StreamingOutcome

BUDGETS = [0.8, 1.0]
FINE = MultiplierGrid(-12, 12, 512)


def columns(users=600, seed=0):
    value_hat, cost_hat = predictions(rng(seed), users, 3, integers=False)
    trial = random_trial(rng(1), users, 3)
    given = trial["treatment"][:, None]
    true_value, true_cost = predictions(rng(0), users, 3, integers=False)
    trial["value"], trial["cost"] = true_value.gather(1, given)[:, 0] + trial["value"], true_cost.gather(1, given)[:, 0]
    return {"value_hat": value_hat, "cost_hat": cost_hat, **trial, "user": torch.arange(users) // 2}


def feed(metric, rows, *parts):
    for part in parts:
        metric.update(**{k: x[part] for k, x in rows.items()})
    return metric


@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
def test_any_order_and_batches_and_the_exact_curve_nearby(normalization):
    rows = columns()
    make = {"budgets": BUDGETS, "normalization": normalization, "resamples": 9, "grid": FINE}
    whole = feed(StreamingOutcome(**make), rows, slice(None)).compute()
    pieces = torch.randperm(600, generator=rng(2)).split(77)
    cut = feed(StreamingOutcome(**make), rows, *pieces, torch.arange(0)).compute()
    assert list(whole) == list(cut)
    assert len(whole) == 7
    for name, x in whole.items():
        assert float(cut[name]) == pytest.approx(float(x), rel=1e-12)
    given = {k: x for k, x in rows.items() if k != "user"}
    exact = cost_curve(**given, normalization=normalization).at_budget(BUDGETS).value
    metric = feed(StreamingOutcome(**make), rows, slice(None))
    low, high = metric.enclosure()
    assert bool((low <= exact + 1e-12).all() & (exact <= high + 1e-12).all())
    for b, x in zip(BUDGETS, exact, strict=True):
        assert float(whole[f"eom_{normalization}/{b:g}"]) == pytest.approx(float(x), abs=0.01)


def test_paired_differences_are_those_of_the_exact_form():
    a, b = columns(3000), columns(3000, seed=5)
    metrics = [feed(StreamingOutcome(BUDGETS, resamples=40, grid=FINE), rows, slice(None)) for rows in (a, b)]
    found = metrics[0].minus(metrics[1])
    intervals = [matched_interval(x["value_hat"], x["cost_hat"], x["treatment"]) for x in (a, b)]
    outcomes = {k: a[k] for k in ("user", "value", "cost", "propensity")}
    exact = paired_difference(*intervals, **outcomes, budgets=BUDGETS, resamples=40)
    width = float((exact.high - exact.low).min())
    for name in ("estimate", "low", "high"):
        assert float((getattr(found, name) - getattr(exact, name)).abs().max()) < 0.1 * width
    same = metrics[0].minus(metrics[0])
    assert (same.low.tolist(), same.high.tolist()) == ([0, 0], [0, 0])


def test_the_state_does_not_grow():
    rows, metric = columns(), StreamingOutcome(BUDGETS, resamples=4)
    sizes = []
    for _ in range(3):
        feed(metric, rows, slice(None))
        sizes.append({name: getattr(metric, name).shape for name in metric._defaults})
    assert sizes[0] == sizes[2]
    assert float(metric.total) == 1800


def test_bad_input():
    with pytest.raises(InputError, match="resamples=-1"):
        StreamingOutcome(BUDGETS, resamples=-1)
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(InputError, match="0 rows"):
        StreamingOutcome(BUDGETS).compute()
    rows = columns()
    without = {k: x for k, x in rows.items() if k != "user"}
    with pytest.raises(InputError, match="no users"):
        StreamingOutcome(BUDGETS, resamples=2).update(**without)
    one, two = (feed(StreamingOutcome(BUDGETS, resamples=2, seed=s), rows, slice(None)) for s in (0, 1))
    with pytest.raises(InputError, match="equal ones"):
        one.minus(two)


def _rank(rank, address, results):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    parts = [torch.arange(0, 431)] if rank == 0 else torch.arange(431, 600).split(50)
    metric = feed(StreamingOutcome(BUDGETS, resamples=5, grid=FINE), columns(), *parts)
    torch.save(metric.compute(), f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    expected = feed(StreamingOutcome(BUDGETS, resamples=5, grid=FINE), columns(), slice(None)).compute()
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=2, start_method="forkserver")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert {k: float(x) for k, x in found.items()} == pytest.approx(
            {k: float(x) for k, x in expected.items()}, rel=1e-12
        )
