"""Weights of the arms: closed forms and every warning."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_budget.trial import Propensity, check_propensity, logged_trial


def found(treatment: list[int], propensity: list[float], arms: int = 2) -> Propensity:
    zero = torch.zeros(len(treatment))
    names = tuple("abcd"[:arms])
    p = torch.tensor(propensity, dtype=torch.float64)
    return check_propensity(logged_trial(names, torch.tensor(treatment), p, zero, zero))


def test_numbers_by_hand() -> None:
    a, b = found([0, 0, 0, 1, 1], [0.5, 0.25, 0.25, 0.5, 0.5]).arms
    assert (a.rows, a.lowest, a.highest, a.small_share) == (3, 0.25, 0.5, 0)
    assert a.effective_rows == pytest.approx(10**2 / 36)
    assert a.largest_weight_share == pytest.approx(0.4)
    assert (b.effective_rows, b.largest_weight_share) == (pytest.approx(2), pytest.approx(0.5))


def test_sample_weights_belong_to_the_weights() -> None:
    zero, p = torch.zeros(4), torch.tensor([0.5, 0.25, 0.5, 0.5])
    trial = logged_trial(("a", "b"), torch.tensor([0, 0, 1, 1]), p, zero, zero)
    a, b = check_propensity(trial, torch.tensor([4.0, 1.0, 0.0, 0.0])).arms
    assert (a.effective_rows, a.largest_weight_share) == (pytest.approx(12**2 / 80), pytest.approx(8 / 12))
    assert (b.rows, b.effective_rows, b.largest_weight_share) == (2, 0.0, 0.0)
    twice = check_propensity(trial, torch.full((4,), 2.0)).arms[0]
    assert twice.effective_rows == pytest.approx(6**2 / 20)


@pytest.mark.parametrize(
    ("propensity", "words"),
    [
        ([0.005] * 2 + [0.5] * 98, "2 % of the rows of arm 'a' have propensities below 0.01 (threshold 1 %)"),
        ([0.0101] * 3 + [0.9] * 97, "the 100 rows of arm 'a' are worth 6 of equal weight (threshold 20 %)"),
        ([0.05] + [0.9] * 99, "one row has 15.4 % of the weight of arm 'a' (threshold 5 %)"),
        ([0.5] * 100, "propensities from 0.5 to 0.5; at least 100 effective rows an arm"),
    ],
)
def test_verdicts(propensity: list[float], words: str) -> None:
    verdict = found([0] * 100 + [1] * 100, [*propensity, *[0.5] * 100]).verdict()
    assert words in verdict.text
    assert verdict.ok == words.startswith("propensities")


def test_an_arm_without_rows() -> None:
    result = found([0, 1, 0, 1], [0.5] * 4, arms=3)
    assert "arm 'c' has no rows" in result.verdict().text
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["arms"][2]["rows"] == 0
