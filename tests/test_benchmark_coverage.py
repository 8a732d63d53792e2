"""What ``benchmarks/evaluation.py`` and ``evaluation_coverage.py`` measure: truths, intervals and rivals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

# The benchmarks are scripts beside each other, not a package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from evaluation_intervals import CLOSED, NORMAL, PERCENTILE, Found, eom_readings, half_widths, simulate, truths
from evaluation_picture import draw
from evaluation_rivals import BLOCK, loop_by_arm, loop_by_row, loop_tuned
from evaluation_trial import AUCC_ARM, Population

from lightning_budget.metrics.functional import cost_curve, eom_ipw, matched_interval, paired_difference


@pytest.fixture(scope="module")
def population() -> Population:
    return Population.draw(4_000)


def test_a_trial_holds_all_rows_of_its_users_and_the_propensities_of_its_arms(population: Population) -> None:
    trial = population.trial(100, seed=3)
    for user in range(100):
        rows = trial.row[trial.user == user]
        start = int(np.searchsorted(population.first, int(rows[0]), side="right")) - 1
        assert rows.tolist() == list(range(population.first[start], population.first[start + 1]))
    given = torch.from_numpy(population.propensity)[trial.row].gather(1, trial.treatment[:, None])[:, 0]
    torch.testing.assert_close(trial.propensity, given, rtol=0, atol=0)
    assert bool((trial.cost[trial.treatment == 0] == 0).all())


def test_truth_is_what_very_many_rows_estimate(population: Population) -> None:
    trial = population.trial(150_000, seed=0)
    logged = (trial.treatment, trial.value, trial.cost, trial.propensity)
    for model in "ab":
        value, cost = (x[trial.row] for x in population.predictions[model])
        found = eom_ipw(value, cost, *logged, budgets=population.budgets).value
        torch.testing.assert_close(found, population.true_eom(model), rtol=0.03, atol=0)
    # The models are told apart, so that a mix-up would be seen.
    assert float(population.true_eom("a")[0] - population.true_eom("b")[0]) > 0.3


def test_true_aucc_is_the_mean_reward_at_each_share_of_the_cost(population: Population) -> None:
    for model in "ab":
        order = np.argsort(-population.scores[model].numpy())
        value, cost = (x.numpy()[order] for x in (population.true_value, population.true_cost))
        reward, spend = ((x[:, AUCC_ARM] - x[:, 0]).cumsum() for x in (value, cost))
        first = [int(np.argmax(spend >= spend[-1] * j / 200)) for j in range(1, 200)]
        expected = (reward[first].sum() / reward[-1] + 1) / 201
        assert population.true_aucc(model) == pytest.approx(expected, abs=2e-4)
    assert population.true_aucc("a") - population.true_aucc("b") > 0.04


def test_the_difference_is_that_of_the_library(population: Population) -> None:
    trial = population.trial(300, seed=5)
    a, b = (matched_interval(*(x[trial.row] for x in population.predictions[m]), trial.treatment) for m in "ab")
    logged = (trial.value, trial.cost, trial.propensity)
    theirs = paired_difference(a, b, trial.user, *logged, population.budgets, resamples=50, seed=9)
    readings = eom_readings(population, trial, resamples=50, seed=9)
    for name, estimate, low, high in (
        ("difference, 10 %", theirs.estimate[0], theirs.low[0], theirs.high[0]),
        ("difference, mean", theirs.mean, theirs.mean_low, theirs.mean_high),
    ):
        found, ends = readings[name]
        assert (found, *ends[PERCENTILE]) == pytest.approx((float(estimate), float(low), float(high)), rel=1e-9)


def test_coverage_bias_and_width_are_those_of_the_intervals() -> None:
    found = Found(1.0, [0.0, 2.0, 1.0, 3.0], {"x": [(0.0, 0.5), (0.5, 2.5), (1.0, 1.0), (2.0, 4.0)]})
    share, error = found.coverage("x")
    assert (share, error) == (0.5, pytest.approx(0.25))
    spread = float(np.std([0, 2, 1, 3], ddof=1))
    assert found.bias == pytest.approx(0.5 / spread)
    assert found.width("x") == pytest.approx((0.5 + 2 + 0 + 2) / 4 / (2 * 1.959964 * spread))


def test_a_few_trials_have_every_interval_and_a_picture(population: Population, tmp_path: Path) -> None:
    found = simulate(population, 400, range(12), resamples=40)
    assert set(found) == set(truths(population))
    for name, one in found.items():
        assert one.trials == 12
        assert set(one.ends) == {PERCENTILE, NORMAL} | ({CLOSED} if not name.startswith("AUCC") else set())
    # Of twelve intervals of a kind, all numbers together, hardly any miss.
    assert np.mean([one.coverage(kind)[0] for one in found.values() for kind in one.ends]) > 0.8
    widths = half_widths(population, (400, 6_400), 12, lambda: None)
    (few, wide), (many, narrow) = widths["EOM hajek, 30 %"]
    assert many / few == pytest.approx(16, rel=0.1)
    assert 2 < wide / narrow < 8
    draw(tmp_path / "coverage.png", found, widths, (0.93, 0.97))
    assert (tmp_path / "coverage.png").read_bytes().startswith(b"\x89PNG")


def test_all_loops_are_the_curve() -> None:
    rng = np.random.default_rng(0)
    rows = BLOCK + 1_000
    cost = np.cumsum(rng.random((4, rows)), 0) - 0.5
    value = rng.random((4, rows)) * np.sqrt(np.abs(cost)) * 2
    treatment, propensity = rng.integers(0, 4, rows), rng.uniform(0.2, 0.6, rows)
    logged = (treatment, rng.standard_normal(rows), rng.random(rows), propensity)
    at = np.geomspace(0.05, 20, 7)
    curve = cost_curve(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (value.T, cost.T, *logged)))
    point = curve.at_multiplier(torch.from_numpy(at))
    expected = torch.stack([point.spend, point.value], 1).numpy()
    by_row = (np.ascontiguousarray(value.T), np.ascontiguousarray(cost.T))
    for found in (
        loop_by_arm(value, cost, *logged, at),
        loop_by_row(*by_row, *logged, at),
        loop_tuned(value, cost, *logged, at),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
