"""The shell around Hydra that every script in ``scripts/`` shares."""

from lightning_budget.cli.folder import run_folder
from lightning_budget.cli.shell import config_dir, main

__all__ = ["config_dir", "main", "run_folder"]
