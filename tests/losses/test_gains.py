"""Gains against a loop over users and arms, and their mean over randomizations against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.losses.gains import ArmsFirst, GainConstants, Weighting, gains
from lightning_budget.losses.measure import arm_residuals, no_constants, pieces
from tests.losses.goal_reference import SWITCHES, WEIGHTINGS, Rows, trial

RATES = torch.tensor([0.0, 0.7, 3.0], dtype=torch.float64)


def random_constants(treatments: int, centred: bool, weighting: str, seed: int = 5) -> GainConstants:
    g = torch.Generator().manual_seed(seed)
    value, cost, factor = torch.rand(3, len(RATES), treatments, generator=g, dtype=torch.float64)
    has_base = centred or weighting in ("hajek", "poststratified")
    return GainConstants(value * has_base, cost * has_base, 0.5 + factor)


def loop(batch: RCTBatch, weighting: str, k: GainConstants, model: ResponsePrediction, shares: Tensor) -> np.ndarray:
    """``[B, K, N]`` from the definition, one number at a time."""
    treatments = k.factor.shape[1]
    out = np.zeros((shares.shape[1], treatments, len(batch)))
    for b, (for_value, for_cost) in enumerate(shares.T.tolist()):
        for i in range(len(batch)):
            for j in range(treatments):
                m = for_value * float(k.value_base[b, j]) + for_cost * float(k.cost_base[b, j])
                if weighting == "doubly_robust":
                    m += for_value * float(model.value[i, j]) + for_cost * float(model.cost[i, j])
                out[b, j, i] = m
                if int(batch.treatment[i]) == j:
                    weight = 1.0 if weighting == "poststratified" else 1 / float(batch.propensity[i])
                    if weighting in ("hajek", "poststratified"):
                        weight *= float(k.factor[b, j])
                    y = for_value * float(batch.value[i]) + for_cost * float(batch.cost[i])
                    out[b, j, i] += weight * (y - m)
    return out


@pytest.mark.parametrize(("weighting", "baseline"), SWITCHES)
@pytest.mark.parametrize("treatments", [2, 5])
def test_gains_equal_a_loop(weighting: Weighting, baseline: str, treatments: int) -> None:
    batch, _, model = trial(30, treatments)
    constants = random_constants(treatments, baseline == "centred", weighting)
    for shares in (
        torch.stack([torch.ones_like(RATES), -RATES]),
        torch.stack([torch.zeros_like(RATES), torch.ones_like(RATES)]),
    ):
        expected = loop(batch, weighting, constants, model, shares)
        actual = gains(batch, weighting, constants, ArmsFirst.of(model), *shares)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
        if baseline == "none" and weighting in ("ipw", "doubly_robust"):
            short = gains(batch, weighting, constants, ArmsFirst.of(model), *shares, has_base=False)
            np.testing.assert_allclose(short, expected, rtol=1e-12, atol=1e-12)


def test_what_comes_in_is_left_as_it_was() -> None:
    batch, _, model = trial(20, 3)
    arms, shares = ArmsFirst.of(model), torch.stack([torch.ones_like(RATES), -RATES])
    before = arms.value.clone(), batch.value.clone(), shares.clone()
    for weighting in WEIGHTINGS:
        gains(batch, weighting, random_constants(3, True, weighting), arms, *shares)
    assert all(torch.equal(x, y) for x, y in zip(before, (arms.value, batch.value, shares), strict=True))


def test_arms_first_is_float32_at_least_and_detached() -> None:
    half = torch.rand(4, 3, dtype=torch.float16, requires_grad=True)
    arms = ArmsFirst.of(ResponsePrediction(half, half.bfloat16()))
    assert arms.value.dtype == arms.cost.dtype == torch.float32
    assert not arms.value.requires_grad
    assert torch.equal(arms.value, half.detach().float().T)
    multipliers = torch.tensor([0.0, 2.0])
    assert torch.equal(arms.scores(multipliers)[1], arms.value - 2 * arms.cost)
    torch.testing.assert_close(arms.combine(multipliers, 1 - multipliers)[1], 2 * arms.value - arms.cost)


def randomizations(draws: int, users: int, arms: int, seed: int) -> tuple[Rows, Tensor, Tensor]:
    """The same users randomized and observed again and again, ``draws · users`` rows, and their true means."""
    g = torch.Generator().manual_seed(seed)
    true_value = 2 + torch.randn(users, arms, generator=g, dtype=torch.float64)
    true_cost = torch.arange(arms) * (0.3 + 0.4 * torch.rand(users, 1, generator=g, dtype=torch.float64))
    p = 0.1 + torch.rand(users, arms, generator=g, dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    g.manual_seed(seed + 1000)
    given = torch.multinomial(p, draws, replacement=True, generator=g).T
    user = torch.arange(users).expand(draws, -1)
    noise = torch.randn(2, draws, users, generator=g, dtype=torch.float64)
    observed = (true_value[user, given] + noise[0], true_cost[user, given] + 0.5 * noise[1])
    rows = Rows(given.flatten(), observed[0].flatten(), observed[1].flatten(), p[user, given].flatten())
    return rows, true_value, true_cost


@pytest.mark.parametrize("baseline", ["none", "centred"])
@pytest.mark.parametrize("weighting", ["ipw", "doubly_robust"])
def test_mean_over_randomizations_is_the_truth(weighting: Weighting, baseline: str) -> None:
    draws, users, arms = 4_000, 20, 4
    rows, true_value, true_cost = randomizations(draws, users, arms, 0)
    # A baseline that is wrong, and does not see the rows: what it adds must be taken out again.
    g = torch.Generator().manual_seed(7)
    wrong = ResponsePrediction(
        true_value + 1 + 0.5 * torch.randn(users, arms, generator=g, dtype=torch.float64), 0.5 * true_cost
    )
    everyone = ResponsePrediction(wrong.value.repeat(draws, 1), wrong.cost.repeat(draws, 1))
    constants = no_constants(RATES, arms)
    if baseline == "centred":
        # From other outcomes of these users, as the bias of centring on one's own is only small.
        others, _, _ = randomizations(1, users, arms, 1)
        data = pieces(wrong, others)
        constants = arm_residuals(data, RATES, arms, weighting == "doubly_robust")
        assert float(constants.value_base.abs().max()) > 0.1
    found = gains(rows, weighting, constants, ArmsFirst.of(everyone), torch.ones_like(RATES), -RATES)
    each = found.view(len(RATES), arms, draws, users)
    expected = (true_value - RATES[:, None, None] * true_cost).transpose(1, 2)
    z = (each.mean(2) - expected) / (each.std(2) / draws**0.5)
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) == pytest.approx(1, abs=0.35)


def test_a_good_baseline_takes_variance_out_and_so_does_centring() -> None:
    draws, users, arms = 2_000, 20, 4
    rows, true_value, true_cost = randomizations(draws, users, arms, 0)
    model = ResponsePrediction(true_value.repeat(draws, 1), true_cost.repeat(draws, 1))

    def deviation(weighting: Weighting, centred: bool) -> float:
        constants = arm_residuals(pieces(model, rows), RATES, arms, False) if centred else no_constants(RATES, arms)
        found = gains(rows, weighting, constants, ArmsFirst.of(model), torch.ones_like(RATES), -RATES)
        return float(found.view(len(RATES), arms, draws, users)[1].std(1).mean())

    plain, centred, robust = deviation("ipw", False), deviation("ipw", True), deviation("doubly_robust", False)
    assert robust < 0.8 * centred < 0.8 * 0.95 * plain
