from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from metrics_reference import rng

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.uplift_curve import auuc, qini, qini_curve, uplift_curve


def problem(rows=500):
    g = np.random.RandomState(0)
    x = g.rand(rows)
    treatment = (g.rand(rows) < 0.4).astype(int)
    outcome = (g.rand(rows) < 0.3 + 0.3 * x * treatment).astype(int)
    return x + 0.5 * g.rand(rows), treatment, outcome


def as_tensors(*columns):
    return [torch.from_numpy(x) for x in columns]


def loop(score, treatment, outcome, kind):
    """Points of the curve, row by row; scores must differ."""
    n, y, points = [0, 0], [0.0, 0.0], [(0.0, 0.0)]
    for i in np.argsort(-score):
        n[treatment[i]] += 1
        y[treatment[i]] += outcome[i]
        mean0 = y[0] / n[0] if n[0] else 0.0
        gain = ((y[1] / n[1] if n[1] else 0.0) - mean0) * sum(n) if kind == "uplift" else y[1] - mean0 * n[1]
        points.append((sum(n) / len(score), gain / len(score)))
    return np.array(points).T


# scikit-uplift 0.5.1, uplift_auc_score and qini_auc_score on problem(); on 1 − outcome; with scores rounded to tenths.
PUBLISHED = {
    "plain": (0.12300421798280904, 0.11577009433569743),
    "turned": (-0.10521360696306947, -0.084667110201833637),
    "ties": (0.11325043718302548, 0.1078251907246722),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_equals_published_figures(case):
    score, treatment, outcome = problem()
    assert (float(score.sum()), treatment.sum(), outcome.sum()) == (pytest.approx(376.12925207118104), 210, 180)
    outcome = 1 - outcome if case == "turned" else outcome
    columns = as_tensors(np.round(score, 1) if case == "ties" else score, treatment, outcome)
    figures = float(auuc(*columns).normalized), float(qini(*columns).normalized)
    assert figures == pytest.approx(PUBLISHED[case], rel=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_equals_scikit_uplift(share):
    sklift = pytest.importorskip("sklift.metrics")
    g = np.random.RandomState(1)
    for rows in (40, 1000):
        score, treatment = g.rand(rows), (g.rand(rows) < 0.5).astype(int)
        outcome = (g.rand(rows) < share).astype(int)  # both orders of the perfect uplift curve
        columns = as_tensors(score, treatment, outcome)
        expected = sklift.uplift_auc_score(outcome, score, treatment)
        assert float(auuc(*columns).normalized) == pytest.approx(expected, rel=1e-9)
        expected = sklift.qini_auc_score(outcome, score, treatment)
        assert float(qini(*columns).normalized) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("kind", "curve", "area"), [("uplift", uplift_curve, auuc), ("qini", qini_curve, qini)])
@pytest.mark.parametrize("continuous", [False, True])
def test_equals_a_loop(kind, curve, area, continuous):
    score, treatment, outcome = problem(200)
    if continuous:
        outcome = outcome * np.random.RandomState(2).randn(200)
    share, gain = loop(score, treatment, outcome, kind)
    ours = curve(*as_tensors(score, treatment, outcome))
    np.testing.assert_allclose(ours.share, share, rtol=1e-12)
    np.testing.assert_allclose(ours.gain, gain, rtol=1e-9, atol=1e-12)
    areas = area(*as_tensors(score, treatment, outcome))
    assert float(areas.area) == pytest.approx(np.trapezoid(gain, share), rel=1e-9)
    assert float(areas.above_random) == pytest.approx(np.trapezoid(gain, share) - gain[-1] / 2, rel=1e-9)
    if continuous:
        # The signed outcome ties only where it is 0: rows with 0 enter together.
        best = as_tensors(np.where(treatment == 1, outcome, -outcome), treatment, outcome)
        assert float(areas.normalized) == pytest.approx(float(areas.above_random / curve(*best).above_random))


def test_by_hand():
    # In order: treated 1, control 0, treated 0, control 1.
    columns = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert uplift_curve(*columns).share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert uplift_curve(*columns).gain.tolist() == [0, 0.25, 0.5, 0.375, 0]
    assert qini_curve(*columns).gain.tolist() == [0, 0.25, 0.25, 0.25, 0]
    assert [float(x) for x in auuc(*columns)] == pytest.approx([1.125 / 4, 1.125 / 4, 1])  # the perfect order
    assert [float(x) for x in qini(*columns)] == pytest.approx([0.75 / 4, 0.75 / 4, 1])
    together = torch.zeros(4)
    assert uplift_curve(together, *columns[1:]).gain.tolist() == [0, 0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(-1, 2), st.integers(1, 3)), min_size=4, max_size=12
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_order_of_rows_and_weights(rows, random, binary):
    score, treatment, outcome, weight = torch.tensor(rows).T
    assume(0 < int(treatment.sum()) < len(rows))
    outcome = (outcome > 0).long() if binary else outcome
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    twice = torch.repeat_interleave(torch.arange(len(rows)), weight)
    for area in (auuc, qini):
        expected = area(score, treatment, outcome, weight)
        shuffled = area(score[order], treatment[order], outcome[order], weight[order])
        repeated = area(score[twice], treatment[twice], outcome[twice])
        torch.testing.assert_close(shuffled, expected, rtol=1e-12, atol=1e-14, equal_nan=True)
        torch.testing.assert_close(repeated, expected, rtol=1e-12, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("area", [auuc, qini])
def test_weightings_at_once_are_those_one_by_one(area):
    columns = as_tensors(*problem(200))
    weight = torch.poisson(torch.ones(4, 200), generator=rng(1))
    weight[2, columns[1] == 1] = 0.0
    at_once = area(*columns, weight)
    assert at_once.normalized.isnan().tolist() == [False, False, True, False]
    for r in (0, 1, 3):
        one = torch.stack(area(*columns, weight[r]))
        torch.testing.assert_close(torch.stack(at_once)[:, r], one, rtol=1e-12, atol=0)


@pytest.mark.parametrize("area", [auuc, qini])
def test_rows_of_other_arms_are_left_out(area):
    score, treatment, outcome = as_tensors(*problem(300))
    arm = torch.where(treatment == 1, torch.arange(300) % 2 * 2 + 1, 0)
    kept = (arm == 0) | (arm == 3)
    expected = area(score[kept], treatment[kept], outcome[kept])
    assert area(score, arm, outcome, arm=3) == expected


def test_no_outcome_has_no_normalized_area():
    score, treatment, _ = as_tensors(*problem(50))
    for areas in (auuc(score, treatment, torch.zeros(50)), qini(score, treatment, torch.zeros(50))):
        assert float(areas.area) == 0
        assert areas.normalized.isnan()


@pytest.mark.parametrize("area", [auuc, qini])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": torch.full((20,), torch.nan)}, "20 entries of outcome are not finite"),
        ({"treatment": torch.arange(20) % 3 - 1}, "-1 to 1"),
        ({"arm": 2}, "no rows with treatment 2"),
        ({"weight": -torch.ones(20)}, "20 weights are negative"),
        ({"weight": torch.zeros(20)}, "total weight 0"),
        ({"score": torch.zeros(0)}, "0 rows"),
    ],
)
def test_bad_input(area, change, message):
    score, treatment, outcome = as_tensors(*problem(20))
    with pytest.raises(InputError, match=message) as error:
        area(**{"score": score, "treatment": treatment, "outcome": outcome, **change})
    assert "\n" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.parametrize("area", [auuc, qini])
def test_cuda_gives_the_same(area):
    columns = as_tensors(*problem())
    on_gpu = torch.stack(area(*(x.cuda() for x in columns))).cpu()
    torch.testing.assert_close(on_gpu, torch.stack(area(*columns)), rtol=1e-12, atol=0)
