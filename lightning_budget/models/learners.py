"""Every learner by name; plain torch, so that serving can build one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.models.chosen_heads import chosen_heads
from lightning_budget.models.descn import DESCN
from lightning_budget.models.described import DescribedTARNet
from lightning_budget.models.direct_ranking import DirectRanking
from lightning_budget.models.dragonnet import DragonNet
from lightning_budget.models.learner import Learner, arguments
from lightning_budget.models.options import Options
from lightning_budget.models.s_learner import SLearner
from lightning_budget.models.t_learner import TLearner
from lightning_budget.models.tarnet import TARNet
from lightning_budget.schema import DataSchema

MODELS: dict[str, type[Learner]] = {
    "tarnet": TARNet,
    "s_learner": SLearner,
    "t_learner": TLearner,
    "dragonnet": DragonNet,
    "descn": DESCN,
    "described_tarnet": DescribedTARNet,
    "direct_ranking": DirectRanking,
}
"""Every model by the name that configs and checkpoints use."""


def model_options(config: Mapping[str, Any]) -> Options:
    """Options of the learner ``config["name"]`` from the other entries; those that are ``None`` are the default.

    Raises:
        InputError: if no learner has that name, it has no such option, or a value is not allowed.
    """
    given = {k: v for k, v in config.items() if v is not None and k != "name"}
    kind = model_class(config).kind
    if unknown := [k for k in given if k not in arguments(kind)]:
        raise InputError(
            f"model.{unknown[0]}={given[unknown[0]]} with model.name={config['name']}",
            ", ".join(arguments(kind)),
            "leave it out, or choose a model that has it",
        )
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return kind(**values)


def model_class(config: Mapping[str, Any]) -> type[Learner]:
    """The learner ``config["name"]``.

    Raises:
        InputError: if no learner has that name.
    """
    name = config["name"]
    if name not in MODELS:
        raise InputError(f"model.name={name!r}", ", ".join(MODELS), "choose one of the allowed")
    return MODELS[name]


def model_config(model: Learner) -> dict[str, Any]:
    """Name and every option of a learner, in plain containers; inverse of building it."""
    name = next(name for name, kind in MODELS.items() if type(model) is kind)
    return {"name": name, **_plain(model.options)}


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what it leaves out at its default: two describe one learner where they agree in this form.

    Raises:
        InputError: as :func:`model_options`.
    """
    return {"name": config["name"], **_plain(model_options(config))}


def decided_config(config: Mapping[str, Any], schema: DataSchema, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the heads that ``auto`` means on this data, which on other data may be others.

    Raises:
        InputError: as :func:`assemble`.
    """
    options, shares = model_options(config), model_class(config).shares_conversions
    value, cost = chosen_heads(options.value_head, options.cost_head, schema, statistics, shares)
    return {**config, "value_head": value, "cost_head": cost}


def assemble(config: Mapping[str, Any], schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any) -> Learner:
    """The learner that a config describes around a given encoder of the id features.

    Raises:
        InputError: as :func:`model_options`, and where its heads do not fit the data.
    """
    return model_class(config)(schema, statistics, sparse_arch, model_options(config))


def _plain(options: Options) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
