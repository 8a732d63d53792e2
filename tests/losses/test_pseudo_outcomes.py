"""Two-step fits against loops, and that their pseudo-outcomes have the effects as their means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_trials import CATEGORIES, random_schema, random_statistics, random_table
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.losses.cross_fitting import cross_fit
from lightning_budget.losses.pseudo_outcomes import (
    PseudoOutcomes,
    TwoStep,
    doubly_robust_effects,
    imputed_effects,
    two_step_losses,
)

ARMS = 3
SHARE = torch.tensor([0.5, 0.3, 0.2])
METHODS: tuple[TwoStep, ...] = ("dr", "x")


def trial(n: int = 300, seed: int = 0, weights: bool = False) -> tuple[RCTBatch, ResponsePrediction, Tensor]:
    """Rows, a first step that has nothing to do with them, and true means ``[n, K]`` of value; cost's are half."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, generator=g)
    probability = torch.softmax(torch.cat([x, 1 - x, 0.5 * x], 1), 1)
    arm = torch.multinomial(probability, 1, generator=g).squeeze(1)
    mean = x + torch.tensor([0.0, 1.0, 2.0]) * (1 + x)
    truth = mean.gather(1, arm.unsqueeze(1)).squeeze(1)
    noise = torch.randn(2, n, generator=g)
    p = probability.gather(1, arm.unsqueeze(1)).squeeze(1)
    weight = torch.randint(4, (n,), generator=g).float() if weights else None
    batch = RCTBatch(x, None, arm, truth + noise[0], truth / 2 + noise[1], p, torch.arange(n), weight=weight)
    model = torch.sin(5 * x + torch.arange(ARMS))
    return batch, ResponsePrediction(model, 1 - model), mean


def effects_of(method: TwoStep, batch: RCTBatch, model: ResponsePrediction) -> PseudoOutcomes:
    return doubly_robust_effects(batch, model) if method == "dr" else imputed_effects(batch, model, SHARE)


def losses_of(method: TwoStep, batch: RCTBatch, prediction: ResponsePrediction, model: ResponsePrediction) -> Tensor:
    mean = 1.0 if batch.weight is None else float(batch.weight.mean())
    return two_step_losses(batch, prediction, model, method, SHARE, "continuous", "continuous", 2.0, 0.5, mean)


def test_doubly_robust_effects_are_right_on_average_whatever_the_first_step_says() -> None:
    batch, model, mean = trial(40_000)
    found = doubly_robust_effects(batch, model)
    effect = mean[:, 1:] - mean[:, :1]
    for error in (found.value - effect, found.cost - effect / 2):
        for part in (batch.dense[:, 0] < 0.5, batch.dense[:, 0] >= 0.5):
            some = error[part]
            z = some.mean(0) / (some.std(0) / len(some) ** 0.5)
            assert z.abs().max() < 4
    # The same first step taken for the truth is far off.
    assert (model.value.diff(dim=1) - mean.diff(dim=1)).mean(0).abs().min() > 0.5
    assert (found.weight == 1).all()


def test_effects_equal_a_loop() -> None:
    batch, model, _ = trial()
    t, p = batch.treatment.tolist(), batch.propensity.tolist()
    for name in ("value", "cost"):
        y, m = getattr(batch, name).tolist(), getattr(model, name).tolist()
        dr, x, weight = (np.zeros((len(t), ARMS - 1)) for _ in range(3))
        for i, k in enumerate(t):
            level = [m[i][j] + (k == j) * (y[i] - m[i][j]) / p[i] for j in range(ARMS)]
            for j in range(1, ARMS):
                g = float(SHARE[j] / (SHARE[j] + SHARE[0]))
                dr[i, j - 1] = level[j] - level[0]
                if k in (0, j):
                    x[i, j - 1] = y[i] - m[i][0] if k else m[i][j] - y[i]
                    weight[i, j - 1] = (1 - g if k else g) / p[i]
        np.testing.assert_allclose(getattr(effects_of("dr", batch, model), name), dr, rtol=1e-4, atol=1e-5)
        found = effects_of("x", batch, model)
        np.testing.assert_allclose(getattr(found, name), x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.weight, weight, rtol=1e-5)


def test_imputed_effects_are_fitted_by_the_x_learners_blend() -> None:
    # One x: as many rows of each arm as its propensity says, which is not the share in the whole data.
    times, y = torch.tensor([2, 5, 3]), torch.tensor([1.0, 4.0, 2.5])
    arm = torch.arange(ARMS).repeat_interleave(times)
    p = (times / 10)[arm]
    batch = RCTBatch(torch.zeros(10, 0), None, arm, y[arm], y[arm], p, torch.arange(10))
    m = torch.tensor([0.3, 2.0, 5.0])
    found = imputed_effects(batch, ResponsePrediction(m.expand(10, 3), m.expand(10, 3)), SHARE)
    fitted = (found.weight * found.value).sum(0) / found.weight.sum(0)
    g = SHARE[1:] / (SHARE[1:] + SHARE[0])
    torch.testing.assert_close(fitted, g * (m[1:] - y[0]) + (1 - g) * (y[1:] - m[0]))
    torch.testing.assert_close(found.weight.sum(0), torch.full((2,), 10.0))


@pytest.mark.parametrize("method", METHODS)
def test_losses_equal_numpy(method: TwoStep) -> None:
    batch, model, mean = trial(weights=True)
    prediction = ResponsePrediction(mean + 0.3, mean / 3)
    effects, w = effects_of(method, batch, model), np.asarray(batch.weight)
    expected = np.zeros(300)
    for name, scale in (("value", 2.0), ("cost", 0.5)):
        y, f, psi = (np.asarray(getattr(x, name), dtype=float) for x in (batch, prediction, effects))
        control = (batch.treatment.numpy() == 0) / 0.5 * ((f[:, 0] - y) / scale) ** 2
        expected += control + (effects.weight.numpy() * ((f[:, 1:] - f[:, :1] - psi) / scale) ** 2).sum(1)
    np.testing.assert_allclose(losses_of(method, batch, prediction, model), w / w.mean() / 3 * expected, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_finite_differences_but_for_controls_level(method: TwoStep) -> None:
    batch, model, mean = trial(20)
    double = {n: getattr(batch, n).double() for n in ("value", "cost", "propensity")}
    batch, model = replace(batch, **double), ResponsePrediction(model.value.double(), model.cost.double())
    value, cost = (x.double().clone().requires_grad_() for x in (mean[:, 1:], mean[:, 1:] / 2))

    def loss(v: Tensor, c: Tensor) -> Tensor:
        level = mean[:, :1].double()
        return losses_of(method, batch, ResponsePrediction(torch.cat([level, v], 1), torch.cat([level, c], 1)), model)

    assert torch.autograd.gradcheck(loss, (value, cost))
    level = mean.clone().requires_grad_()
    losses_of(method, batch, ResponsePrediction(level, mean), model).sum().backward()
    assert level.grad is not None
    control = batch.treatment == 0
    expected = 2 * (mean[:, 0] - batch.value) / 4 / 3 / 0.5 * control
    torch.testing.assert_close(level.grad[:, 0], expected.float())


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_weight_w_counts_as_w_rows(method: TwoStep) -> None:
    batch, model, mean = trial(weights=True)
    assert batch.weight is not None
    times = batch.weight.long()
    names = ("dense", "treatment", "value", "cost", "propensity", "row")
    repeated = replace(batch, weight=None, **{n: getattr(batch, n).repeat_interleave(times, dim=0) for n in names})
    first = ResponsePrediction(model.value.repeat_interleave(times, 0), model.cost.repeat_interleave(times, 0))
    weighted = losses_of(method, batch, ResponsePrediction(mean, mean), model).mean()
    mean = mean.repeat_interleave(times, 0)
    plain = losses_of(method, repeated, ResponsePrediction(mean, mean), first).mean()
    torch.testing.assert_close(weighted, plain, rtol=1e-4, atol=0)


def test_the_first_step_says_of_other_tables_what_its_folds_say_on_average() -> None:
    table, other = random_table(300), random_table(50, seed=1).batch(torch.arange(50))
    fitted = cross_fit(table, random_schema(), random_statistics(), max_categories=CATEGORIES)
    each = [replace(fitted, fold=torch.full_like(fitted.fold, f)).predict(other) for f in range(5)]
    found = fitted.predict_others(other)
    torch.testing.assert_close(found.value, torch.stack([x.value for x in each]).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cost, torch.stack([x.cost for x in each]).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(each[0].value, each[1].value)
