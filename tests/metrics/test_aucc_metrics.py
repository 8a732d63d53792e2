"""AUCC, AUUC, Qini and calibration collected over batches and processes."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from metrics_reference import predictions, random_trial, rng

from lightning_budget.errors import InputError
from lightning_budget.metrics.aucc import AUCC
from lightning_budget.metrics.calibration import BinnedCalibration
from lightning_budget.metrics.functional.aucc import aucc
from lightning_budget.metrics.functional.calibration import calibration_of, calibration_sums
from lightning_budget.metrics.functional.uplift_curve import auuc, qini
from lightning_budget.metrics.uplift import AUUC, Qini

EDGES = [-1.0, 0.0, 1.5]


def columns(users=200):
    trial = random_trial(rng(2), users, 3)
    cost = trial["cost"] + trial["treatment"]
    weight = torch.randint(1, 4, (users,), generator=rng(4))
    score = torch.randint(0, 9, (users,), generator=rng(3))
    shared = {"score": score, "treatment": trial["treatment"], "weight": weight}
    value = trial["value"] + trial["treatment"]
    prediction, _ = predictions(rng(1), users, 3, integers=False)
    return {
        "aucc": {**shared, "value": value, "cost": cost},
        "uplift": {**shared, "outcome": value},
        "calibration": {
            "prediction": prediction,
            "treatment": trial["treatment"],
            "outcome": value,
            "propensity": trial["propensity"],
            "weight": weight,
        },
    }


def collect(rows, size):
    """Results of all metrics over batches of the rows; the last batch is filled up, some rows come twice."""
    data = columns()
    metrics = {"aucc": AUCC(arm=2), "auuc": AUUC(arm=2), "qini": Qini(arm=2)}
    batches = [(batch, batch) for batch in rows.split(size)]
    filled = torch.cat([rows[-3:], rows[:3]])
    batches += [(filled, torch.cat([rows[-3:], torch.full((3,), -1)])), batches[0]]
    for batch, row in batches:
        for name, metric in metrics.items():
            of = data["aucc" if name == "aucc" else "uplift"]
            metric.update(**{k: x[batch] for k, x in of.items()}, row=row)
    sums = BinnedCalibration(EDGES, 3)
    for batch in rows.split(size):
        sums.update(**{k: x[batch] for k, x in data["calibration"].items()})
    return {name: metric.compute() for name, metric in metrics.items()}, sums.compute()


def expected():
    data = columns()
    area = {name: f(**data["uplift"], arm=2) for name, f in (("auuc", auuc), ("qini", qini))}
    areas = {name: {f"{name}/{part}": x for part, x in a._asdict().items()} for name, a in area.items()}
    sums = calibration_sums(**data["calibration"], edges=EDGES)
    return {"aucc": aucc(**data["aucc"], arm=2), **areas}, calibration_of(sums)


@pytest.mark.parametrize("size", [1, 16, 200])
def test_equals_the_functions_whatever_the_batches(size):
    exact, binned = collect(torch.randperm(200, generator=rng(size)), size)
    assert exact == expected()[0]  # to the last bit: rows are put in one order
    torch.testing.assert_close(binned, expected()[1], rtol=1e-12, atol=1e-12)


def test_without_weights_rows_count_once():
    data = columns()["uplift"]
    del data["weight"]
    metric = Qini(arm=1)
    metric.update(**data, row=torch.arange(200))
    assert metric.compute()["qini/area"] == qini(**data, arm=1).area
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()
    metric.reset()
    assert metric(**data, row=torch.arange(200)) == metric.compute()


def test_bad_input():
    data = columns()["aucc"]
    with pytest.raises(InputError, match="one length"):
        AUCC().update(**{**data, "value": torch.zeros(3)}, row=torch.arange(200))
    metric = AUCC()
    metric.update(**data, row=torch.arange(200))
    with pytest.raises(InputError, match="arm=… given"):
        metric.compute()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(InputError, match="0 rows in AUUC"):
        AUUC().compute()
    with pytest.raises(InputError, match="ascending"):
        BinnedCalibration([1.0, 0.0], 3)
    with pytest.raises(InputError, match=r"\[n, 2\]"):
        BinnedCalibration(EDGES, 2).update(**columns()["calibration"])


def _rank(rank, address, results):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    order = torch.randperm(200, generator=rng(7))
    share = order[:90] if rank == 0 else order[90:]  # uneven
    exact, binned = collect(share, 16)
    torch.save((exact, tuple(binned)), f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_same(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=2, start_method="forkserver")
    exact, binned = expected()
    for rank in range(2):
        ours, sums = torch.load(tmp_path / f"{rank}.pt")
        assert ours == exact
        torch.testing.assert_close(sums, tuple(binned), rtol=1e-12, atol=1e-12)
