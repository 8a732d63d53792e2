"""The goal's weight on trials of few and of many rows that pay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from objective_runs import EPOCH, fit, objective
from training_runs import small_data

from lightning_budget.cli import config_dir
from lightning_budget.cli.composed import compose_config
from lightning_budget.table import RCTTable
from lightning_budget.training.objective.credibility import paying_rows
from lightning_budget.training.objective.schedule import Schedule
from tests.random_trials import random_table


def with_values(values: list[float], weight: list[float] | None = None) -> RCTTable:
    table = random_table(len(values), seed=0)
    given = None if weight is None else torch.tensor(weight)
    return replace(table, value=torch.tensor(values), weight=given)


def test_equal_payers_count_one_each_and_a_large_one_alone() -> None:
    assert paying_rows(with_values([0.0, 3.0, 3.0, 0.0, 3.0])) == pytest.approx(3.0)
    assert paying_rows(with_values([0.0, 2.0, 1e6])) == pytest.approx(1.0, rel=1e-5)
    assert paying_rows(with_values([1.0, 3.0])) == pytest.approx(16 / 10)
    assert paying_rows(with_values([-3.0, 3.0, 0.0])) == pytest.approx(2.0), "losses count as gains do"
    assert paying_rows(with_values([0.0, 0.0])) == 0.0


def test_a_row_of_no_weight_does_not_count_and_units_do_not_matter() -> None:
    assert paying_rows(with_values([2.0, 2.0, 2.0], [1.0, 1.0, 0.0])) == pytest.approx(2.0)
    values, weights = [1.0, 2.0, 5.0, 0.0], [0.5, 1.0, 2.0, 1.0]
    in_cents = paying_rows(with_values([100 * v for v in values], [3 * w for w in weights]))
    assert in_cents == pytest.approx(paying_rows(with_values(values, weights)))


def test_half_the_weight_at_the_prior_rows() -> None:
    schedule = Schedule(weight=3.0, warm_start_epochs=2, prior_rows=500.0, ramp_epochs=4.0)
    assert schedule.weight_at(6.0, 500.0) == pytest.approx(1.5)
    assert schedule.weight_at(4.0, 500.0) == pytest.approx(0.75), "of the ramp's weight there"
    assert schedule.weight_at(6.0, 1500.0) == pytest.approx(2.25)
    assert schedule.weight_at(6.0, 0.0) == 0.0
    assert schedule.weight_at(6.0) == 3.0
    assert Schedule(weight=3.0, warm_start_epochs=0).weight_at(1.0, 0.0) == 3.0


def test_a_run_has_the_weight_of_its_training_split(tmp_path: Path) -> None:
    schedule = Schedule(weight=2.0, warm_start_epochs=1, prior_rows=300.0)
    value = small_data().train.value.double()
    n = float(value.sum() ** 2 / value.square().sum())
    assert 10 < n < len(value)
    weight = fit(tmp_path, objective(schedule=schedule)).notes.of("weight")
    assert min(weight) == EPOCH
    assert list(weight.values()) == pytest.approx([2.0 * n / (n + 300.0)] * len(weight))


def test_millions_of_rows_add_up() -> None:
    value = torch.empty(3_000_000).exponential_(generator=torch.Generator().manual_seed(1)).pow(2)
    exact = float(value.double().sum()) ** 2 / float(value.double().square().sum())
    table = replace(random_table(1, seed=0), value=value)
    assert paying_rows(table) == pytest.approx(exact, rel=1e-9)


PRESETS = sorted(path.stem for path in (config_dir() / "objective").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_published_presets_keep_the_whole_weight(preset: str) -> None:
    found = compose_config("train", [f"objective={preset}"]).objective
    if preset != "none":
        assert found.prior_rows == (10_000 if preset == "default" else 0)


def test_the_ablation_of_the_learner_has_the_whole_weight() -> None:
    assert compose_config("train", ["method=tarnet_goal"]).objective.prior_rows == 0
    assert compose_config("train", ["method=default"]).objective.prior_rows == 10_000
