"""Settings drawn for a trial, and the search spaces of the methods that there are."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lightning_budget.benchmark.classical import LEARNERS
from lightning_budget.benchmark.figure import KINDS
from lightning_budget.benchmark.search import check, draw
from lightning_budget.cli.composed import compose_config, fingerprint, plain, with_values
from lightning_budget.config_schema import BenchmarkConfig
from lightning_budget.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SPACE: dict[str, Any] = {"a": {"log": [0.001, 10.0]}, "b": {"uniform": [-1, 2]}, "c": {"choice": [[8], [16, 8], None]}}


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=5), st.text(max_size=5), st.integers(0, 99), st.integers(1, 9))
def test_a_draw_is_a_function_of_its_names_and_within_its_space(data: str, method: str, seed: int, trial: int) -> None:
    drawn = draw(SPACE, data, method, seed, trial)
    assert drawn == draw(dict(reversed(SPACE.items())), data, method, seed, trial)
    assert drawn.keys() == SPACE.keys()
    assert 0.001 <= drawn["a"] <= 10
    assert -1 <= drawn["b"] <= 2
    assert drawn["c"] in SPACE["c"]["choice"]
    others = [("x" + data, method, seed, trial), (data, "x" + method, seed, trial)]
    others += [(data, method, seed + 1, trial), (data, method, seed, trial + 1)]
    assert all(draw(SPACE, *other)["a"] != drawn["a"] for other in others)


def test_trial_0_is_the_preset_and_logarithms_are_uniform() -> None:
    assert draw(SPACE, "d", "m", 0, 0) == {}
    low = sum(draw(SPACE, "d", "m", s, 1)["a"] < 0.1 for s in range(400))
    assert 150 < low < 250, "0.1 lies in the middle of 0.001 and 10"


BAD: list[Any] = [0.1, {}, {"normal": [0, 1]}, {"log": [0, 1]}, {"uniform": [2, 1]}, {"log": [1]}, {"choice": []}]
BAD += [{"choice": 3}, {"choice": [1], "uniform": [0, 1]}]


@pytest.mark.parametrize("how", BAD)
def test_a_space_that_cannot_be_drawn_from_is_refused(how: Any) -> None:
    with pytest.raises(InputError, match=r"search\.key"):
        check({"key": how})


def test_every_method_has_a_kind_and_a_search_space_of_keys_that_exist() -> None:
    config = compose_config("train", [])
    shared = plain(OmegaConf.load(CONFIGS / "benchmark.yaml").search)
    methods = sorted((CONFIGS / "method").glob("*.yaml"))
    assert {"two_stage", "default", "paper_reconstruction"} <= {p.stem for p in methods}
    for path in methods:
        about = OmegaConf.load(path).benchmark
        assert about.kind in KINDS, path
        space = {**(shared if about.get("shared_search", True) else {}), **plain(about.get("search") or {})}
        config.benchmark = about
        for trial in (1, 2):
            assert with_values(config, draw(space, "d", path.stem, 0, trial)) != config


@pytest.mark.parametrize("fit", LEARNERS)
def test_settings_of_a_classical_method_are_arguments_of_its_function(fit: str) -> None:
    abouts = [OmegaConf.load(path).benchmark for path in (CONFIGS / "method").glob("*.yaml")]
    (about,) = [plain(a) for a in abouts if a.get("fit") == fit]
    arguments = inspect.signature(LEARNERS[fit][1]).parameters
    assert about["settings"].keys() <= arguments.keys()
    assert {key.removeprefix("benchmark.settings.") for key in about["search"]} == about["settings"].keys()
    assert {name: arguments[name].default for name in about["settings"]} == about["settings"]


def test_the_catalogue_names_configs_and_everything_has_a_tiny_form() -> None:
    catalogue = OmegaConf.load(CONFIGS / "benchmark.yaml").catalogue
    for name, entry in catalogue.items():
        group, _, choice = entry.overrides[0].partition("=")
        assert group == "data", name
        assert (CONFIGS / "data" / f"{choice}.yaml").is_file(), name
        assert "quick" in entry or "file" in entry, name
        assert ("generate" in entry) == ("quick_rows" in entry), name


def test_the_command_has_a_schema() -> None:
    config = compose_config("benchmark", [])
    assert set(config) == set(OmegaConf.structured(BenchmarkConfig))
    with pytest.raises(InputError, match="no_such_key"):
        compose_config("benchmark", ["no_such_key=1"])
    for key, value in (("model.no_such", 1), ("no_such", 1), ("trainer.max_epochs", "few")):
        with pytest.raises(InputError, match=key):
            with_values(compose_config("train", []), {key: value})


def test_a_fingerprint_is_of_the_values() -> None:
    config = compose_config("train", [])
    assert fingerprint(config, ("run_dir",)) == fingerprint(with_values(config, {"run_dir": "x"}), ("run_dir",))
    assert fingerprint(config, ("run_dir",)) != fingerprint(with_values(config, {"seed": 1}), ("run_dir",))
