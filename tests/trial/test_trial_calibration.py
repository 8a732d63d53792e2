"""Sound trials, simulated: p-values are uniform, so that a threshold of 0.001 is one false alarm in a thousand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from trial_cases import random_trial

from lightning_budget.trial import Balance, Leakage, SampleRatio, check_balance, check_leakage, check_sample_ratio

TRIALS = 60
CASES: dict[str, dict[str, Any]] = {
    "constant": {"rule": "constant", "lists": True},
    "by city": {"rule": "city"},
    "smooth, rare levels": {"rule": "smooth", "levels": 400},
    "rows of users": {"rule": "constant", "users": 400},
    "users": {"rule": "constant", "users": 400, "by_user": True, "levels": 11},
    "users, smooth": {"rule": "smooth", "users": 400, "by_user": True},
}


@pytest.fixture(scope="module", params=list(CASES))
def found(request: pytest.FixtureRequest) -> tuple[str, list[tuple[SampleRatio, Balance, Leakage]]]:
    trials = [random_trial(1200, seed, **CASES[request.param]) for seed in range(TRIALS)]
    return request.param, [(check_sample_ratio(t), check_balance(t), check_leakage(t)) for t in trials]


def uniform(p: list[float]) -> bool:
    return bool(stats.kstest(p, "uniform").pvalue > 1e-3)


def at_most_uniform(p: list[float]) -> bool:
    """Corrected probabilities are small no more often than they say."""
    return all(np.mean(np.array(p) <= level) <= level + 4 * np.sqrt(level / len(p)) for level in (0.02, 0.1, 0.3))


def test_counts_of_arms(found: tuple[str, list[Any]]) -> None:
    case, checks = found
    results = [c[0] for c in checks]
    if results[0].method == "ipw":
        assert at_most_uniform([r.p_value for r in results])
    else:
        assert uniform([r.p_value for r in results])
    for j in range(3):
        assert uniform([r.arms[j].p_value for r in results]), case
    assert at_most_uniform([min((s.p_adjusted for s in r.strata), default=1.0) for r in results])


def test_differences_of_features(found: tuple[str, list[Any]]) -> None:
    results = [c[1] for c in found[1]]
    for arm in (0, 1):
        assert uniform([r.arms[arm].p_value for r in results])
    assert at_most_uniform([r.p_value for r in results])
    named = [d for r in results for d in r.worst if (d.feature, d.arm) == ("age", "low")]
    if len(named) == TRIALS:
        assert uniform([d.p_value for d in named])
    assert at_most_uniform([r.worst[0].p_adjusted for r in results])


def test_features_that_tell_nothing(found: tuple[str, list[Any]]) -> None:
    case, checks = found
    results = [c[2] for c in checks]
    assert all(r.verdict().ok for r in results)
    of_city = [leak.p_value for r in results for leak in r.arms if leak.feature == "city"]
    # One of three arms is the least probable: 1 − (1 − p)³ at most, the arms being dependent.
    of_age = [leak.p_value for r in results for leak in r.arms if leak.feature == "age"]
    assert len(of_city) == len(of_age) == TRIALS
    if case != "users, smooth":
        assert uniform(of_city), stats.kstest(of_city, "uniform")
    assert at_most_uniform(of_city)
    assert at_most_uniform([min(1, 3 * p) for p in of_age])
    assert at_most_uniform([r.arms[0].p_adjusted for r in results])
