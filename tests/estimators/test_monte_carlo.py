"""Random estimators: their mean against quadrature, their formula against its loop, and how they converge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_budget.estimators import (
    NES,
    Gaussian,
    GradientEstimator,
    NESGlobal,
    Perturbed,
    ScoreFunction,
    Softmax,
)
from lightning_budget.estimators.choice import noisy_choice_, noisy_gain_
from lightning_budget.estimators.noise import exponential_draws, normal_draws
from tests.estimators.oracles import Problem, copies, cosine, hard_goal, largest_z, random_problem, smoothed

PER_USER: list[tuple[GradientEstimator, str]] = [
    (NES(pairs=3), "gaussian"),
    (Perturbed(samples=3), "gaussian"),
    (Perturbed(samples=3, noise="gumbel"), "gumbel"),
    (ScoreFunction(samples=2), "gumbel"),
    (ScoreFunction(samples=5), "gumbel"),
]
LIMIT = 4.5


def seeded(seed: int) -> torch.Generator:
    """Not the seed of a problem, whose scores the noise would repeat."""
    return torch.Generator().manual_seed(1000 + seed)


@pytest.mark.parametrize("treatments", [2, 4])
@pytest.mark.parametrize(("estimator", "law"), PER_USER)
def test_unbiased_for_the_smoothed_goal(estimator: GradientEstimator, law: str, treatments: int) -> None:
    users = 40_000
    p = copies(users, seed=treatments, treatments=treatments)
    q, value, slope = smoothed(Problem(p.scores[..., :1], p.gains[..., :1], p.width, p.given[:1]), law)
    found = estimator.estimate(*p, seeded(1))
    assert largest_z(found.gradient, slope[..., 0]) < LIMIT
    assert largest_z(estimator.assignment(p.scores, p.width, seeded(2)), q[..., 0]) < LIMIT
    # The value is a sum over users: its standard error from the law of one evaluation, evaluations independent.
    spread = ((q * p.gains[..., :1].square()).sum(dim=(1, 2)) - value.square()).sqrt()
    error = spread / (users * estimator.evaluations_per_step) ** 0.5
    # Antithetic evaluations are dependent, by which the error at most grows by √2.
    assert float(((found.value / users - value) / error).abs().max()) < LIMIT * 2**0.5
    assert float((error / value.abs()).max()) < 0.1


def test_nes_global_is_unbiased_for_the_same_goal() -> None:
    p = random_problem(2, 3, seed=1)
    _, value, slope = smoothed(p, "gaussian")
    generator, runs = seeded(3), 3000
    found = [NESGlobal(pairs=4).estimate(*p, generator) for _ in range(runs)]
    assert largest_z(torch.stack([f.gradient for f in found], dim=-1), slope) < LIMIT
    assert largest_z(torch.stack([f.value for f in found], dim=-1), value) < LIMIT


def test_softmax_is_the_average_under_gumbel_noise() -> None:
    draws, rng = 400_000, np.random.default_rng(0)
    p = random_problem(1, 4, seed=5)
    found, q = Softmax().estimate(*p), Softmax().assignment(p.scores, p.width)
    for b, width in enumerate(p.width.tolist()):
        noise = rng.gumbel(size=(4, draws))
        best = (p.scores[b].numpy() + width * noise).argmax(0)
        chosen = torch.from_numpy(best == np.arange(4)[:, None]).double()
        assert largest_z(chosen, q[b, :, 0]) < LIMIT
        # The density of Gumbel noise has the log-derivative exp(−ε) − 1.
        slopes = p.gains[b, best, 0] * torch.from_numpy(1 - np.exp(-noise)) / width
        assert largest_z(slopes, found.gradient[b, :, 0]) < LIMIT


def both(draw: torch.Tensor, p: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    shift = p.width[:, None, None] * draw
    return p.scores + shift, p.scores - shift


def test_nes_and_nes_global_are_their_formulas() -> None:
    p = random_problem(5, 3, seed=2)
    whole, own = torch.zeros_like(p.scores), torch.zeros_like(p.scores)
    value = torch.zeros_like(p.width)
    for draw in normal_draws(p.scores, 7, seeded(0)):
        up, down = both(draw, p)
        above, below = hard_goal(up, p.gains), hard_goal(down, p.gains)
        value += (above + below) / 14
        whole += (above - below)[:, None, None] * draw / (14 * p.width[:, None, None])
        for i in range(5):
            s = slice(i, i + 1)
            change = hard_goal(up[..., s], p.gains[..., s]) - hard_goal(down[..., s], p.gains[..., s])
            own[..., i] += change[:, None] * draw[:, i] / (14 * p.width[:, None])
    for estimator, expected in ((NES(pairs=7), own), (NESGlobal(pairs=7), whole)):
        found = estimator.estimate(*p, seeded(0))
        torch.testing.assert_close(found.gradient, expected)
        torch.testing.assert_close(found.value, value)


@pytest.mark.parametrize("samples", [2, 6])
def test_score_function_is_reinforce_with_leave_one_out_baselines(samples: int) -> None:
    p = random_problem(6, 4, seed=3)
    q = torch.softmax(p.scores / p.width[:, None, None], dim=1)
    expected = torch.zeros_like(q)
    arms = torch.stack(
        [
            (p.scores / p.width[:, None, None] - draw.log()).argmax(1)
            for draw in exponential_draws(p.scores, samples, seeded(0))
        ]
    )
    earned = torch.stack([p.gains.gather(1, arm[:, None]).squeeze(1) for arm in arms])
    for m, arm in enumerate(arms):
        baseline = torch.cat([earned[:m], earned[m + 1 :]]).mean(0)
        log_slope = (torch.nn.functional.one_hot(arm, 4).movedim(2, 1) - q) / p.width[:, None, None]
        expected += (earned[m] - baseline)[:, None] * log_slope / samples
    found = ScoreFunction(samples=samples).estimate(*p, seeded(0))
    torch.testing.assert_close(found.gradient, expected)
    torch.testing.assert_close(found.value, earned.mean(0).sum(1))


def rising(cosines: list[float], last: float) -> None:
    assert cosines == sorted(cosines), cosines
    assert cosines[-1] > last, cosines
    assert cosines[0] < 0.95, cosines


def test_nes_tends_to_gaussian() -> None:
    p = random_problem(150, 4)
    exact = Gaussian().estimate(*p).gradient
    rising([cosine(NES(pairs=m).estimate(*p, seeded(0)).gradient, exact) for m in (4, 32, 256, 2048)], 0.99)


def test_nes_global_tends_to_nes() -> None:
    p = random_problem(8, 3)
    exact = NES(pairs=10_000).estimate(*p, seeded(9)).gradient
    rising([cosine(NESGlobal(pairs=m).estimate(*p, seeded(0)).gradient, exact) for m in (8, 128, 2048, 20_000)], 0.99)
    # Credit to each user is why fewer pairs do.
    few = {kind: cosine(kind(pairs=64).estimate(*p, seeded(1)).gradient, exact) for kind in (NES, NESGlobal)}
    assert few[NES] > few[NESGlobal] + 0.02


@pytest.mark.parametrize(
    ("kind", "options", "limit"),
    [
        (Perturbed, {"noise": "gaussian"}, Gaussian()),
        (Perturbed, {"noise": "gumbel"}, Softmax()),
        (ScoreFunction, {}, Softmax()),
    ],
)
def test_samples_tend_to_the_closed_form(kind: type, options: dict[str, str], limit: GradientEstimator) -> None:
    p = random_problem(150, 4)
    exact = limit.estimate(*p).gradient
    found = [kind(samples=m, **options).estimate(*p, seeded(0)).gradient for m in (2, 32, 256, 4096)]
    rising([cosine(f, exact) for f in found], 0.99)


def test_one_user_alone_has_no_others_to_be_blamed_for() -> None:
    p = random_problem(1, 4)
    assert torch.equal(NES().estimate(*p, seeded(0)).gradient, NESGlobal().estimate(*p, seeded(0)).gradient)


def test_gumbel_and_normal_draws_have_their_law() -> None:
    like = torch.zeros(1, 2, 100_000, dtype=torch.float64)
    (normal,), (exponential,) = normal_draws(like, 1, seeded(0)), exponential_draws(like, 1, seeded(0))
    assert float(exponential.min()) > 0
    for sample, mean, deviation in (
        (normal, 0.0, 1.0),
        (exponential, 1.0, 1.0),
        (-exponential.log(), 0.57722, 1.28255),
    ):
        error = deviation / sample.numel() ** 0.5
        assert abs(float(sample.mean()) - mean) < LIMIT * error
        assert float(sample.std()) == pytest.approx(deviation, rel=0.03)


def test_antithetic_pairs_balance_in_the_assignment() -> None:
    tied = torch.zeros(1, 2, 50, dtype=torch.float64)
    q = NES(pairs=3).assignment(tied, torch.ones(1), seeded(0))
    assert torch.equal(q, torch.full_like(tied, 0.5))


def test_noisy_choices_and_their_gains() -> None:
    p = random_problem(200, 5)
    best = p.scores.argmax(1, keepdim=True)
    assert torch.equal(noisy_choice_(p.scores.clone()), torch.zeros_like(p.scores).scatter_(1, best, 1))
    for unit in (1e-30, 1.0, 1e20):
        found = noisy_gain_(p.scores.float(), unit * p.gains.float())
        assert torch.equal(found, (unit * p.gains.float()).gather(1, best).squeeze(1))
    # Rounding alone makes ties; they must neither double a choice nor add gains up.
    tied = torch.zeros(1, 4, 1)
    assert torch.equal(noisy_choice_(tied.clone()), torch.full_like(tied, 0.25))
    assert float(noisy_gain_(tied, torch.tensor([1.0, 3.0, -2.0, 3.0])[None, :, None])) == 3.0


@pytest.mark.parametrize("estimator", [Perturbed(noise="gumbel"), ScoreFunction()])
def test_a_uniform_variate_of_zero_makes_no_infinite_noise(
    estimator: GradientEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One in 2^24 float32 uniforms is exactly 0, which is a few in each epoch.
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, **_: self.zero_())
    p = random_problem(5, 3, kind=torch.float32)
    assert estimator.estimate(*p).gradient.isfinite().all()
