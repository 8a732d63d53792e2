"""``@main("train")``: Hydra, with errors a person can read and an exit code a program can."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lightning_budget.cli.composition import check_command_line
from lightning_budget.cli.folder import discard_unused
from lightning_budget.errors import InputError
from lightning_budget.training import watchdog

TRACEBACK = "LIGHTNING_BUDGET_TRACEBACK"
"""Environment variable: set to 1 to see where an input error was raised."""

Task = Callable[[DictConfig], None]


def config_dir() -> Path:
    """The folder of the Hydra configs: ``configs/`` of a checkout, else the installed ``lightning_budget_configs``.

    Raises:
        InputError: neither is there.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir():
        return checkout / "configs"
    spec = importlib.util.find_spec("lightning_budget_configs")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"no configs beside {checkout} and no package lightning_budget_configs",
            "a checkout or an installed wheel",
            "pip install lightning-budget",
        )
    return Path(spec.submodule_search_locations[0])


def main(config_name: str, config_folder: Path | None = None) -> Callable[[Task], Callable[[], None]]:
    """Decorator: run ``task(cfg)`` with the config that ``config_name`` and the command line compose.

    All of Hydra's command line works (``key=value``, ``-m``, ``--cfg job``, ``--help``). Before anything else the
    overrides are checked; a bad one, or an ``InputError`` of the task, is printed as one line on stderr.

    Exit codes: 0 done; 2 input error; 130 interrupted; 1 anything else, with its traceback.
    ``LIGHTNING_BUDGET_TRACEBACK=1`` shows the traceback of input errors too.

    Args:
        config_name: name of the primary config, without ``.yaml``.
        config_folder: folder of the configs; by default ``config_dir()``.

    Returns:
        A decorator whose result takes no arguments and reads ``sys.argv``.
    """

    def decorate(task: Task) -> Callable[[], None]:
        @functools.wraps(task)
        def run_task(cfg: DictConfig) -> None:
            try:
                task(cfg)
            except InputError as error:
                # Caught in here, where Hydra has not yet announced a failed job on stderr.
                discard_unused()
                # Outside the trainer too, the other ranks are told, and rank 0 prints for all.
                watchdog.report(error)
                _exit_with(error)

        @functools.wraps(task)
        def run() -> None:
            # Exceptions that are not ours to translate keep their whole traceback.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            try:
                folder = config_dir() if config_folder is None else config_folder
                register_schemas()
                check_command_line(folder, config_name)
                hydra.main(version_base="1.3", config_path=str(folder.resolve()), config_name=config_name)(run_task)()
            except InputError as error:
                _exit_with(error)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)

        return run

    return decorate


def register_schemas() -> None:
    """Make the schemas known to Hydra, where OmegaConf finds them by name."""
    if importlib.util.find_spec("lightning_budget.config_schema") is not None:
        importlib.import_module("lightning_budget.config_schema")


def _exit_with(error: InputError) -> None:
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
