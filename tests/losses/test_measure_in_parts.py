"""Chunks, slices and ranks measure what the whole data does, with every estimator."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import ESTIMATORS, Softmax, build_estimator
from lightning_budget.losses import measure
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.losses.measure import (
    ModelPrediction,
)
from tests.losses.goal_reference import SWITCHES, Rows, informative_trial


def assert_same(a: GoalState, b: GoalState) -> None:
    for name, x in a.tensors().items():
        torch.testing.assert_close(x, b.tensors()[name], rtol=1e-10, atol=1e-12, equal_nan=True, msg=name)


@pytest.mark.parametrize(("weighting", "baseline"), SWITCHES)
def test_chunks_and_parts_change_nothing(weighting: str, baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, prediction, model = informative_trial(500)
    form = GoalForm("dual", "mu", weighting, baseline)  # type: ignore[arg-type]
    term = BudgetRegularizer(Softmax(0.8), form)
    multipliers = torch.tensor([0.3, 1.0], dtype=torch.float64)
    whole = term.measure(prediction, batch, multipliers, model=model)
    assert not torch.equal(whole.rate, whole.multiplier)

    monkeypatch.setattr(measure, "CHUNK", 37)
    assert_same(whole, term.measure(prediction, batch, multipliers, model=model))

    def of_rows(cut: slice) -> ResponsePrediction:
        assert cut.stop - cut.start <= 37
        return ResponsePrediction(model.value[cut], model.cost[cut])

    assert_same(whole, term.measure(prediction, batch, multipliers, model=of_rows))

    ranks = [slice(a, b) for a, b in pairwise([0, 120, 121, 500])]
    assert_same(whole, parts_in_step(term, prediction, batch, multipliers, of_rows, ranks))


def parts_in_step(
    term: BudgetRegularizer,
    prediction: ResponsePrediction,
    batch: Rows,
    multipliers: Tensor,
    model: ModelPrediction,
    ranks: list[slice],
) -> GoalState:
    """Each rank in a thread of its own; ``reduce`` waits for all of them, as a collective does."""
    barrier = threading.Barrier(len(ranks))
    slots: list[Tensor | None] = [None] * len(ranks)
    out: list[GoalState | None] = [None] * len(ranks)

    def run(rank: int) -> None:
        def reduce(x: Tensor) -> Tensor:
            slots[rank] = x.clone()
            barrier.wait(20)
            total = torch.stack([s for s in slots if s is not None]).sum(0)
            barrier.wait(20)
            return total

        out[rank] = term.measure(prediction, batch, multipliers, model=model, part=ranks[rank], reduce=reduce)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, *others = out
    assert first is not None
    for other in others:
        assert other is not None
        assert_same(first, other)
    return first


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_measures_every_weighting(name: str) -> None:
    batch, prediction, model = informative_trial(300)
    estimator = build_estimator({"name": name})
    multipliers = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    for weighting, baseline in SWITCHES:
        form = GoalForm("dual", "mu", weighting, baseline)  # type: ignore[arg-type]
        g = torch.Generator().manual_seed(4)
        state = BudgetRegularizer(estimator, form).measure(prediction, batch, multipliers, model=model, generator=g)
        assert all(bool(x.isfinite().all()) for key, x in state.tensors().items() if key != "budget")
        assert float(state.rate[0]) == 0
        assert (state.rate[1:] > 0).all()
        g.manual_seed(4)
        again = BudgetRegularizer(estimator, form).measure(prediction, batch, multipliers, model=model, generator=g)
        assert_same(state, again)
