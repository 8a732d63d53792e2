"""The prediction loss against a loop, under any split of the batch, and against the full-data formula."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_trials import random_batch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.losses.response import outcome_loss, response_losses
from lightning_budget.schema import Outcome

KINDS: list[Outcome] = ["continuous", "binary"]


def trial(
    rows: int, treatments: int, seed: int, value_kind: Outcome, cost_kind: Outcome
) -> tuple[RCTBatch, ResponsePrediction, Tensor]:
    """A batch, predictions for it and arm shares that are not those of the batch."""
    batch, g = random_batch(rows, treatments, seed), torch.Generator().manual_seed(seed + 100)
    if value_kind == "binary":
        batch = replace(batch, value=(batch.value > 2).float())
    if cost_kind == "binary":
        batch = replace(batch, cost=(batch.cost > 0.5).float())
    prediction = ResponsePrediction(
        torch.rand(rows, treatments, generator=g, requires_grad=True),
        torch.rand(rows, treatments, generator=g, requires_grad=True),
    )
    share = 0.1 + torch.rand(treatments, generator=g)
    return batch, prediction, share / share.sum()


def by_hand(predicted: float, observed: float, kind: Outcome, scale: float) -> float:
    if kind == "binary":
        return -math.log(predicted if observed else 1 - predicted)
    return ((predicted - observed) / scale) ** 2


def loss(batch: RCTBatch, prediction: ResponsePrediction, share: Tensor, value: Outcome, cost: Outcome) -> Tensor:
    return response_losses(batch, prediction, share, value, cost, value_scale=2.5, cost_scale=0.4).mean()


@pytest.mark.parametrize("value_kind", KINDS)
@pytest.mark.parametrize("cost_kind", KINDS)
@pytest.mark.parametrize(("rows", "treatments"), [(1, 2), (40, 3), (40, 8)])
def test_equals_a_loop(rows: int, treatments: int, value_kind: Outcome, cost_kind: Outcome) -> None:
    batch, prediction, share = trial(rows, treatments, rows, value_kind, cost_kind)
    total = 0.0
    for i in range(rows):
        t = int(batch.treatment[i])
        error = by_hand(float(prediction.value[i, t]), float(batch.value[i]), value_kind, 2.5)
        error += by_hand(float(prediction.cost[i, t]), float(batch.cost[i]), cost_kind, 0.4)
        total += error / (treatments * float(share[t]))
    actual = loss(batch, prediction, share, value_kind, cost_kind)
    assert actual.item() == pytest.approx(total / rows, rel=1e-5)


def test_only_the_arm_given_learns() -> None:
    batch, prediction, share = trial(30, 4, 0, "continuous", "binary")
    loss(batch, prediction, share, "continuous", "binary").backward()
    for x in (prediction.value, prediction.cost):
        assert x.grad is not None
        assert torch.equal(x.grad != 0, torch.nn.functional.one_hot(batch.treatment, 4).bool())


@given(rows=st.integers(1, 30), cuts=st.lists(st.integers(0, 30), max_size=3), seed=st.integers(0, 5))
def test_shards_weighted_by_their_rows_add_up(rows: int, cuts: list[int], seed: int) -> None:
    batch, prediction, share = trial(rows, 3, seed, "continuous", "binary")
    edges = sorted({0, rows, *[c for c in cuts if c < rows]})
    parts = 0.0
    for a, b in pairwise(edges):
        part = ResponsePrediction(prediction.value[a:b], prediction.cost[a:b])
        parts += (b - a) / rows * loss(batch[a:b], part, share, "continuous", "binary").item()
    assert parts == pytest.approx(loss(batch, prediction, share, "continuous", "binary").item(), rel=1e-4)


@pytest.mark.parametrize("treatments", [2, 5])
def test_on_all_the_data_it_is_the_mean_of_the_means_within_arms(treatments: int) -> None:
    batch, prediction, _ = trial(300, treatments, 1, "continuous", "continuous")
    share = torch.bincount(batch.treatment, minlength=treatments) / 300
    expected = 0.0
    for j in range(treatments):
        rows = batch.treatment == j
        value = ((prediction.value[rows, j] - batch.value[rows]) / 2.5).square().mean()
        cost = ((prediction.cost[rows, j] - batch.cost[rows]) / 0.4).square().mean()
        expected += float(value + cost) / treatments
    assert loss(batch, prediction, share, "continuous", "continuous").item() == pytest.approx(expected, rel=1e-5)


def test_mini_batches_are_unbiased() -> None:
    # Every row once in 60 batches of 5: their mean is the full loss whatever arms fall into a batch.
    batch, prediction, _ = trial(300, 3, 2, "continuous", "binary")
    share = torch.bincount(batch.treatment, minlength=3) / 300
    parts = []
    for a in range(0, 300, 5):
        part = ResponsePrediction(prediction.value[a : a + 5], prediction.cost[a : a + 5])
        parts.append(loss(batch[a : a + 5], part, share, "continuous", "binary"))
    assert len({int(batch[a : a + 5].treatment.unique().numel()) for a in range(0, 300, 5)}) > 1
    whole = loss(batch, prediction, share, "continuous", "binary")
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_certain_probabilities_that_fail_cost_much_but_not_infinity() -> None:
    predicted = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    losses = outcome_loss(predicted, torch.tensor([1.0, 0.0, 0.0, 1.0]), "binary", 1.0)
    assert (losses[:2] > 10).all()
    assert (losses[:2] < 20).all()
    assert (losses[2:] < 1e-5).all()
    losses.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_scale_is_the_unit_of_the_error() -> None:
    x, y = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0])
    assert outcome_loss(x, y, "continuous", 2.0).tolist() == [1.0, 2.25]
    # Currency in cents instead of dollars changes nothing.
    torch.testing.assert_close(outcome_loss(100 * x, 100 * y, "continuous", 200.0), torch.tensor([1.0, 2.25]))
