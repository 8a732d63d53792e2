from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from metrics_reference import random_trial, rng
from scipy import stats

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.increments import increments

FIELDS = ("value", "value_error", "cost", "cost_error", "roi", "roi_low", "roi_high")


def problem(rows=600, arms=3):
    trial = random_trial(rng(1), rows, arms)
    return {**trial, "value": trial["value"] + trial["treatment"], "cost": trial["cost"] + 0.5 * trial["treatment"]}


def close(a, b, rtol=1e-12):
    for field in FIELDS:
        torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=rtol, atol=0)


def test_equal_propensities_give_the_comparison_of_two_means():
    data = {**problem(), "propensity": torch.full((600,), 1 / 3, dtype=torch.float64)}
    result = increments(**data, num_treatments=3)
    y = {k: [data[k].numpy()[data["treatment"].numpy() == j] for j in range(3)] for k in ("value", "cost")}
    for arm in (1, 2):
        for name in ("value", "cost"):
            gain = y[name][arm].mean() - y[name][0].mean()
            welch = math.sqrt(sum(y[name][j].var(ddof=1) / len(y[name][j]) for j in (0, arm)))
            assert float(getattr(result, name)[arm - 1]) == pytest.approx(gain, rel=1e-12)
            assert float(getattr(result, f"{name}_error")[arm - 1]) == pytest.approx(welch, rel=1e-12)
        assert float(result.roi[arm - 1]) == pytest.approx(float(result.value[arm - 1] / result.cost[arm - 1]))


def test_ends_of_the_interval_solve_fieller():
    data = {**problem(), "propensity": torch.full((600,), 1 / 3, dtype=torch.float64)}
    result = increments(**data, num_treatments=3, level=0.9)
    z = stats.norm.ppf(0.95)
    for arm in (1, 2):
        for end in (float(result.roi_low[arm - 1]), float(result.roi_high[arm - 1])):
            # The test of Δv − ρ Δc = 0 is just at its threshold.
            rest = {**data, "value": data["value"] - end * data["cost"]}
            at_end = increments(**rest, num_treatments=3)
            assert abs(float(at_end.value[arm - 1] / at_end.value_error[arm - 1])) == pytest.approx(z, rel=1e-9)
        assert result.roi_low[arm - 1] < result.roi[arm - 1] < result.roi_high[arm - 1]


def test_certain_cost_gives_the_delta_interval():
    data = problem()
    data["cost"] = 2.0 * data["treatment"].double()
    result = increments(**data, num_treatments=3)
    for arm in (1, 2):
        assert float(result.cost_error[arm - 1]) == 0
        half = 1.959963984540054 * float(result.value_error[arm - 1]) / (2.0 * arm)
        assert float(result.roi_high[arm - 1] - result.roi[arm - 1]) == pytest.approx(half, rel=1e-9)
        assert float(result.roi[arm - 1] - result.roi_low[arm - 1]) == pytest.approx(half, rel=1e-9)


def test_noisy_cost_bounds_nothing():
    data = problem()
    data["cost"] = torch.randn(600, generator=rng(3), dtype=torch.float64)
    result = increments(**data, num_treatments=3)
    assert float((result.cost / result.cost_error).abs().max()) < 1.9
    assert result.roi_low.tolist() == [-math.inf] * 2
    assert result.roi_high.tolist() == [math.inf] * 2


def test_intervals_cover():
    # Value and cost share noise; their expected ratio is 2; about one arm in six users; heterogeneous propensities.
    g, hits, scores = rng(7), 0, []
    for _ in range(400):
        probability = 0.3 + 0.4 * torch.rand(300, generator=g, dtype=torch.float64)
        treatment = (torch.rand(300, generator=g) < probability).long()
        x, noise = torch.randn(2, 300, generator=g, dtype=torch.float64)
        cost = probability + noise + 0.5 * treatment
        value = probability + x + noise + 1.0 * treatment
        propensity = torch.where(treatment == 1, probability, 1 - probability)
        result = increments(treatment, value, cost, propensity, 2)
        hits += int(result.roi_low <= 2 <= result.roi_high)
        scores.append(float((result.value - 1.0) / result.value_error))
    assert abs(hits / 400 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 400)
    assert np.std(scores) == pytest.approx(1, abs=3 / math.sqrt(800))
    assert abs(np.mean(scores)) < 3 / math.sqrt(400)


def test_order_of_rows_and_weights():
    data = problem()
    weight = torch.randint(0, 4, (600,), generator=rng(3))
    user = torch.randint(0, 100, (600,), generator=rng(4))
    order = torch.randperm(600, generator=rng(5))
    twice = torch.repeat_interleave(torch.arange(600), weight)
    for users in (None, user):
        expected = increments(**data, num_treatments=3, weight=weight, user=users)
        for rows, weights in ((order, weight[order]), (twice, None)):
            picked = {k: x[rows] for k, x in data.items()}
            by = None if users is None else users[rows]
            close(increments(**picked, num_treatments=3, weight=weights, user=by), expected)


def test_users():
    data = problem()
    alone = increments(**data, num_treatments=3, user=torch.randperm(600, generator=rng(1)) - 300)
    close(increments(**data, num_treatments=3), alone)
    # Every row twice under its user: the same evidence as once.
    twice = {k: x.repeat(2) for k, x in data.items()}
    close(increments(**twice, num_treatments=3, user=torch.arange(600).repeat(2)), alone)
    # A user's rows in both arms, alike but for the effect: what users have in common cancels.
    g = rng(8)
    common = 5 * torch.randn(300, generator=g, dtype=torch.float64)
    value = torch.cat([common, common + 1 + 0.1 * torch.randn(300, generator=g, dtype=torch.float64)])
    treatment, user = torch.tensor([0, 1]).repeat_interleave(300), torch.arange(300).repeat(2)
    paired = increments(treatment, value, treatment.double(), torch.full((600,), 0.5), 2, user=user)
    expected = (value[300:] - value[:300]).std() / math.sqrt(300)
    torch.testing.assert_close(paired.value_error[0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.full((60,), torch.nan)}, "60 entries of value"),
        ({"treatment": torch.full((60,), 3)}, "3 to 3"),
        ({"treatment": torch.zeros(60, dtype=torch.long)}, r"\[1, 2\] have fewer than 2"),
        ({"propensity": torch.zeros(60)}, "above 0, at most 1"),
        ({"weight": -torch.ones(60)}, "60 weights are negative"),
        ({"user": torch.zeros(60)}, "int64"),
        ({"user": torch.zeros(60, dtype=torch.long)}, "fewer than 2 rows or users"),
        ({"level": 1.0}, "level=1"),
        ({"num_treatments": 1}, "at least 2"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(InputError, match=message) as error:
        increments(**{**problem(60), "num_treatments": 3, **change})
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_cuda_gives_the_same():
    data, user = problem(), torch.randint(0, 100, (600,), generator=rng(4))
    on_gpu = increments(**{k: x.cuda() for k, x in data.items()}, num_treatments=3, user=user.cuda())
    expected = increments(**data, num_treatments=3, user=user)
    for field in FIELDS:
        torch.testing.assert_close(getattr(on_gpu, field).cpu(), getattr(expected, field), rtol=1e-9, atol=0)
