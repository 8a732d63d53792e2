from __future__ import annotations

import os
import pickle
import warnings

import pytest
import torch
from metrics_reference import predictions, random_trial, rng

from lightning_budget.errors import InputError
from lightning_budget.metrics.eom import ExpectedOutcome
from lightning_budget.metrics.functional import eom_hajek, eom_ipw

BUDGETS = [0.2, 0.45]


def columns(users=200):
    value_hat, cost_hat = predictions(rng(1), users, 3, integers=True)
    return {"value_hat": value_hat, "cost_hat": cost_hat, **random_trial(rng(2), users, 3)}


def feed(metric, data, batches):
    for rows, positions in batches:
        metric.update(**{k: x[rows] for k, x in data.items()}, row=positions)
    return metric


def with_filling(shuffle_seed, share=slice(None)):
    """Batches of 16 in shuffled order; the last one is filled up, some rows come twice."""
    order = torch.randperm(200, generator=rng(shuffle_seed))[share]
    batches = [(rows, rows) for rows in order.split(16)]
    rows, _ = batches[-1]
    filled = torch.cat([rows, rows[:3]])
    batches[-1] = (filled, torch.cat([rows, torch.full((3,), -1)]))
    return [*batches, batches[0]]


@pytest.mark.parametrize(("normalization", "function"), [("hajek", eom_hajek), ("ipw", eom_ipw)])
def test_equals_the_function_whatever_the_batches(normalization, function):
    data = columns()
    expected = function(**data, budgets=BUDGETS).value
    results = [feed(ExpectedOutcome(BUDGETS, normalization), data, with_filling(seed)).compute() for seed in (1, 2)]
    assert list(results[0]) == [f"eom_{normalization}/0.2", f"eom_{normalization}/0.45", f"eom_{normalization}/mean"]
    torch.testing.assert_close(torch.stack(list(results[0].values())), torch.cat([expected, expected.mean()[None]]))
    assert results[0] == results[1]  # to the last bit: rows are put in one order


def test_reset_pickle_and_forward():
    data = columns()
    metric = feed(ExpectedOutcome(BUDGETS), data, with_filling(1))
    before = metric.compute()
    assert pickle.loads(pickle.dumps(metric)).compute() == before
    metric.reset()
    on_batch = metric(**data, row=torch.arange(200))
    assert on_batch == before
    assert metric.compute() == before


def test_bad_input():
    with pytest.raises(InputError, match="above 0"):
        ExpectedOutcome([0.0])
    with pytest.raises(InputError, match="six digits"):
        ExpectedOutcome([1.0, 1.00000001])
    with pytest.raises(InputError, match="hajek or ipw"):
        ExpectedOutcome([1.0], normalization="mean")  # type: ignore[arg-type]
    only_filling = ExpectedOutcome([1.0])
    only_filling.update(**columns(), row=torch.full((200,), -1))
    with pytest.raises(InputError, match="at least 1"):
        only_filling.compute()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(InputError, match="0 rows"):
        ExpectedOutcome([1.0]).compute()


def _rank(rank, address, results):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    share = slice(90) if rank == 0 else slice(77, None)  # uneven, with common rows
    metric = feed(ExpectedOutcome(BUDGETS), columns(), with_filling(7, share))
    alone = ExpectedOutcome(BUDGETS)
    if rank == 1:
        feed(alone, columns(), with_filling(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # computed before any update
        torch.save([metric.compute(), alone.compute()], f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_same_to_the_last_bit(tmp_path):
    expected = feed(ExpectedOutcome(BUDGETS), columns(), with_filling(1)).compute()
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=2, start_method="forkserver")
    for rank in range(2):
        # The second metric had all its rows on one rank and none on the other.
        assert torch.load(tmp_path / f"{rank}.pt") == [expected, expected]
