"""From a composed training config to what its phases are built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from itertools import chain, count
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from datamodules import RCTDataModule
from lightning_budget.cli.build import build
from lightning_budget.errors import InputError
from lightning_budget.training.comparison import Recipe
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.objective.build import objective_builder
from lightning_budget.training.phase import Phase
from lightning_budget.training.plan import ShardingConfig, TableSharding
from lightning_budget.training.strategy import TorchRecStrategy


def build_recipe(cfg: DictConfig, datamodule: RCTDataModule) -> Recipe:
    """From config groups to what a phase is built from.

    Raises:
        InputError: for a method that has no network to train.
    """
    if (fit := OmegaConf.select(cfg, "benchmark.fit")) not in (None, "network"):
        raise InputError(f"a method whose fit is {fit}", "one with a network", "run it by scripts/benchmark.py")
    arguments: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    model = dict(arguments["model"])
    optimizer = model.pop("optimizer")
    objective = arguments["objective"]
    budget_objective = objective_builder(arguments["estimator"], objective, arguments["budgets"])

    def module() -> BudgetModule:
        return BudgetModule(
            schema=datamodule.schema.to_dict(),
            statistics=datamodule.statistics.to_dict(),
            model=model,
            seed=cfg.seed,
            loss=arguments.get("loss"),
            **optimizer,
        )

    def callbacks(name: str) -> list[L.Callback]:
        built = {key: build(c) for key, c in cfg.callbacks.items() if c is not None}
        if "epoch_lines" in built:
            built["epoch_lines"].title = name
        return list(built.values())

    def loggers(phase: Phase) -> list[Any]:
        built = []
        for config in (cfg.logger or {}).values():
            extra = {"save_dir": str(phase.folder)}
            if config._target_.endswith("CSVLogger"):
                # Lightning would delete what the process before this one has logged.
                names = chain(["csv"], (f"csv-{i}" for i in count(1)))
                extra["version"] = next(n for n in names if not (phase.folder / n / "metrics.csv").exists())
            if config._target_.endswith("WandbLogger"):
                extra |= {"name": f"{phase.folder.parent.name}/{phase.name}", "group": str(phase.folder.parent.name)}
            built.append(build(config, **extra))
        for logger in built:
            logger.log_hyperparams(arguments)
        return built

    return Recipe(
        module,
        callbacks,
        budget_objective if objective["enabled"] else None,
        loggers,
        strategy_builder(cfg, datamodule),
        {k: v for k, v in arguments["trainer"].items() if k != "strategy"},
        monitor="val/eom_hajek",
    )


def strategy_builder(cfg: DictConfig, datamodule: RCTDataModule) -> Callable[[Path | None], TorchRecStrategy]:
    """One strategy for one process, many, and GPUs, by the name it has and by ``auto``.

    Raises:
        InputError: for another strategy, and for layouts that do not exist.
    """
    name = TorchRecStrategy.strategy_name
    if cfg.trainer.strategy not in ("auto", name):
        raise InputError(f"trainer.strategy={cfg.trainer.strategy!r}", f"auto, {name}", "leave it out")
    settings: dict[str, Any] = OmegaConf.to_container(cfg.get("sharding") or OmegaConf.create(), resolve=True)  # type: ignore[assignment]
    tables = {table: table_sharding(table, s) for table, s in (settings.pop("tables", None) or {}).items()}
    default, pipeline = TableSharding(**settings.pop("default", {})), settings.pop("pipeline", False)
    sharding = ShardingConfig(default, tables, batch_size=datamodule.batch_size, **settings)

    def strategy(plan_file: Path | None) -> TorchRecStrategy:
        return TorchRecStrategy(
            sharding=sharding, checkpoint=cfg.get("checkpoint", "full"), pipeline=pipeline, plan_file=plan_file
        )

    strategy(None)
    return strategy


def table_sharding(table: str, settings: Any) -> TableSharding:
    """How one table may be laid out.

    Raises:
        InputError: for a key that there is not.
    """
    names = [f.name for f in fields(TableSharding)]
    if not isinstance(settings, dict) or set(settings) - set(names):
        raise InputError(
            f"sharding.tables.{table}={settings}", ", ".join(names), f"write +sharding.tables.{table}.types=[row_wise]"
        )
    return TableSharding(**settings)
