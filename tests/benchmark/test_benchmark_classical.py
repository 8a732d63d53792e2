"""Methods of the benchmark that are no networks: settings, files and marks, and what is said without a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_benchmark_run import suite

import scripts.benchmark
from lightning_budget.benchmark import classical
from lightning_budget.benchmark.cell import FITS
from lightning_budget.benchmark.classical import LEARNERS, fitter, missing_library, predict_effects
from lightning_budget.benchmark.pool import run_here
from lightning_budget.benchmark.request import suite_of
from lightning_budget.benchmark.store import Store
from lightning_budget.classical import EffectModel
from lightning_budget.classical.effects import fit_effects
from lightning_budget.cli.composed import compose_config, plain
from lightning_budget.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")
METHOD = "boosted_r_learner"


class Effects:
    """As a library would fit them, but at once."""

    def __init__(self, arms: int) -> None:
        self.arms = arms

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x[:, :1] * np.arange(1, self.arms)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Settings of the fits while the test runs."""
    seen: list[dict[str, Any]] = []

    def learner(train: Any, schema: Any, statistics: Any, **settings: Any) -> EffectModel:
        seen.append(settings)
        return fit_effects(lambda _: Effects(schema.num_treatments), train, schema, statistics, max_categories=64)

    monkeypatch.setitem(FITS, METHOD, (fitter(learner), predict_effects))
    return seen


def test_trials_have_settings_and_are_fitted_again_where_those_or_the_file_are_others(
    tmp_path: Path, fitted: list[dict[str, Any]]
) -> None:
    asked = suite(tmp_path, methods=(METHOD,))
    (outcome,) = run_here(asked, list(asked.cells()))
    assert (outcome.state, outcome.trained) == ("done", 2), Store(tmp_path).note(outcome.cell)
    preset = plain(compose_config("train", [f"method={METHOD}"]).benchmark)["settings"]
    first, second = fitted
    assert first == {**preset, "seed": 3}
    assert second.keys() == first.keys()
    assert second != first
    store = Store(tmp_path)
    found = store.read(store.cell_file(outcome.cell))
    assert found is not None
    assert found["validations"][0] == found["validations"][1], "the same effects"
    assert found["validation"] == found["validations"][0]
    assert found["kind"] == "two_stage"

    def again(*overrides: str) -> int:
        (outcome,) = run_here(other := suite(tmp_path, methods=(METHOD,), overrides=overrides), list(other.cells()))
        return outcome.trained

    assert again(*asked.overrides, "model.embedding_dim=2", "trainer.max_epochs=9") == 0
    (store.trial_folder(outcome.cell, 0) / classical.FILE).unlink()
    store.cell_file(outcome.cell).unlink()
    assert again(*asked.overrides) == 1
    assert again(*asked.overrides, "benchmark.settings.trees=7") == 1, "trial 1 draws it"


def test_without_its_library_a_method_is_refused_by_name_and_left_out_of_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missing_library(None) is missing_library("network") is None
    monkeypatch.setattr(classical, "find_spec", lambda name: None)
    assert {fit: missing_library(fit) for fit in LEARNERS} == {fit: library for fit, (library, _) in LEARNERS.items()}
    store, methods = Store(tmp_path), scripts.benchmark.methods_there_are()
    absent = scripts.benchmark.absent_methods(store)
    assert absent == {"causal_forest": "econml", METHOD: "causalml"}
    config = plain(compose_config("benchmark", []))
    assert set(suite_of(config, methods, absent).methods) == set(methods) - set(absent)
    with pytest.raises(InputError, match=r"methods=causal_forest without econml.*pip install"):
        suite_of({**config, "methods": ["two_stage", "causal_forest"]}, methods, absent)
    cell = tmp_path / "cells" / "campaign" / "causal_forest" / "3.json"
    cell.parent.mkdir(parents=True)
    cell.touch()
    assert scripts.benchmark.absent_methods(store) == {METHOD: "causalml"}
    monkeypatch.setattr(classical, "find_spec", lambda name: object())
    assert scripts.benchmark.absent_methods(store) == {}


def test_training_refuses_a_method_without_a_network() -> None:
    from lightning_budget.cli.recipe import build_recipe

    config = compose_config("train", [f"method={METHOD}"])
    with pytest.raises(InputError, match=r"boosted_r_learner.*scripts/benchmark.py"):
        build_recipe(config, None)  # type: ignore[arg-type]
