"""What ``benchmarks/estimators.py`` measures, at a size where the right order of the estimators is known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# The benchmarks are scripts beside each other, not a package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import estimator_quality
import estimator_truth
from estimator_picture import cosine_against, draw
from estimator_quality import Given, Quality, examine_all, tried
from estimator_trial import Trial, cosine

from lightning_budget.estimators import ESTIMATORS, NES, Gaussian, build_estimator
from lightning_budget.losses.budget_regularizer import GoalForm
from lightning_budget.plots import new_figure


@pytest.fixture(scope="module")
def found() -> dict[str, Quality]:
    return {q.label: q for q in examine_all(600, 5, counts=(4, 64), draws=3)}


def test_every_estimator_of_the_registry_is_tried() -> None:
    assert {config["name"] for _, config in tried((4,))} == set(ESTIMATORS)
    for label, config in tried((4, 64)):
        estimator = build_estimator(config)
        assert estimator.is_random == any(ch.isdigit() for ch in label), label


def test_closed_forms_come_first_and_more_samples_come_nearer(found: dict[str, Quality]) -> None:
    assert found["gaussian"].cosine > 0.99999
    assert found["gaussian"].cosine > found["softmax"].cosine > 0.99
    for few, many in (("4 pairs", "64 pairs"), ("4 samples", "64 samples")):
        for name in ("nes", "perturbed", "score_function"):
            if f"{name}, {few}" in found:
                assert found[f"{name}, {few}"].cosine + 0.1 < found[f"{name}, {many}"].cosine < found["softmax"].cosine
    assert found["nes_global, 64 pairs"].cosine < 0.3 < found["nes, 4 pairs"].cosine
    assert found["softmax"].cosine == found["straight_through"].cosine


def test_deviation_is_that_of_draws_and_falls_as_their_number_rises(found: dict[str, Quality]) -> None:
    assert found["softmax"].deviation == found["softmax"].deviation_head == 0
    few, many = found["nes, 4 pairs"], found["nes, 64 pairs"]
    assert few.deviation / many.deviation == pytest.approx(4, rel=0.4)
    # An unbiased draw lies at this cosine to its mean.
    assert many.cosine == pytest.approx(1 / (1 + many.deviation**2) ** 0.5, abs=0.02)


def test_the_exact_gradient_is_the_mean_of_evolution_strategies() -> None:
    given = Given.of(Trial.draw(300, 5), "ipw")
    nes = NES(estimator_quality.WIDTHS["sigma"], pairs=20_000)
    generator = torch.Generator().manual_seed(0)
    gradient = nes.estimate(given.scores, given.gains, nes.width * given.spread, given.arm, generator).gradient
    mean = estimator_quality.by_prediction(gradient, given.chain)
    assert cosine(mean, given.exact) > 0.998
    assert float(mean.norm() / given.exact.norm()) == pytest.approx(1, abs=0.01)


def test_weights_of_the_head_get_what_autograd_gives_them() -> None:
    trial = Trial.draw(200, 5)
    given, head = Given.of(trial, "ipw"), trial.head.double().requires_grad_()
    estimate = Gaussian(nodes=estimator_quality.REFERENCE_NODES)
    value, cost = (trial.columns.double() @ head).chunk(2, dim=1)
    scores = (value - trial.multipliers[:, None, None] * cost).movedim(1, 2)
    width = estimator_quality.WIDTHS["sigma"] * given.spread.double()
    slope = estimate.estimate(scores.detach(), given.gains.double(), width).gradient
    (slope * scores).sum().backward()
    assert head.grad is not None
    by_head = given.by_head(given.exact).flatten(0, 1).T
    torch.testing.assert_close(by_head, head.grad, rtol=1e-3, atol=1e-3 * float(head.grad.abs().max()))


def test_the_estimated_gradient_of_true_means_is_the_true_gradient() -> None:
    """Doubly robust with the truth as its baseline, and outcomes that are their means."""
    trial = Trial.draw(400, 5)
    table = trial.table
    given = table.treatment[:, None]
    object.__setattr__(table, "value", table.true_value.gather(1, given)[:, 0])  # type: ignore[union-attr]
    object.__setattr__(table, "cost", table.true_cost.gather(1, given)[:, 0])  # type: ignore[union-attr]
    truth = estimator_truth.ResponsePrediction(table.true_value, table.true_cost)  # type: ignore[arg-type]
    for entropy in (0.0, 1.0):
        form = GoalForm(entropy=entropy)
        estimated, true = estimator_truth.head_gradient(trial, form, truth), estimator_truth.true_gradient(trial, form)
        torch.testing.assert_close(estimated, true, rtol=1e-3, atol=1e-4 * float(true.abs().max()))


def test_less_noise_comes_nearer_to_the_true_gradient() -> None:
    size, cosines = 2_048, {}
    for level, noise in estimator_truth.LEVELS.items():
        every = estimator_truth.compare([size], noise, 0.0, population=8_192, batches=4, seeds=(0,))
        cosines[level] = {t.weighting: t.cosines[size] for t in every}
        assert cosines[level][estimator_truth.ORACLE] > max(cosines[level][w] for w in estimator_truth.WEIGHTINGS)
    noisy, quiet = cosines.values()
    robust = "doubly robust, own predictions"
    assert quiet[robust] > quiet["ipw"]
    assert quiet[robust] > noisy[robust]


def test_the_picture_has_a_line_for_every_estimator(found: dict[str, Quality], tmp_path: Path) -> None:
    draw(tmp_path / "estimators.png", list(found.values()), 600, 5)
    assert (tmp_path / "estimators.png").read_bytes().startswith(b"\x89PNG")
    ax = cosine_against(new_figure(4, 3).subplots(), list(found.values()), [1.0] * len(found), "ms")
    assert {str(line.get_label()).split(",")[0] for line in ax.get_lines()} == set(ESTIMATORS)
