"""What ``benchmarks/campaign_bound.py`` draws from: the campaign's own laws, and posteriors that hold the truth."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

# The benchmarks are scripts beside each other, not a package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from campaign_posterior import Acceptance, draws
from campaign_regret import ALL, FEATURES, Bound, Found, Means, study
from campaign_tables import judge, value_part
from campaign_traits import SPREAD, prior_mean
from campaign_trial import FEW, FRACTIONS, Trial
from estimator_tables import Claims

from lightning_budget.campaign import Campaign
from lightning_budget.campaign.lists import Floats
from lightning_budget.campaign.population import traits_of
from lightning_budget.campaign.responses import World, _curves
from lightning_budget.campaign.sessions import CATEGORIES, Session
from lightning_budget.hashing import hashed_normal

CAMPAIGN = Campaign(train_rows=2_400, val_rows=10, test_rows=900, users=400, seed=7)


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial.of(CAMPAIGN)


def log_density(user: int, z: Floats, outcomes: bool) -> float:
    """Of one user's traits, row by row from the laws as the campaign states them, constants included."""
    rows = CAMPAIGN.exposures("train", 0)
    mine = rows.user == user
    n, x = int(mine.sum()), rows.dense[mine].astype(float)
    e, t, b, _, _, k = z
    base = traits_of(np.full(n, user), CAMPAIGN.users, CAMPAIGN.seed)
    change = dict(zip(("engagement", "thrift", "basket", "habit", "trade_up"), z[:5], strict=True))
    traits = replace(base, half_dose=np.full(n, 4 * np.exp(0.4 * k)), **{c: np.full(n, v) for c, v in change.items()})
    found = stats.norm.logpdf(e, 0.4 * (0.5 - (user + 0.5) / CAMPAIGN.users), 0.8) + stats.norm.logpdf(z[1:]).sum()
    found += stats.expon.logpdf(x[:, 0], scale=6 * np.exp(-0.5 * e)).sum()
    found += stats.poisson.logpmf(np.round(np.expm1(x[:, 1])), 4 * np.exp(0.6 * e)).sum()
    found += stats.norm.logpdf(np.log(x[:, 2]), 3 + 0.5 * b, 0.4).sum()
    found += stats.gamma.logpdf(x[:, 4], 2, scale=3 * np.exp(0.3 * e + 0.2 * t)).sum()
    found += stats.norm.logpdf(np.log(x[:, 5] / (1 - x[:, 5])), 0.8 * t - 0.5, 0.9).sum()
    latent, tier = 2 + 1.2 * (0.7 * e + 0.3 * b), int(base.tier[0])
    high, low = np.inf if tier == 4 else tier + 1, -np.inf if tier == 0 else tier
    found += np.log(stats.norm.cdf(high, latent, 0.72) - stats.norm.cdf(low, latent, 0.72))
    if not outcomes:
        return found
    elastic = rows.viewed.mean_of(hashed_normal(np.arange(CATEGORIES), CAMPAIGN.seed, "category_elasticity"))
    session = Session(rows.day[mine], rows.device[mine], x[:, 6], x[:, 7], elastic[mine])
    world = World(CAMPAIGN.seed, np.array(CAMPAIGN.face_values), CAMPAIGN.purchase_logit, CAMPAIGN.spend_sigma)
    curves = _curves(world, world.effects(), traits, session)
    arm = rows.treatment[mine]
    buy, log_mean, redeem = (c[np.arange(n), arm] for c in curves)
    bought, used = rows.value[mine] > 0, rows.cost[mine] > 0
    found += np.log(np.where(bought, buy, 1 - buy)).sum()
    found += stats.norm.logpdf(np.log(rows.value[mine][bought]), log_mean[bought], CAMPAIGN.spend_sigma).sum()
    return found + np.log(np.where(used, redeem, 1 - redeem))[bought & (arm > 0)].sum()


@pytest.mark.parametrize("outcomes", [False, True])
def test_the_density_is_the_campaigns(trial: Trial, outcomes: bool) -> None:
    posterior = trial.posterior(outcomes)
    a, b = (torch.randn(len(trial.chain_user), 6, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    ours = (posterior.log_density(a) - posterior.log_density(b)).double()
    count = torch.bincount(trial.train.user, minlength=CAMPAIGN.users)
    most, few = count.argmax(), ((count > 0) & (count < FEW)).nonzero()[0, 0]
    for user in (int(most), int(few), *range(10, 30)):
        if count[user]:
            theirs = log_density(user, a[user].double().numpy(), outcomes)
            theirs -= log_density(user, b[user].double().numpy(), outcomes)
            assert float(ours[user]) == pytest.approx(theirs, rel=1e-4, abs=1e-3), user


def test_true_traits_give_the_campaigns_means(trial: Trial) -> None:
    assert trial.error < 1e-5
    for i in range(6):
        assert replace(trial, traits=trial.traits + 1e-3 * torch.eye(6)[i]).error > 1e-5


def test_a_test_row_of_a_rare_user_has_a_chain_of_its_own(trial: Trial) -> None:
    posterior = trial.posterior(True)
    assert posterior.outcomes is not None
    count = torch.bincount(trial.train.user, minlength=CAMPAIGN.users)
    assert 0 < int(trial.own.sum()) < len(trial.own)
    assert torch.equal(trial.own, count[trial.test.user] < FEW)
    assert torch.equal(trial.chain_user[trial.row_chain], trial.test.user)
    for row in trial.own.nonzero()[:40, 0].tolist():
        user, chain = int(trial.test.user[row]), int(trial.row_chain[row])
        expected = trial.train.sums[trial.train.user == user].sum(0) + trial.test.sums[row]
        torch.testing.assert_close(posterior.sums[chain], expected)
        mine = posterior.outcomes.chain == chain
        assert int(mine.sum()) == count[user]
        assert torch.equal(posterior.outcomes.purchases[chain], posterior.outcomes.purchases[user])


def test_draws_without_rows_are_of_the_prior(trial: Trial) -> None:
    posterior = trial.posterior(False)
    unknown = torch.full_like(posterior.high, torch.inf)
    nothing = replace(posterior, sums=0 * posterior.sums, low=-unknown, high=unknown)
    seen = Acceptance()
    z = torch.stack(list(draws(nothing, 60, 5, 0, seen)))
    off = (z - prior_mean(trial.chain_user, CAMPAIGN.users)) / SPREAD
    assert float(off.mean((0, 1)).abs().max()) < 0.03
    assert off.std((0, 1)).tolist() == pytest.approx([1] * 6, abs=0.03)
    assert seen.proposals == 60
    assert seen.mean > 0.9


def test_posteriors_hold_the_truth_and_outcomes_help(trial: Trial) -> None:
    found = {known: study(trial, known == ALL, 60, 30, 0) for known in (FEATURES, ALL)}
    for one in found.values():
        assert 0.84 < float(one.covered.min()) <= float(one.covered.max()) < 0.96
        assert one.acceptance > 0.8
    control = float((trial.best - trial.control).mean())
    assert 0 < float(found[ALL].regret.mean()) < float(found[FEATURES].regret.mean()) < control / 2
    # A mean of half of the draws is a noisier one.
    assert float(sum(found[ALL].halves).mean()) / 2 > float(found[ALL].regret.mean())  # type: ignore[union-attr]


def test_rows_without_weight_fall_back() -> None:
    one, other = Means(2, 1), Means(2, 1)
    one.add(torch.tensor([0.0, 2.0]), torch.ones(2, 1), torch.ones(2, 1))
    other.add(torch.tensor([3.0, 5.0]), torch.full((2, 1), 7.0), torch.ones(2, 1))
    assert one.or_else(other).value[:, 0].tolist() == [21.0, 2.0]
    assert one.or_else(other).weight.tolist() == [3.0, 2.0]


ONE = torch.ones(5)
GOOD = Found(ONE, (ONE, 1.01 * ONE), ONE, torch.full((6,), 0.9), 0.9, 50)


@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        (GOOD, 0.0, None),
        (GOOD, 1e-3, "means by true traits"),
        (replace(GOOD, acceptance=0.79), 0.0, "accepted"),
        (replace(GOOD, halves=(ONE, 0.97 * ONE)), 0.0, "halves"),
        (replace(GOOD, covered=torch.tensor([0.9, 0.84, 0.9, 0.9, 0.9, 0.9])), 0.0, "intervals"),
        (replace(GOOD, covered=torch.tensor([0.9, 0.9, 0.9, 0.9, 0.9, 0.96])), 0.0, "intervals"),
    ],
)
def test_what_falls_short(found: Found, error: float, text: str | None) -> None:
    claims = Claims()
    good = Bound(3 * ONE, ONE, 0.0, {FEATURES: GOOD, ALL: GOOD})
    judge("campaign", [good, replace(good, error=error, found={FEATURES: GOOD, ALL: found})], claims)
    assert len(claims.failed) == (text is not None)
    assert text is None or text in claims.verdict
    assert value_part([good])[3].split("|")[1:4] == [" control ", " 1.0000 ", " 2.0000 "]
    assert len(FRACTIONS) == 5
