"""Scores as predictions: the policy at a multiplier is the method's own, and costs stay what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from learner_cases import SIZES, shaken, trial
from random_trials import random_schema, random_statistics
from torch import Tensor

from lightning_budget.allocation import policy_treatment
from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.models.direct_ranking import HEADROOM, DirectRanking
from lightning_budget.models.registry import build_model

COSTS = (0.02, 0.1, 0.4, 0.2)
"""Of four arms whose order by cost is 0, 1, 3, 2."""


def build(arms: int = 4, schema: dict[str, Any] | None = None, **options: Any) -> DirectRanking:
    torch.manual_seed(0)
    statistics = replace(random_statistics(arms), cost_mean=COSTS[:arms])
    config = {"name": "direct_ranking", **SIZES, **options}
    model = build_model(config, random_schema(arms, **(schema or {})), statistics)
    assert isinstance(model, DirectRanking)
    return model


def scored(model: DirectRanking, arms: int = 4) -> tuple[Tensor, ResponsePrediction]:
    """Returns that the scores say, ``[N, K]``, and the predictions."""
    batch = trial(300, arms)
    with torch.no_grad():
        output = model.outputs(batch.dense, batch.sparse)
    return model.roi_scale * torch.sigmoid(output.extra["score"]), output.prediction


def test_with_two_arms_the_policy_ranks_by_score_whatever_the_cost() -> None:
    q, prediction = scored(shaken(build(2)), 2)
    assert q[:, 1].std() > 0.03
    assert prediction.cost.diff(dim=1).std() > 0.003
    for quantile in (0.1, 0.5, 0.8):
        multiplier = float(q[:, 1].quantile(quantile))
        clear = (q[:, 1] - multiplier).abs() > 1e-4
        chosen = policy_treatment(prediction.value, prediction.cost, multiplier)
        assert torch.equal(chosen[clear], (q[:, 1] > multiplier).long()[clear])
        assert clear.sum() > 290


def test_where_returns_fall_from_step_to_step_the_policy_stops_at_the_first_too_low() -> None:
    q, prediction = scored(shaken(build(pairs="adjacent")))
    falling = (q[:, 1] > q[:, 3]) & (q[:, 3] > q[:, 2])
    multiplier = float(q[falling][:, 3].median())
    falling &= ((q[:, 1:] - multiplier).abs() > 1e-4).all(1)
    assert 20 < falling.sum() < 280
    chosen = policy_treatment(prediction.value, prediction.cost, multiplier)[falling]
    steps = (q[falling][:, [1, 3, 2]] > multiplier).sum(1)
    assert torch.equal(chosen, torch.tensor([0, 1, 3, 2])[steps])
    assert len(chosen.unique()) >= 2


@pytest.mark.parametrize("pairs", ["control", "adjacent"])
def test_increments_over_the_reference_are_the_return_times_the_cost(pairs: str) -> None:
    model = shaken(build(pairs=pairs))
    assert model.reference == ((0, 0, 0, 0) if pairs == "control" else (0, 0, 3, 1))
    q, prediction = scored(model)
    below = list(model.reference)
    cost = prediction.cost - prediction.cost[:, below]
    assert (cost[:, 1:] > 0).all()
    torch.testing.assert_close(prediction.value - prediction.value[:, below], q * cost, rtol=1e-3, atol=1e-5)
    assert (prediction.value[:, 0] == model.value_mean[0]).all()


def test_untrained_scores_are_the_mean_returns() -> None:
    q, prediction = scored(build())
    gain, cost = (torch.tensor(x)[1:] - x[0] for x in (random_statistics(4).value_mean, COSTS))
    expected = gain / cost
    torch.testing.assert_close(q[:, 1:], expected.expand(300, 3), rtol=1e-4, atol=0)
    assert build().roi_scale == pytest.approx(HEADROOM * float(expected.max()))
    assert build(roi_scale=7.0).roi_scale == 7
    torch.testing.assert_close(prediction.cost, torch.tensor(COSTS).expand(300, 4), rtol=1e-3, atol=1e-5)


def test_known_costs_are_kept_and_order_the_arms() -> None:
    model = shaken(build(schema={"known_cost": (0.0, 1.0, None, 0.5)}, pairs="adjacent"))
    assert model.order == [0, 2, 3, 1]
    _, prediction = scored(model)
    assert (prediction.cost[:, 0] == 0).all()
    small = prediction.cost[:, 2] < 0.49
    assert small.sum() > 0
    assert (prediction.cost[small, 3] == 0.5).all()


def test_costs_do_not_shape_the_representation() -> None:
    model, batch = shaken(build()), trial(20, 4)
    parameters = dict(model.named_parameters())
    model.outputs(batch.dense, batch.sparse).prediction.cost.sum().backward()
    reached = {name for name, p in parameters.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached
    assert all(name.startswith("cost_heads") for name in reached)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"pairs": "all"}, "pairs"), ({"roi_scale": -1.0}, "roi_scale"), ({"value_head": "funnel"}, "value_head")],
)
def test_bad_options_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=f"model.{word}"):
        build(**options)


def test_control_has_to_be_the_cheapest() -> None:
    statistics = replace(random_statistics(3), cost_mean=(0.2, 0.1, 0.3))
    with pytest.raises(InputError, match=r"'arm_1' costs 0\.1 per user, control 0\.2"):
        build_model({"name": "direct_ranking"}, random_schema(), statistics)
