"""Every config composes, and the trainer's schema is Lightning's signature."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from datamodules import CampaignDataModule, RCTDataModule
from lightning_budget import config_schema
from lightning_budget.campaign import Campaign
from lightning_budget.config_schema import EstimatorConfig, ModelConfig, ObjectiveConfig, TrainerConfig
from lightning_budget.estimators import ESTIMATORS, build_estimator, estimator_arguments
from lightning_budget.models.learners import MODELS, model_options
from lightning_budget.training.objective.build import objective_builder

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OPTIONS = sorted(str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.glob("*/*.yaml"))
# Said by Lightning's and TorchRec's imports.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
# Filled in by a run for each of its phases.
FILLED_IN = {"logger", "callbacks", "plugins", "default_root_dir"}
# Estimators of the presets that follow a publication.
PRESETS = {
    "paper_reconstruction": "nes",
    "dfcl_pl": "softmax",
    "dfcl_mer": "softmax",
    "dfcl_ifd": "ifd",
    "ppl": "softmax",
    "pifd": "ifd",
}
# Values that a person must give.
OWN_TRIAL = ["data.path=x.parquet", "data.treatment=t", "data.arms=[a,b]", "data.value=v"]
REQUIRED = {"data/table": OWN_TRIAL, "data/parquet": OWN_TRIAL}


@pytest.fixture(autouse=True)
def _configs() -> Iterator[None]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def composed(*overrides: str, name: str = "train") -> DictConfig:
    return compose(name, list(overrides))


def classes(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Every ``_target_`` in a config with the keys beside it."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"], {k for k in node if not k.startswith("_")}
        for child in node.values():
            yield from classes(child)
    elif isinstance(node, list):
        for child in node:
            yield from classes(child)


def accepted(target: Any) -> set[str] | None:
    """Names of its arguments; ``None`` where a foreign class takes any. Data modules hand the rest on."""
    parents = [target]
    if inspect.isclass(target) and issubclass(target, RCTDataModule):
        parents = [t for t in target.__mro__ if issubclass(t, RCTDataModule)]
        parents += [Campaign] if issubclass(target, CampaignDataModule) else []
    parameters = [p for t in parents for p in inspect.signature(t).parameters.values()]
    if len(parents) == 1 and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def test_trainer_takes_lightnings_arguments_with_its_defaults() -> None:
    signature = inspect.signature(lightning.Trainer.__init__).parameters
    expected = {name: p.default for name, p in signature.items() if name != "self"}
    assert expected.keys() >= FILLED_IN
    config = TrainerConfig()
    assert {f.name: getattr(config, f.name) for f in fields(config)} == {
        name: default for name, default in expected.items() if name not in FILLED_IN
    }


def test_there_are_options() -> None:
    assert {o.partition("/")[0] for o in OPTIONS} >= {"data", "model", "estimator", "objective", "trainer", "debug"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_names_real_classes(option: str) -> None:
    group, _, choice = option.partition("/")
    config = composed(f"{group}={choice}", *REQUIRED.get(option, []))
    assert OmegaConf.missing_keys(config) == set()
    plain = OmegaConf.to_container(config, resolve=True)
    targets = list(classes(plain))
    assert targets
    for target, keys in targets:
        module, _, name = target.rpartition(".")
        known = accepted(getattr(importlib.import_module(module), name))
        if known is not None:
            assert keys <= known, f"{target} does not take {sorted(keys - known)}"


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith(("experiment/", "debug/"))])
def test_experiments_and_debug_options_change_something_and_combine(option: str) -> None:
    group, _, choice = option.partition("/")
    assert composed(f"{group}={choice}") != composed()
    for other in (o for o in OPTIONS if o.startswith(("experiment/", "debug/")) and not o.startswith(group)):
        composed(f"{group}={choice}", other.replace("/", "="))


def test_models_and_estimators_accept_their_configs() -> None:
    options = {f.name for model in MODELS.values() for f in fields(model.kind)}
    assert {f.name for f in fields(ModelConfig)} == {"name", "optimizer", *options}
    assert {p.stem for p in (CONFIGS / "model").glob("*.yaml")} == MODELS.keys()
    for name, model in MODELS.items():
        config: Any = OmegaConf.to_container(composed(f"model={name}").model)
        assert config.pop("optimizer")["schedule"] == "cosine"
        assert {key for key, value in config.items() if value is not None} == {
            "name",
            *(f.name for f in fields(model.kind)),
        }
        assert config["name"] == name
        model_options(config)
    arguments = {argument for name in ESTIMATORS for argument in estimator_arguments(name)}
    assert {f.name for f in fields(EstimatorConfig)} == {"name", *arguments}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_has_a_config_that_names_all_its_arguments(name: str) -> None:
    config = composed(f"estimator={name}").estimator
    assert {key for key, value in config.items() if value is not None} == {"name", *estimator_arguments(name)}
    built = build_estimator(OmegaConf.to_container(config))  # type: ignore[arg-type]
    assert type(built) is ESTIMATORS[name]
    assert built.width == config[built.width_name]


@pytest.mark.parametrize("name", [o.partition("/")[2] for o in OPTIONS if o.startswith("objective/")])
@pytest.mark.parametrize("estimator", [None, "score_function"])
def test_every_objective_is_built_with_its_own_estimator_and_any_other(name: str, estimator: str | None) -> None:
    config = composed(f"objective={name}", *([] if estimator is None else [f"estimator={estimator}"]))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    objective = objective_builder(plain["estimator"], plain["objective"], plain["budgets"])()
    expected = estimator or PRESETS.get(name, "softmax")
    assert isinstance(objective.regularizer.estimator, ESTIMATORS[expected])
    form = objective.regularizer.form
    assert {f.name: getattr(form, f.name) for f in fields(form)} == {
        f.name: plain["objective"].get(f.name, f.default) for f in fields(form)
    }


def test_presets_name_their_source_and_what_is_reconstructed() -> None:
    assert PRESETS.keys() <= {o.partition("/")[2] for o in OPTIONS if o.startswith("objective/")}
    primal = {name for name in PRESETS if composed(f"objective={name}").objective.form == "primal"}
    assert primal == {"paper_reconstruction", "ppl", "pifd"}
    text = {name: (CONFIGS / "objective" / f"{name}.yaml").read_text().lower() for name in PRESETS}
    assert all("arxiv:" in t and "reconstruct" in t for t in text.values())


def test_the_objectives_schema_is_what_its_config_says() -> None:
    given = OmegaConf.load(CONFIGS / "objective" / "default.yaml")
    assert {f.name for f in fields(ObjectiveConfig)} == set(given)


@pytest.mark.parametrize(
    "override",
    [
        "model.embeding_dim=8",
        "trainer.max_epoch=2",
        "objective.wieght=1",
        "estimator.sigmma=1",
        "sed=1",
        "model.optimizer.rl=1",
    ],
)
def test_mistyped_keys_are_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(override)


@pytest.mark.parametrize(
    "override",
    ["seed=one", "model.embedding_dim=wide", "trainer.max_epochs=few", "objective.weight=heavy", "budgets=0.1"],
)
def test_values_of_the_wrong_type_are_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(override)


@pytest.mark.parametrize("name", ["train", "evaluate", "allocate", "export", "plan"])
def test_every_command_has_a_schema_and_refuses_unknown_keys(name: str) -> None:
    assert (CONFIGS / f"{name}.yaml").is_file()
    schema = OmegaConf.structured(getattr(config_schema, f"{name.capitalize()}Config"))
    assert set(composed(name=name)) == set(schema)
    with pytest.raises(ConfigCompositionException):
        composed("no_such_key=1", name=name)
