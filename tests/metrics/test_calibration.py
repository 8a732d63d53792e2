from __future__ import annotations

import numpy as np
import pytest
import torch
from metrics_reference import predictions, random_trial, rng

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.calibration import calibration, calibration_of, calibration_sums


def problem(rows=300, arms=3, integers=False):
    prediction, _ = predictions(rng(1), rows, arms, integers=integers)
    trial = random_trial(rng(2), rows, arms)
    factual = prediction.gather(1, trial["treatment"][:, None])[:, 0]
    return {
        "prediction": prediction,
        "treatment": trial["treatment"],
        "outcome": 0.5 + 0.8 * factual + trial["value"],
        "propensity": trial["propensity"],
    }


def reference(prediction, treatment, outcome, propensity, arm, bin_of):
    """Mean prediction, mean outcome, standard error, rows by bin; expected error, slope and intercept of an arm."""
    rows = np.flatnonzero(treatment.numpy() == arm)
    f, y = prediction.numpy()[rows, arm], outcome.numpy()[rows]
    w, out, error = 1 / propensity.numpy()[rows], [], 0.0
    for q in np.unique(bin_of[rows]):
        b = bin_of[rows] == q
        mean_f, mean_y = np.average(f[b], weights=w[b]), np.average(y[b], weights=w[b])
        deviation = np.sqrt((w[b] ** 2 * (y[b] - mean_y) ** 2).sum() * b.sum() / (b.sum() - 1)) / w[b].sum()
        out.append((mean_f, mean_y, deviation, b.sum()))
        error += w[b].sum() / w.sum() * abs(mean_y - mean_f)
    slope, intercept = np.polyfit(f, y, 1, w=np.sqrt(w))
    return np.array(out).T, error, slope, intercept


def equals_reference(result, data, bin_of):
    for arm in range(data["prediction"].shape[1]):
        bins, *line = reference(**data, arm=arm, bin_of=bin_of)
        np.testing.assert_allclose(torch.stack(result[:4])[:, arm], bins, rtol=1e-9)
        np.testing.assert_allclose([x[arm] for x in result[4:]], line, rtol=1e-9)


def test_equal_bins_of_every_arm_equal_a_loop():
    data = {**problem(), "propensity": torch.full((300,), 1 / 3, dtype=torch.float64)}
    bin_of = np.zeros(300, int)
    for arm in range(3):
        rows = np.flatnonzero(data["treatment"].numpy() == arm)
        rows = rows[np.argsort(data["prediction"].numpy()[rows, arm])]
        bin_of[rows] = (np.arange(len(rows)) + 0.5) / len(rows) * 5
    result = calibration(**data, bins=5)
    equals_reference(result, data, bin_of)
    assert (result.rows.max(1).values - result.rows.min(1).values <= 1).all()


def test_fixed_bins_with_varying_propensities_equal_a_loop():
    data, edges = problem(), [-1.0, 0.0, 1.0]
    factual = data["prediction"].gather(1, data["treatment"][:, None])[:, 0].numpy()
    equals_reference(calibration_of(calibration_sums(**data, edges=edges)), data, np.digitize(factual, edges))


def test_bins_hold_equal_inverse_propensity():
    data = problem(3000)
    result = calibration(**data, bins=4)
    factual = data["prediction"].gather(1, data["treatment"][:, None])[:, 0]
    for arm in range(3):
        given = data["treatment"] == arm
        held = 1 / data["propensity"][given]
        # Rows of the bins in order of the prediction.
        counts = result.rows[arm].long().tolist()
        shares = torch.stack([x.sum() for x in held[factual[given].argsort()].split(counts)]) / held.sum()
        torch.testing.assert_close(shares, torch.full((4,), 0.25, dtype=torch.float64), rtol=0.03, atol=0)


def test_calibrated_predictions():
    rows = 40_000
    prediction, _ = predictions(rng(5), rows, 2, integers=False)
    trial = random_trial(rng(6), rows, 2)
    factual = prediction.gather(1, trial["treatment"][:, None])[:, 0]
    outcome = factual + trial["value"]
    result = calibration(prediction, trial["treatment"], outcome, trial["propensity"], bins=10)
    z = (result.mean_outcome - result.mean_prediction) / result.standard_error
    assert float(z.abs().max()) < 4
    assert 0.5 < float(z.square().mean()) < 2
    torch.testing.assert_close(result.slope, torch.ones(2).double(), rtol=0.03, atol=0)
    half = calibration(2 * prediction + 1, trial["treatment"], outcome, trial["propensity"])
    torch.testing.assert_close(half.slope, result.slope / 2)
    torch.testing.assert_close(half.intercept, result.intercept - result.slope / 2)
    assert (half.expected_error > 10 * result.expected_error).all()


@pytest.mark.parametrize("integers", [False, True])
def test_order_of_rows_and_weights(integers):
    data = problem(integers=integers)
    weight = torch.randint(0, 4, (300,), generator=rng(3))
    expected = calibration(**data, weight=weight)
    order = torch.randperm(300, generator=rng(4))
    shuffled = calibration(**{k: x[order] for k, x in data.items()}, weight=weight[order])
    twice = torch.repeat_interleave(torch.arange(300), weight)
    repeated = calibration(**{k: x[twice] for k, x in data.items()})
    for other in (shuffled, repeated):
        torch.testing.assert_close(other, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_too_few_rows_are_not_a_number():
    data = {
        "prediction": torch.tensor([[1.0, 2.0, 0.0]] * 3),
        "treatment": torch.tensor([0, 0, 1]),
        "outcome": torch.tensor([3.0, 1.0, 5.0]),
        "propensity": torch.full((3,), 0.5),
    }
    result = calibration(**data, bins=1)
    torch.testing.assert_close(result.mean_outcome, torch.tensor([[2.0], [5.0], [torch.nan]]).double(), equal_nan=True)
    torch.testing.assert_close(
        result.standard_error, torch.tensor([[1.0], [torch.nan], [torch.nan]]).double(), equal_nan=True
    )
    assert result.rows.tolist() == [[2], [1], [0]]
    torch.testing.assert_close(result.expected_error, torch.tensor([1.0, 3.0, torch.nan]).double(), equal_nan=True)
    assert result.slope.isnan().all()  # one prediction for all rows of an arm


def test_one_prediction_for_all_rows_has_no_slope():
    data = problem()
    data["prediction"] = torch.tensor([0.1, 0.7, 1e6]).expand(300, 3)
    result = calibration(**data)
    assert result.slope.isnan().all()
    assert result.intercept.isnan().all()
    assert (result.rows > 0).sum(1).tolist() == [1, 1, 1]  # ties share a bin


def test_a_prediction_on_an_edge_belongs_above():
    data = {k: x[:3] for k, x in problem().items()}
    data["prediction"] = torch.tensor([[0.0], [1.0], [2.0]])
    data["treatment"] = torch.zeros(3, dtype=torch.long)
    assert calibration_of(calibration_sums(**data, edges=[1.0, 2.0])).rows.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": torch.full((20,), torch.nan)}, "20 entries of outcome"),
        ({"prediction": torch.full((20, 3), torch.nan)}, "20 entries of prediction"),
        ({"prediction": torch.zeros(20)}, r"\[N, K\]"),
        ({"treatment": torch.full((20,), 3)}, "3 to 3"),
        ({"propensity": torch.zeros(20)}, "above 0, at most 1"),
        ({"weight": -torch.ones(20)}, "20 weights are negative"),
        ({"weight": torch.ones(2, 20)}, "one weighting"),
        ({"bins": 0}, "bins=0"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(InputError, match=message) as error:
        calibration(**{**problem(20), **change})
    assert "\n" not in str(error.value)


def test_bad_edges():
    for edges in ([], [1.0, 1.0], [2.0, 1.0], [torch.nan]):
        with pytest.raises(InputError, match="ascending"):
            calibration_sums(**problem(20), edges=edges)


@pytest.mark.gpu
def test_cuda_gives_the_same():
    data = problem()
    on_gpu = calibration(**{k: x.cuda() for k, x in data.items()})
    for ours, expected in zip(on_gpu, calibration(**data), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-9, atol=1e-12)
