"""Responses and losses of learners against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learner_cases import build, encoded, shaken, trial
from torch import Tensor, nn

from lightning_budget.models.backbones import ArmLinear, CrossLayers, dcn_v2
from lightning_budget.models.descn import DESCN
from lightning_budget.models.dragonnet import DragonNet
from lightning_budget.models.heads import ArmHeads, DoseHeads
from lightning_budget.models.responses import RESPONSES, ZILN, Funnel, Monotone, Start
from lightning_budget.models.s_learner import SLearner


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_cross_layers_multiply_features() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    for rank in (0, 2):
        cross = CrossLayers(4, 2, rank)
        expected = x
        for layer in cross.layers:
            parts = list(layer) if isinstance(layer, nn.Sequential) else [layer]
            inner = expected
            for part in parts:
                inner = inner @ part.weight.T + part.bias  # type: ignore[operator, union-attr]
            expected = x * inner + expected
        torch.testing.assert_close(cross(x), expected)
    assert dcn_v2(4, [3])(x).shape == (5, 3)


def test_layers_of_arms_equal_separate_ones() -> None:
    torch.manual_seed(0)
    layer, heads, x = ArmLinear(3, 4, 2), ArmHeads(4, 3, 5, channels=2), torch.randn(3, 6, 4)
    assert not heads(x).any()
    nn.init.normal_(heads.out)
    nn.init.normal_(heads.bias)
    assert layer.weight.abs().max() <= 0.5
    out, raw = layer(x), heads(x)
    for j in range(3):
        torch.testing.assert_close(out[j], x[j] @ layer.weight[j] + layer.bias[j])
        h = nn.functional.silu(x[j] @ heads.hidden.weight[j] + heads.hidden.bias[j])
        torch.testing.assert_close(raw[:, j], h @ heads.out[j] + heads.bias[j])


@pytest.mark.parametrize("degree", [1, 3])
def test_heads_that_share_doses_are_polynomials_of_the_dose(degree: int) -> None:
    torch.manual_seed(0)
    heads, x = DoseHeads(4, 5, 3, 2, degree), torch.randn(6, 4)
    nn.init.normal_(heads.out)
    raw = heads(x)
    h = nn.functional.silu(heads.hidden(x))
    for j in range(5):
        torch.testing.assert_close(raw[:, j], sum((j / 4) ** r * (h @ heads.out[r]) for r in range(degree + 1)))
    # A polynomial of degree R has no differences of order R + 1.
    torch.testing.assert_close(raw.diff(n=degree + 1, dim=1), torch.zeros(6, 4 - degree, 2), rtol=0, atol=1e-4)


def test_an_s_learner_evaluates_all_arms_as_it_would_each() -> None:
    model, batch = shaken(build("s_learner", value_head="ziln")), trial(7)
    assert isinstance(model, SLearner)
    with torch.no_grad():
        features = encoded(model, batch)
        together = model.raw(features)
        for j in range(3):
            x = model.trunk(torch.cat([features, model.arm[j].expand(7, -1)], 1))
            torch.testing.assert_close(together["value"][:, j], model.value_head(x))
            torch.testing.assert_close(together["cost"][:, j], model.cost_head(x))


def test_ziln_mean_and_likelihood() -> None:
    generator = np.random.default_rng(0)
    raw, mean, scale = generator.normal(size=(200, 3)), np.full(200, 0.7), 2.5
    observed = np.where(generator.random(200) < 0.4, generator.lognormal(size=200), 0.0)
    response = ZILN("value", "continuous", scale)
    given = torch.tensor(raw), Start(torch.tensor(mean), torch.full((200,), 0.3))
    logit, mu, sigma = (x.numpy() for x in response.moments(*given))
    p = sigmoid(logit)
    np.testing.assert_allclose(response(*given).numpy(), p * scale * np.exp(mu + sigma**2 / 2), rtol=1e-6)
    # The density of a log-normal of log(scale) + μ, up to the unit that y is measured in.
    z = (np.log(np.where(observed > 0, observed, 1) / scale) - mu) / sigma
    positive = (
        np.log(p) - np.log(sigma * math.sqrt(2 * math.pi)) - z**2 / 2 - np.log(np.maximum(observed, 1e-9) / scale)
    )
    expected = -np.where(observed > 0, positive, np.log(1 - p))
    np.testing.assert_allclose(response.losses(*given, torch.tensor(observed)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_ziln_stays_finite_far_out() -> None:
    response = ZILN("value", "continuous", 1e4)
    raw = torch.tensor([[x, y, z] for x in (-90.0, 90.0) for y in (-90.0, 90.0) for z in (-90.0, 90.0)])
    raw.requires_grad_()
    for observed in (0.0, 1e-3, 1e6):
        start = Start(torch.full((8,), 3.0), torch.full((8,), 0.2))
        value = response(raw, start)
        loss = response.losses(raw, start, torch.full((8,), observed))
        (gradient,) = torch.autograd.grad(value.sum() / 1e9 + loss.sum(), raw)
        assert value.isfinite().all()
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("outcome", ["value", "cost"])
def test_funnel_is_conversion_times_its_size(outcome: str) -> None:
    torch.manual_seed(0)
    raw, start, scale = torch.randn(50, 2), Start(torch.full((50,), 0.8), torch.full((50,), 0.4)), 1.5
    observed = torch.where(torch.rand(50) < 0.5, 3 * torch.rand(50), 0.0)
    response = Funnel(outcome, "continuous", scale)
    logit, log = (x.double().numpy() for x in response.parts(raw, start))
    p, y, size = sigmoid(logit), observed.double().numpy(), scale * np.exp(log)
    np.testing.assert_allclose(response(raw, start).numpy(), p * size, rtol=1e-5)
    expected = [
        -math.log(p[i]) + y[i] / size[i] - math.log(y[i] / size[i]) - 1 if y[i] > 0 else -math.log(1 - p[i])
        for i in range(50)
    ]
    np.testing.assert_allclose(response.losses(raw, start, observed).numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("outcome", ["value", "cost"])
@pytest.mark.parametrize("kind", ["continuous", "binary"])
def test_monotone_rises_with_the_dose(outcome: str, kind: str) -> None:
    torch.manual_seed(0)
    response = Monotone(outcome, kind, 1.0 if kind == "binary" else 3.0)  # type: ignore[arg-type]
    mean = torch.tensor([0.1, 0.3, 0.35, 0.8])
    start = Start(mean, torch.ones(4))
    torch.testing.assert_close(response(torch.zeros(2, 4, 1), start), mean.expand(2, -1), rtol=1e-4, atol=1e-4)
    raw = 4 * torch.randn(300, 4, 1)
    out = response(raw, start)
    assert (out.diff(dim=1) >= 0).all()
    assert out.diff(dim=1).std() > 0.01
    # An arm's raw output moves it and all above it by as much, and none below.
    moved = response(raw + torch.tensor([0, 0, 1.0, 0]).unsqueeze(1), start) - out
    assert not moved[:, :2].any()
    if kind == "continuous":
        torch.testing.assert_close(moved[:, 2], moved[:, 3], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", RESPONSES)
def test_raw_outputs_of_other_rows_and_arms_are_left_alone(name: str) -> None:
    response = RESPONSES[name]("value", "continuous", 2.0)
    raw = torch.randn(4, 3, response.channels, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        response(raw, Start(torch.tensor([0.1, 0.2, 0.4]), torch.full((3,), 0.2)))[2, 1], raw
    )
    touched = gradient.abs().sum(2) > 0
    assert touched[2, 1]
    assert not touched[[0, 1, 3]].any()
    assert bool(touched[2, 0]) == response.ordered
    assert not touched[2, 2]


def outcomes(batch: object) -> tuple[tuple[str, np.ndarray], ...]:
    return tuple((o, getattr(batch, o).double().numpy()) for o in ("value", "cost"))


def test_dragonnet_s_losses_row_by_row() -> None:
    model, batch = shaken(build("dragonnet", propensity_weight=0.3, targeted_weight=0.7)), trial(11)
    assert isinstance(model, DragonNet)
    with torch.no_grad():
        output = model.outputs(batch.dense, batch.sparse)
        found = model.extra_losses(batch, output)
    logits, t = output.extra["propensity"].double().numpy(), batch.treatment.tolist()
    for i in range(11):
        e = np.exp(logits[i] - logits[i].max())
        targeted = 0.0
        for name, y in outcomes(batch):
            predicted = float(getattr(output.prediction, name)[i, t[i]])
            epsilon = float(getattr(model, f"{name}_epsilon").detach()[t[i]])
            moved = predicted + epsilon / float(batch.propensity[i])
            targeted += ((y[i] - moved) / getattr(model, f"{name}_scale")) ** 2
        assert float(found["propensity_loss"][i]) == pytest.approx(-0.3 * math.log(e[t[i]] / e.sum()), rel=1e-4)
        assert float(found["targeted_loss"][i]) == pytest.approx(0.7 * targeted, rel=1e-4)


def test_the_best_epsilons_leave_no_weighted_residual() -> None:
    model, batch = shaken(build("dragonnet")), trial(60)
    optimizer = torch.optim.LBFGS([model.value_epsilon, model.cost_epsilon], max_iter=60, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model.extra_losses(batch, model.outputs(batch.dense, batch.sparse))["targeted_loss"].mean()
        loss.backward()
        return loss

    optimizer.step(step)  # type: ignore[arg-type]
    with torch.no_grad():
        prediction = model(batch.dense, batch.sparse)
    t = batch.treatment
    moved = prediction.value.gather(1, t.unsqueeze(1)).squeeze(1) + model.value_epsilon[t] / batch.propensity
    residual = ((batch.value - moved) / batch.propensity).detach()
    sums = torch.zeros(3).index_add_(0, t, residual)
    assert sums.abs().max() < 1e-3 * residual.abs().sum()


@pytest.mark.parametrize("kind", ["continuous", "binary"])
def test_descn_s_losses_row_by_row(kind: str) -> None:
    weights = {"propensity_weight": 0.2, "entire_space_weight": 0.3, "cross_weight": 0.4}
    model, batch = shaken(build("descn", schema={"value_kind": kind}, **weights)), trial(9)
    assert isinstance(model, DESCN)
    if kind == "binary":
        batch.value.copy_(batch.value > 2)
        model.value_scale = 1.0
    with torch.no_grad():
        output = model.outputs(batch.dense, batch.sparse)
        found = model.extra_losses(batch, output)
    logits, t = output.extra["propensity"].double().numpy(), batch.treatment.tolist()

    def loss(predicted: float, observed: float, name: str) -> float:
        if name == "value" and kind == "binary":
            p = min(max(predicted, 1e-6), 1 - 1e-6)
            return -(observed * math.log(p) + (1 - observed) * math.log(1 - p))
        return ((predicted - observed) / getattr(model, f"{name}_scale")) ** 2

    for i in range(9):
        share = np.exp(logits[i] - logits[i].max())
        share /= share.sum()
        entire = cross = 0.0
        for name, y in outcomes(batch):
            mu = getattr(output.prediction, name)[i].tolist()
            entire += sum(loss(share[j] * mu[j], y[i] * (t[i] == j), name) for j in range(3))
            raw, effect = output.extra[name][i, :, 0], output.extra[f"{name}_effect"][i, :, 0]
            mean, scale = getattr(model, f"{name}_mean"), getattr(model, f"{name}_scale")
            link = getattr(model, f"{name}_response").link
            if t[i]:
                cross += loss(float(link(raw[0] + effect[t[i]], mean[t[i]], scale)), y[i], name)
            else:
                back = [loss(float(link(raw[j] - effect[j], mean[0], scale)), y[i], name) for j in (1, 2)]
                cross += sum(back) / 2
        assert float(found["propensity_loss"][i]) == pytest.approx(-0.2 * math.log(share[t[i]]), rel=1e-4)
        assert float(found["entire_space_loss"][i]) == pytest.approx(0.3 * entire, rel=1e-3)
        assert float(found["cross_loss"][i]) == pytest.approx(0.4 * cross, rel=1e-3)


def test_a_known_cost_has_no_loss_under_a_head_with_its_own() -> None:
    model = shaken(build("tarnet", schema={"known_cost": (0.0, None, None)}, cost_head="funnel"))
    batch = trial(40)
    losses = model.cost_losses(batch, model.outputs(batch.dense, batch.sparse))
    assert losses is not None
    assert not losses[batch.treatment == 0].any()
    assert losses[batch.treatment > 0].all()
