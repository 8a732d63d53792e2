"""Train two-stage and end-to-end under a budget, and compare what they earn: ``python scripts/train.py``."""

from __future__ import annotations

import shutil
from itertools import chain, count
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

import lightning_budget.training.strategy  # registers `torchrec`  # noqa: F401
from datamodules import RCTDataModule
from lightning_budget import cli
from lightning_budget.atomic import atomic_path
from lightning_budget.cli.build import build, build_datamodule, quiet, run_folder_of, saved_config, with_overrides
from lightning_budget.errors import InputError
from lightning_budget.estimators import build_estimator
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, budget_grid
from lightning_budget.parquet import write_users
from lightning_budget.report import compare, print_report, write_report
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.comparison import (
    Recipe,
    check_recipe,
    close_loggers,
    log_report,
    phase_names,
    run_comparison,
)
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.phase import Phase

EXAMPLE_USERS = 1000


def build_recipe(cfg: DictConfig, datamodule: RCTDataModule) -> Recipe:
    """From config groups to what a phase is built from."""
    arguments: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    model = dict(arguments["model"])
    optimizer = model.pop("optimizer")
    objective = arguments["objective"]
    estimator = build_estimator(arguments["estimator"])
    regularizer = BudgetRegularizer(estimator, objective["weighting"], objective["entropy"])

    def module() -> BudgetModule:
        return BudgetModule(
            schema=datamodule.schema.to_dict(),
            statistics=datamodule.statistics.to_dict(),
            model=model,
            seed=cfg.seed,
            **optimizer,
        )

    def callbacks(name: str) -> list[L.Callback]:
        built = {key: build(c) for key, c in cfg.callbacks.items() if c is not None}
        if "epoch_lines" in built:
            built["epoch_lines"].title = name
        return list(built.values())

    def budget_objective() -> BudgetObjective:
        return BudgetObjective(regularizer, arguments["budgets"], objective["warm_start_epochs"], objective["weight"])

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
        arguments["trainer"],
        monitor="val/eom_hajek",
    )


@cli.main("train")
def main(cfg: DictConfig) -> None:
    """One run: data, phases, table, pictures, checkpoint."""
    quiet()
    if cfg.ckpt_path:
        run = run_folder_of(Path(cfg.ckpt_path))
        cfg = with_overrides(saved_config(run))
        cfg.run_dir = str(run)
    datamodule = build_datamodule(cfg.data)
    recipe = build_recipe(cfg, datamodule)
    budget_grid(list(cfg.budgets), datamodule.statistics.free_spend)
    check_recipe(recipe, datamodule, cfg.baseline, Path(cfg.run_dir) if cfg.ckpt_path else None)
    if cfg.resamples < 1:
        raise InputError(f"resamples={cfg.resamples}", "at least 1", "200 give an interval, 1000 a smooth one")
    folder = cli.run_folder(cfg)
    predictions, trainer = run_comparison(recipe, datamodule, folder, cfg.baseline)
    if not trainer.is_global_zero:
        return
    best = Phase(phase_names(recipe, cfg.baseline)[-1], folder).name
    with atomic_path(folder / "best.ckpt") as path:
        shutil.copyfile(folder / best / "best.ckpt", path)
    test = datamodule.split("test")
    write_users(
        test.select(torch.arange(min(EXAMPLE_USERS, len(test)))), datamodule.schema, folder / "example_users.parquet"
    )
    report = compare(test, datamodule.schema, predictions, cfg.budgets, resamples=cfg.resamples, seed=cfg.seed)
    pictures = write_report(report, folder)
    log_report(trainer.loggers, report.numbers(), pictures[:1])
    close_loggers(trainer.loggers)
    print_report(report)
    print(f"Run folder: {folder}")


if __name__ == "__main__":
    main()
