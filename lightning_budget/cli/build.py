"""What the command lines share: building data modules from configs, and quiet libraries."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from datamodules import RCTDataModule
from lightning_budget.errors import InputError


def quiet() -> None:
    """Keep the terminal for what the run has to say: libraries' routine remarks go."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for remark in (".*does not have many workers.*", ".*exists and is not empty.*", ".*ShardedTensor.*deprecated.*"):
        warnings.filterwarnings("ignore", message=remark)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    # fbgemm installs a handler on the root logger: every message of Lightning would appear twice.
    logging.getLogger().handlers.clear()
    os.environ.setdefault("WANDB_SILENT", "true")
    if "OMP_NUM_THREADS" not in os.environ:
        # Small steps gain nothing from a second thread, and on a busy machine waiting for it costs a hundredfold.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")


def build(config: DictConfig, **extra: Any) -> Any:
    """Instantiate a config node; bad input keeps its one line instead of Hydra's wrapping.

    Raises:
        InputError: as the class raised it, or because it takes no such argument.
    """
    try:
        return instantiate(config, **extra)
    except InstantiationException as e:
        if isinstance(e.__cause__, InputError):
            raise e.__cause__ from None
        if isinstance(e.__cause__, TypeError) and "argument" in str(e.__cause__):
            raise InputError(
                f"{config._target_}: {e.__cause__}", "the arguments of that class", "leave out or add that key"
            ) from e
        raise


def check_can_be_made(folder: Path, key: str) -> None:
    """Refuse early a folder for results that could not be made later; makes nothing.

    Raises:
        InputError: naming the command line's ``key``.
    """
    nearest = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    why = "is a file" if not nearest.is_dir() else "cannot be written" if not os.access(nearest, os.W_OK) else ""
    if why:
        raise InputError(
            f"{key}={str(folder)!r}: {str(nearest)!r} {why}", "a folder that can be written", f"give another {key}=…"
        )


def build_datamodule(config: DictConfig) -> RCTDataModule:
    """Instantiate and load a data module."""
    datamodule = build(config)
    datamodule.setup()
    return datamodule


def saved_config(run: Path) -> DictConfig:
    """The config that a run folder records.

    Raises:
        InputError: if the folder records none.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise InputError(
            f"{str(run)!r} has no config.yaml", "a run folder of scripts/train.py", "give another ckpt_path"
        )
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def with_overrides(saved: DictConfig) -> DictConfig:
    """A saved config with this command line's ``key=value`` pairs on top; the saved groups stay."""
    pairs = [o for o in HydraConfig.get().overrides.task if "=" in o and not o.startswith(("+", "~"))]
    values = [o for o in pairs if not isinstance(OmegaConf.select(saved, o.split("=", 1)[0]), DictConfig)]
    merged = OmegaConf.merge(saved, OmegaConf.from_dotlist(values))
    assert isinstance(merged, DictConfig)
    return merged


def run_folder_of(path: Path) -> Path:
    """Run folder behind ``ckpt_path``: the folder itself, or that of a checkpoint in it or in one of its phases.

    Raises:
        InputError: if there is no run folder.
    """
    path = path.expanduser().absolute()
    # A sharded checkpoint is a folder itself.
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(
        f"ckpt_path={str(path)!r} belongs to no run folder",
        "a run folder or a checkpoint in one",
        "give runs/…/last.ckpt",
    )
