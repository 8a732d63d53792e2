"""Direct methods against closed forms and loops: what they are least at, and what a batch may do to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch
from lightning_budget.losses.direct_ranking import Trial, arm_factor, ranking_loss, roi_losses, sides

SCALE = 5.0
REFERENCES = {2: {"control": (0, 0), "adjacent": (0, 0)}, 4: {"control": (0, 0, 0, 0), "adjacent": (0, 0, 3, 1)}}
"""Arms in the order of their cost: 0, 1, 3, 2."""
COST = torch.tensor([0.0, 1.0, 3.0, 2.0])


def rows(treatment: Tensor, value: Tensor, cost: Tensor, propensity: Tensor, weight: Tensor | None = None) -> RCTBatch:
    n = len(treatment)
    return RCTBatch(torch.zeros(n, 0), None, treatment, value, cost, propensity, torch.arange(n), weight=weight)


def trial_of(batch: RCTBatch, arms: int, **changes: float) -> Trial:
    mean = 1.0 if batch.weight is None else float(batch.weight.mean())
    factor = arm_factor(batch.treatment, batch.propensity, batch.weight, arms)
    return Trial(factor, **{"gain": 1.3, "cost_scale": 0.7, "weight_mean": mean, **changes})


def cells(arms: int, count: int = 6, seed: int = 0) -> tuple[RCTBatch, Tensor, Tensor, Tensor]:
    """Rows without noise, as many of each cell and arm as its propensity says, which differs between cells.

    Returns:
        Rows, their cell ``[n]``, and the cells' mean value and cost ``[C, K]``.
    """
    g = torch.Generator().manual_seed(seed)
    order = COST[:arms].argsort()
    step = (0.5 + torch.rand(count, arms, generator=g)) * (torch.arange(arms) > 0)
    returns = 0.3 + 4 * torch.rand(count, arms, generator=g)
    cost, value = (
        (torch.rand(count, 1, generator=g) + x.cumsum(1))[:, order.argsort()] for x in (step, step * returns)
    )
    times = torch.randint(1, 5, (count, arms), generator=g)
    cell, arm = (x.flatten() for x in torch.meshgrid(torch.arange(count), torch.arange(arms), indexing="ij"))
    cell, arm = (x.repeat_interleave(times.flatten()) for x in (cell, arm))
    propensity = (times / times.sum(1, keepdim=True))[cell, arm]
    return rows(arm, value[cell, arm], cost[cell, arm], propensity), cell, value, cost


def least(loss: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Where a smooth convex function of a tensor is least."""
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [x], max_iter=300, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        total = loss(x)
        total.backward()
        return total

    search.step(closure)
    return x.detach()


@pytest.mark.parametrize("pairs", ["control", "adjacent"])
@pytest.mark.parametrize("arms", [2, 4])
def test_the_minimiser_is_the_return_of_every_cell(arms: int, pairs: str) -> None:
    batch, cell, value, cost = cells(arms)
    reference = REFERENCES[arms][pairs]
    trial = trial_of(batch, arms)
    found = least(lambda s: roi_losses(batch, s[cell], reference, SCALE, trial).mean(), tuple(value.shape))
    below = list(reference)
    expected = (value - value[:, below]) / (cost - cost[:, below])
    assert expected[:, 1:].min() > 0.05
    assert expected[:, 1:].max() < 0.95 * SCALE
    torch.testing.assert_close(SCALE * torch.sigmoid(found[:, 1:]), expected[:, 1:].double(), rtol=2e-4, atol=0)
    assert (found[:, 0] == 0).all()


def noisy(n: int = 400, arms: int = 3, seed: int = 0, weights: bool = False) -> RCTBatch:
    g = torch.Generator().manual_seed(seed)
    arm = torch.randint(arms, (n,), generator=g)
    value, cost = (torch.rand(n, generator=g) * 3 * (0.5 + arm) for _ in range(2))
    weight = torch.randint(4, (n,), generator=g).float() if weights else None
    return rows(arm, value, cost, 0.2 + 0.6 * torch.rand(n, generator=g), weight)


def test_one_score_for_all_is_the_ratio_of_the_arms_differences() -> None:
    batch = noisy(arms=2)
    batch = replace(batch, propensity=torch.full_like(batch.value, 0.4))
    trial = trial_of(batch, 2)
    found = least(lambda s: roi_losses(batch, s.expand(400, 2), (0, 0), SCALE, trial).mean(), (2,))
    v, c = ([float(x[batch.treatment == j].mean()) for j in (0, 1)] for x in (batch.value, batch.cost))
    assert SCALE * float(torch.sigmoid(found[1])) == pytest.approx((v[1] - v[0]) / (c[1] - c[0]), rel=1e-4)


def test_convex_where_the_effect_on_cost_is_positive() -> None:
    batch, cell, value, _ = cells(4)
    trial = trial_of(batch, 4)
    point = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(s: Tensor) -> Tensor:
        return roi_losses(batch, s[cell], REFERENCES[4]["adjacent"], SCALE, trial).mean()

    hessian = torch.func.hessian(loss)(point)
    assert isinstance(hessian, Tensor)
    hessian = hessian.reshape(value.numel(), -1)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert eigenvalues.min() > -1e-7
    assert (eigenvalues > 1e-6).sum() == value.numel() - len(value)  # control has no score


@pytest.mark.parametrize("reference", [(0, 0, 0), (0, 0, 1), (0, 2, 0)])
def test_roi_losses_equal_a_loop(reference: tuple[int, ...]) -> None:
    batch = noisy(weights=True)
    batch = replace(batch, row=batch.row.where(batch.row % 7 > 0, -1))
    score = torch.randn(400, 3, generator=torch.Generator().manual_seed(2))
    trial = trial_of(batch, 3)
    t, y, c, p = (getattr(batch, n).numpy() for n in ("treatment", "value", "cost", "propensity"))
    w = np.asarray(batch.weight)
    expected = np.zeros(400)
    for i in range(400):
        size = w[i] / w.mean() / p[i] * w.sum() / (w / p)[t == t[i]].sum() * (i % 7 > 0)
        for j in (1, 2):
            q = 1 / (1 + np.exp(-float(score[i, j])))
            term = y[i] / SCALE * np.log(q / (1 - q)) + c[i] * np.log(1 - q)
            expected[i] += size / 2 / 0.7 * term * (int(t[i] == reference[j]) - int(t[i] == j))
    np.testing.assert_allclose(roi_losses(batch, score, reference, SCALE, trial), expected, rtol=1e-4, atol=1e-5)


def drm_by_loop(batch: RCTBatch, score: Tensor, gain: float, cost_scale: float) -> float:
    """The ratio over all (user, arm) pairs, arm by arm."""
    t, p, h = batch.treatment.numpy(), batch.propensity.numpy(), np.tanh(score.double().numpy() / 2)
    w = np.ones(len(t)) if batch.weight is None else np.asarray(batch.weight)
    total, sums = 0.0, np.zeros(2)
    for j in range(1, score.shape[1]):
        e, delta = np.exp(h[:, j]), []
        for y in (batch.value.numpy(), batch.cost.numpy()):
            mean = [(e * w / p * y)[t == a].sum() / (e * w / p)[t == a].sum() for a in (j, 0)]
            delta.append(mean[0] - mean[1])
        sums += (e * w).sum() * np.array(delta)
        total += (e * w).sum()
    value, cost = sums / total
    assert value > 0.1 * gain
    return cost / value * gain / cost_scale


@pytest.mark.parametrize("arms", [2, 3])
@pytest.mark.parametrize("weights", [False, True])
def test_ranking_loss_equals_a_loop(arms: int, weights: bool) -> None:
    batch = noisy(arms=arms, weights=weights)
    score = 2 * torch.randn(400, arms, generator=torch.Generator().manual_seed(3))
    expected = drm_by_loop(batch, score, 1.3, 0.7)
    assert float(ranking_loss(batch, score, trial_of(batch, arms))) == pytest.approx(expected, rel=1e-5)


def test_ranking_loss_raises_those_who_return_more_than_the_average() -> None:
    batch, cell, value, cost = cells(2)
    score = torch.zeros(value.shape, requires_grad=True)
    ranking_loss(batch, score[cell], trial_of(batch, 2)).backward()
    assert score.grad is not None
    count = torch.bincount(cell)
    v, c = value.diff(dim=1).squeeze(1), cost.diff(dim=1).squeeze(1)
    average = (v * count).sum() / (c * count).sum()
    assert ((v / c > average) == (score.grad[:, 1] < 0)).all()
    assert (v / c > average).any()
    assert (v / c < average).any()
    assert (score.grad[:, 0] == 0).all()


def test_batches_of_bad_luck_neither_blow_up_nor_turn_the_gradient() -> None:
    batch = noisy(arms=2)
    high = replace(batch, value=torch.where(batch.treatment == 1, 0.0, batch.value + 1))
    for luck in (batch, high):
        score = torch.zeros(400, 2, requires_grad=True)
        value = luck.value.clone().requires_grad_()
        loss = ranking_loss(replace(luck, value=value), score, trial_of(luck, 2))
        loss.backward()
        assert loss.isfinite()
        assert loss > 0
        assert value.grad is not None
        assert (value.grad[luck.treatment == 1] < 0).all()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_batch_without_an_arm_says_nothing_of_it(missing: int) -> None:
    batch = replace(noisy(arms=2), treatment=torch.full((400,), 1 - missing))
    score = torch.randn(400, 2, requires_grad=True)
    loss = ranking_loss(batch, score, Trial(torch.ones(2), 1.3, 0.7))
    loss.backward()
    assert loss == 0
    assert score.grad is not None
    assert (score.grad == 0).all()


@pytest.mark.parametrize("name", ["roi", "ranking"])
def test_gradients_equal_finite_differences(name: str) -> None:
    batch = noisy(30, weights=True)
    batch = replace(batch, **{n: getattr(batch, n).double() for n in ("value", "cost", "propensity", "weight")})
    trial = trial_of(batch, 3)
    score = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    if name == "ranking":
        assert torch.autograd.gradcheck(lambda s: ranking_loss(batch, s, trial), score)
    else:
        assert torch.autograd.gradcheck(lambda s: roi_losses(batch, s, (0, 0, 1), SCALE, trial), score)


@pytest.mark.parametrize("name", ["roi", "ranking"])
def test_a_row_of_weight_w_counts_as_w_rows(name: str) -> None:
    weighted = noisy(weights=True)
    assert weighted.weight is not None
    times = weighted.weight.long()
    columns = (weighted.treatment, weighted.value, weighted.cost, weighted.propensity)
    repeated = rows(*(x.repeat_interleave(times) for x in columns))
    score = torch.randn(400, 3, generator=torch.Generator().manual_seed(5))
    found = []
    for batch, s in ((weighted, score), (repeated, score.repeat_interleave(times, dim=0))):
        trial = trial_of(batch, 3)
        loss = (
            ranking_loss(batch, s, trial) if name == "ranking" else roi_losses(batch, s, (0, 0, 1), SCALE, trial).mean()
        )
        found.append(float(loss))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_sides_of_arms_that_are_their_own_reference() -> None:
    assert sides(torch.tensor([0, 1, 2]), (0, 0, 1)).tolist() == [[0, -1, 0], [0, 1, -1], [0, 0, 1]]
