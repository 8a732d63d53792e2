"""Train two-stage and end-to-end under a budget, and compare what they earn: ``python scripts/train.py``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_budget import cli
from lightning_budget.atomic import atomic_path
from lightning_budget.cli.build import build_datamodule, quiet, run_folder_of, saved_config, with_overrides
from lightning_budget.cli.recipe import build_recipe
from lightning_budget.data.users import write_users
from lightning_budget.errors import InputError
from lightning_budget.losses.budgets import budget_grid
from lightning_budget.report import compare, print_report, write_report
from lightning_budget.training.comparison import (
    check_recipe,
    close_loggers,
    log_report,
    phase_names,
    run_comparison,
)
from lightning_budget.training.phase import Phase

EXAMPLE_USERS = 1000


def publish(checkpoint: Path, target: Path) -> None:
    """The checkpoint under a second name: a copy of a file, a link to a folder, whose tables may be large."""
    if checkpoint.is_file():
        with atomic_path(target) as path:
            shutil.copyfile(checkpoint, path)
    else:
        target.unlink(missing_ok=True)
        target.symlink_to(checkpoint.relative_to(target.parent))


def first_rows(user: Tensor) -> Tensor:
    """The first row of each of the first users, ascending: an allocation gives a user one treatment."""
    _, first = np.unique(user.numpy(), return_index=True)
    return torch.from_numpy(np.sort(first)[:EXAMPLE_USERS])


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
    publish(folder / best / "best.ckpt", folder / "best.ckpt")
    test = datamodule.split("test")
    write_users(test.select(first_rows(test.user)), datamodule.schema, folder / "example_users.parquet")
    report = compare(test, datamodule.schema, predictions, cfg.budgets, resamples=cfg.resamples, seed=cfg.seed)
    pictures = write_report(report, folder)
    log_report(trainer.loggers, report.numbers(), pictures[:1])
    close_loggers(trainer.loggers)
    print_report(report)
    print(f"Run folder: {folder}")


if __name__ == "__main__":
    main()
