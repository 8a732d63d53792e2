"""What every gradient estimator of the registry promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_budget.errors import InputError
from lightning_budget.estimators import (
    ESTIMATORS,
    GoalEstimate,
    GradientEstimator,
    Perturbed,
    Softmax,
    build_estimator,
    estimator_arguments,
)
from tests.estimators.oracles import Problem, copies, hard_goal, random_problem

NAMES = list(ESTIMATORS)
DETERMINISTIC = [n for n in NAMES if not ESTIMATORS[n].is_random]
RANDOM = [n for n in NAMES if ESTIMATORS[n].is_random]
HARD = ["finite_difference", "ifd", "straight_through"]
MEAN_ONLY = ["nes", "nes_global", "perturbed"]
"""Sum to 0 over arms on average alone: noise that raises all scores of a user alike is credited with chance."""


def estimate(name: str | GradientEstimator, problem: Problem, seed: int = 0) -> GoalEstimate:
    estimator = build_estimator({"name": name}) if isinstance(name, str) else name
    # Not the seed of the problem: noise that repeats the scores would tie them.
    return estimator.estimate(*problem, torch.Generator().manual_seed(1000 + seed))


@pytest.mark.parametrize("name", NAMES)
def test_declared_properties(name: str) -> None:
    kind, estimator = ESTIMATORS[name], build_estimator({"name": name})
    assert isinstance(kind.is_random, bool)
    assert isinstance(kind.unbiased_for, str)
    assert kind.requires in ("", "given")
    assert kind.width_name in estimator_arguments(name)
    assert estimator.width == estimator_arguments(name)[kind.width_name]
    assert build_estimator({"name": name, kind.width_name: 0.7}).width == 0.7
    assert isinstance(estimator.evaluations_per_step, int)
    assert estimator.evaluations_per_step >= 1
    assert "Source" in (kind.__doc__ or "")
    assert list(estimator.summary) == ["random", "unbiased for", "evaluations", "requires"]


@pytest.mark.parametrize(
    ("config", "evaluations"),
    [
        ({"name": "nes", "pairs": 5}, 10),
        ({"name": "nes_global", "pairs": 3}, 6),
        ({"name": "perturbed", "samples": 7}, 7),
        ({"name": "score_function", "samples": 4}, 4),
        ({"name": "gaussian"}, 1),
    ],
)
def test_evaluations_follow_from_the_arguments(config: dict[str, Any], evaluations: int) -> None:
    assert build_estimator(config).evaluations_per_step == evaluations


@pytest.mark.parametrize("name", NAMES)
def test_random_means_that_generators_matter(name: str) -> None:
    p = random_problem(40, 4)
    state = torch.get_rng_state()
    first, again, other = estimate(name, p, 0), estimate(name, p, 0), estimate(name, p, 1)
    # A generator is given, so torch's own is left alone, whatever the estimator.
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.gradient, again.gradient)
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.gradient, other.gradient) != ESTIMATORS[name].is_random


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_estimators_that_are_not_random_draw_nothing(name: str) -> None:
    estimator, p = build_estimator({"name": name}), random_problem(20, 4)
    state = torch.get_rng_state()
    estimator.estimate(*p)
    estimator.assignment(p.scores, p.width)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", RANDOM)
def test_without_a_generator_torch_draws(name: str) -> None:
    estimator, p = build_estimator({"name": name}), random_problem(20, 4)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((estimator.estimate(*p).gradient, estimator.assignment(p.scores, p.width)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("treatments", [2, 5])
def test_shapes_dtypes_and_untouched_inputs(name: str, kind: torch.dtype, treatments: int) -> None:
    p = random_problem(40, treatments, kind=kind)
    p = p._replace(scores=p.scores.requires_grad_(), gains=p.gains.requires_grad_())
    before = [x.detach().clone() for x in p]
    found = estimate(name, p)
    q = build_estimator({"name": name}).assignment(p.scores.detach(), p.width, torch.Generator())
    wide = torch.promote_types(kind, torch.float32)
    assert found.gradient.shape == q.shape == (3, treatments, 40)
    assert found.value.shape == (3,)
    assert found.gradient.dtype == found.value.dtype == q.dtype == wide
    assert not found.gradient.requires_grad
    assert found.gradient.isfinite().all()
    assert found.value.isfinite().all()
    assert found.gradient.abs().sum() > 0
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(1), torch.ones(3, 40, dtype=wide))
    for now, then in zip(p, before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_float32_is_close_to_float64(name: str) -> None:
    narrow, wide = (estimate(name, random_problem(200, 5, kind=k)) for k in (torch.float32, torch.float64))
    torch.testing.assert_close(narrow.gradient.double(), wide.gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*DETERMINISTIC, "score_function"])
def test_the_value_is_that_of_the_assignment(name: str) -> None:
    p = random_problem(40, 4)
    q = build_estimator({"name": name}).assignment(p.scores, p.width, torch.Generator().manual_seed(1000))
    torch.testing.assert_close(estimate(name, p).value, (q * p.gains).sum(dim=(1, 2)))
    assert bool(((q == 0) | (q == 1)).all()) == (name in HARD)


@pytest.mark.parametrize("name", HARD)
def test_of_equal_scores_the_first_is_chosen(name: str) -> None:
    p = random_problem(30, 4)
    p = p._replace(scores=p.scores.div(p.width[:, None, None]).round())
    q = build_estimator({"name": name}).assignment(p.scores, p.width)
    assert torch.equal(q.argmax(1), p.scores.argmax(1))
    torch.testing.assert_close(estimate(name, p).value, hard_goal(p.scores, p.gains))


@pytest.mark.parametrize("name", NAMES)
def test_it_sums_to_zero_over_arms_where_all_scores_move_alike(name: str) -> None:
    total = estimate(name, random_problem(200, 4)).gradient.sum(1)
    exact = float(total.abs().max()) < 1e-12
    assert exact == (name not in [*MEAN_ONLY, "finite_difference"])


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_on_all_scores_of_a_user_changes_nothing(name: str) -> None:
    p = random_problem(50, 4)
    shift = torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = p._replace(scores=p.scores + 7 * shift)
    there, here = estimate(name, moved), estimate(name, p)
    torch.testing.assert_close((there.value, there.gradient), (here.value, here.gradient), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_users_do_not_touch_each_other_unless_declared(name: str) -> None:
    p = random_problem(50, 4)
    moved = p.gains.clone()
    moved[:, :, 7] += torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)[None, :]
    change = estimate(name, p._replace(gains=moved)).gradient - estimate(name, p).gradient
    change[:, :, 7] = 0
    assert bool((change.abs() > 1e-12).any()) == ESTIMATORS[name].is_global


@pytest.mark.parametrize("name", [n for n in NAMES if ESTIMATORS[n].is_symmetric])
def test_gradients_that_are_symmetric_in_gains(name: str) -> None:
    p = random_problem(50, 4)
    other = torch.randn(p.gains.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    there = (estimate(name, p).gradient * other).sum(dim=(1, 2))
    back = (estimate(name, p._replace(gains=other)).gradient * p.gains).sum(dim=(1, 2))
    torch.testing.assert_close(there, back, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_that_is_told_is_that_of_the_assignment(name: str) -> None:
    p = random_problem(50, 4)
    if (score := estimate(name, p).score) is None:
        pytest.skip("tells none")
    q = build_estimator({"name": name}).assignment(p.scores, p.width)
    torch.testing.assert_close(score, (q * p.scores).sum(dim=(1, 2)))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "perturbed"])
def test_a_constant_on_all_gains_of_a_user_changes_no_gradient(name: str) -> None:
    p = random_problem(50, 4)
    constant = torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = estimate(name, p._replace(gains=p.gains + constant))
    torch.testing.assert_close(moved.gradient, estimate(name, p).gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.value, estimate(name, p).value + constant.sum(dim=(1, 2)))


@pytest.mark.parametrize("noise", ["gaussian", "gumbel"])
def test_a_constant_on_all_gains_changes_no_mean_of_perturbed(noise: str) -> None:
    p = copies(40_000)
    estimator = Perturbed(noise=noise)
    plain = estimate(estimator, p).gradient
    change = estimate(estimator, p._replace(gains=p.gains + 1.0)).gradient - plain
    error = change.std(dim=-1) / change.shape[-1] ** 0.5
    assert float(error.norm()) < 0.05 * float(plain.mean(-1).norm())
    assert float((change.mean(-1) / error).abs().max()) < 4.5


@pytest.mark.parametrize("name", NAMES)
@given(unit=st.floats(1e-3, 1e3), gain_unit=st.floats(1e-3, 1e3))
def test_units(name: str, unit: float, gain_unit: float) -> None:
    p = random_problem(10, 3)
    scaled = estimate(name, Problem(unit * p.scores, gain_unit * p.gains, unit * p.width, p.given))
    plain = estimate(name, p)
    torch.testing.assert_close(scaled.gradient, plain.gradient * gain_unit / unit, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(scaled.value, plain.value * gain_unit)


@pytest.mark.parametrize("name", NAMES)
def test_linear_in_the_gains(name: str) -> None:
    p, other = random_problem(20, 4), random_problem(20, 4, seed=1).gains
    total = estimate(name, p._replace(gains=p.gains + other))
    torch.testing.assert_close(
        total.gradient, estimate(name, p).gradient + estimate(name, p._replace(gains=other)).gradient
    )


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_arms_and_users_have_no_order(name: str) -> None:
    p = random_problem(30, 4)
    g = torch.Generator().manual_seed(0)
    arms, users = torch.randperm(4, generator=g), torch.randperm(30, generator=g)[:20]
    shuffled = Problem(
        p.scores[:, arms][..., users], p.gains[:, arms][..., users], p.width, arms.argsort()[p.given[users]]
    )
    found, plain = estimate(name, shuffled), estimate(name, p)
    torch.testing.assert_close(found.gradient, plain.gradient[:, arms][..., users])


@pytest.mark.parametrize("name", NAMES)
def test_strided_inputs(name: str) -> None:
    p = random_problem(30, 4)
    users_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (p.scores, p.gains)]
    found = estimate(name, p._replace(scores=users_first[0], gains=users_first[1]))
    torch.testing.assert_close(found, estimate(name, p))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_degenerate_problems_have_finite_gradients(name: str, kind: torch.dtype) -> None:
    p = random_problem(12, 4, kind=kind)
    cases = {
        "tied": p._replace(scores=torch.zeros_like(p.scores)),
        "tied far from 0": p._replace(scores=torch.full_like(p.scores, 1e8)),
        "one user": random_problem(1, 2, kind=kind),
        "no users": Problem(p.scores[..., :0], p.gains[..., :0], p.width, p.given[:0]),
        "huge scores": p._replace(scores=1e8 * p.scores),
        "huge scores, tiny width": p._replace(scores=1e8 * p.scores, width=torch.full_like(p.width, 1e-30)),
        "tiny width": p._replace(width=torch.full_like(p.width, 1e-30)),
        "huge width": p._replace(width=torch.full_like(p.width, 1e30)),
        "no gains": p._replace(gains=torch.zeros_like(p.gains)),
    }
    for case, problem in cases.items():
        found = estimate(name, problem)
        q = build_estimator({"name": name}).assignment(problem.scores, problem.width, torch.Generator())
        assert found.gradient.shape == problem.scores.shape, case
        assert found.gradient.isfinite().all(), case
        assert found.value.isfinite().all(), case
        torch.testing.assert_close(q.sum(1), torch.ones_like(q.sum(1)), msg=case)
    for case in ("huge scores, tiny width", "tiny width"):
        value = estimate(name, cases[case]).value.double()
        torch.testing.assert_close(value, hard_goal(p.scores.float(), p.gains.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["nes", "perturbed", "score_function", "gaussian", "softmax"])
def test_noise_decides_between_equal_scores_however_large(name: str) -> None:
    p = random_problem(4000, 4, kind=torch.float32)
    q = build_estimator({"name": name}).assignment(torch.full_like(p.scores, 3e7), p.width, torch.Generator())
    torch.testing.assert_close(q.mean(2), torch.full((3, 4), 0.25), rtol=0, atol=0.02)


def test_configs_build_what_they_name() -> None:
    config = {"name": "softmax", "temperature": 2.5}
    estimator = build_estimator(config)
    assert isinstance(estimator, Softmax)
    assert estimator.width == 2.5
    assert config == {"name": "softmax", "temperature": 2.5}
    assert build_estimator({"name": "nes", "sigma": None, "pairs": 4}).summary["evaluations"] == 8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(
            ({"name": n, ESTIMATORS[n].width_name: bad}, rf"estimator\.{ESTIMATORS[n].width_name}={bad}; allowed: a ")
            for n in NAMES
            for bad in (0.0, -1.0, float("nan"), float("inf"))
        ),
        *(({"name": "nes", "pairs": bad}, rf"estimator\.pairs={bad}; ") for bad in (0, -1, 2.5, True)),
        ({"name": "nes_global", "pairs": 0}, r"estimator\.pairs=0; allowed: a whole number of at least 1; fix: "),
        ({"name": "perturbed", "samples": 0}, r"estimator\.samples=0; allowed: a whole number of at least 1; fix: "),
        ({"name": "score_function", "samples": 1}, r"estimator\.samples=1; allowed: a whole number of at least 2"),
        ({"name": "gaussian", "nodes": 7}, r"estimator\.nodes=7; allowed: a whole number of at least 8; fix: "),
        ({"name": "perturbed", "noise": "cauchy"}, r"estimator\.noise='cauchy'; allowed: gaussian, gumbel; fix: "),
        ({"name": "ifd", "clip": "none"}, r"estimator\.clip='none'; allowed: box, push; fix: "),
        ({"name": "softmax", "sigma": 1.0}, r"estimator\.sigma of 'softmax'; allowed: temperature; fix: "),
        ({"name": "nes", "samples": 1}, r"estimator\.samples of 'nes'; allowed: sigma, pairs; fix: "),
        ({"name": "softmx"}, r"estimator\.name='softmx'; allowed: softmax, gaussian, nes, .*straight_through; fix: "),
        ({}, r"estimator\.name=None; allowed: "),
    ],
)
def test_bad_arguments_are_told_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        build_estimator(config)
    assert "\n" not in str(told.value)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_cuda(name: str) -> None:
    p = random_problem(100, 5, kind=torch.float32)
    moved = Problem(*(x.cuda() for x in p))
    generator = torch.Generator("cuda").manual_seed(0)
    found = build_estimator({"name": name}).estimate(*moved, generator)
    assert found.gradient.is_cuda
    assert found.gradient.isfinite().all()
    if name in DETERMINISTIC:
        torch.testing.assert_close(found.gradient.cpu(), estimate(name, p).gradient, rtol=1e-4, atol=1e-5)
