"""One folder per run, made once and known to every process of the run."""

from __future__ import annotations

import os
import tempfile
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lightning_budget.errors import InputError

RUN_DIR = "LIGHTNING_BUDGET_RUN_DIR"
"""Environment variable: the run folder, already decided; children of Lightning's launcher inherit it."""

RECORD = "config.yaml"

_claims: list[tuple[Path, Path]] = []
_calls = count()


def run_folder(cfg: DictConfig, *, resuming: bool | None = None) -> Path:
    """Make the run folder ``cfg.run_dir`` and record the config in it; the same path in every process of the run.

    A folder that is there and not empty is left alone: the run goes to ``<run_dir>-1``, ``-2``, … unless it resumes.
    Lightning's child processes learn the path from the environment, those of torchrun from its store; launchers that
    start processes without either (Slurm) have ``LIGHTNING_BUDGET_RUN_DIR`` set to one folder for all of them.

    Args:
        cfg: the composed config, with ``run_dir``.
        resuming: write into ``run_dir`` whatever is in it; by default whether ``cfg.ckpt_path`` is set.

    Returns:
        The absolute path of the folder.

    Raises:
        InputError: the folder cannot be made or written.
    """
    if resuming is None:
        resuming = bool(cfg.get("ckpt_path"))
    rank, call = _rank(), next(_calls)
    wanted = Path(str(cfg.run_dir)).expanduser().absolute()
    # What this process has put there itself is the folder of an earlier run of a sweep.
    given = os.environ.get(RUN_DIR) if not _claims else None
    if given:
        wanted, resuming = Path(given).absolute(), True
    if rank > 0 and given:
        return wanted
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _agree(cfg, wanted, resuming, rank, call)
    if rank > 0:
        raise InputError(
            f"process of rank {rank} was not told the run folder",
            "processes started by Lightning or torchrun",
            f"set {RUN_DIR} to the same folder for all processes",
        )
    return _make(cfg, wanted, resuming)


def discard_unused() -> None:
    """Remove the run folder that this process made last if it holds nothing but the config."""
    if not _claims:
        return
    folder, existing = _claims[-1]
    if not folder.is_dir() or {p.name for p in folder.iterdir()} - {RECORD}:
        return
    (folder / RECORD).unlink(missing_ok=True)
    while folder != existing and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _rank() -> int:
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    # Lightning tells its children LOCAL_RANK, and node 1 onwards is told NODE_RANK by whoever starts it.
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", 0)))
    return local + int(os.environ.get("NODE_RANK", 0))


def _agree(cfg: DictConfig, wanted: Path, resuming: bool, rank: int, call: int) -> Path:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"{RUN_DIR}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{call}"
    if rank > 0:
        message = store.get(key).decode()
        if message.startswith("!"):
            raise InputError(
                f"run folder {str(wanted)!r} refused by rank 0", "a folder that can be written", message[1:]
            )
        return Path(message)
    try:
        folder = _make(cfg, wanted, resuming)
    except InputError as error:
        # The others wait for an answer.
        store.set(key, f"!{error}")
        raise
    store.set(key, str(folder))
    return folder


def _make(cfg: DictConfig, wanted: Path, resuming: bool) -> Path:
    existing = next(p for p in (wanted, *wanted.parents) if os.path.lexists(p))
    folder, number = wanted, 0
    while not _claim(cfg, folder, resuming):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    os.environ[RUN_DIR] = str(folder)
    if folder != wanted:
        existing = folder.parent
    _claims.append((folder, existing))
    return folder


def _claim(cfg: DictConfig, folder: Path, resuming: bool) -> bool:
    """Whether the folder is now ours; the config is created exclusively, so of two runs only one gets it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resuming and any(folder.iterdir()):
            return False
        with tempfile.TemporaryFile(dir=folder):
            pass
        text = OmegaConf.to_yaml(cfg, resolve=False)
        with open(folder / RECORD, "x") as record:
            record.write(text)
    except FileExistsError:
        if not folder.is_dir():
            raise _refusal(folder, "is a file") from None
        return resuming
    except OSError as error:
        raise _refusal(folder, error.strerror or str(error)) from error
    return True


def _refusal(folder: Path, why: str) -> InputError:
    return InputError(
        f"run folder {str(folder)!r}: {why}", "a folder that can be written", "give run_dir=<another folder>"
    )
