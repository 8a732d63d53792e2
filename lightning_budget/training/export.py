"""A checkpoint without its trainer: plain PyTorch for scoring and serving."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from lightning_budget.errors import InputError
from lightning_budget.models.learner import Learner
from lightning_budget.models.registry import build_model
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.training.checkpoint import FUSED_OPTIMIZER_KEY, OBSERVED
from lightning_budget.training.sharded_checkpoint import FUSED, STATE, is_sharded_checkpoint, read_rest, read_tensors

PREFIX = "net."


def checkpoint_exists(path: str | Path) -> bool:
    """Whether a whole checkpoint of either format is there."""
    return Path(path).is_file() or is_sharded_checkpoint(path)


def read_checkpoint(path: str | Path, tensors: bool = True) -> dict[str, Any]:
    """Read a checkpoint of this library into host memory, in one process.

    Args:
        path: one file, whose tensors are mapped and not read; or the folder of a sharded checkpoint.
        tensors: also put together the tensors of a sharded checkpoint, whole.

    Returns:
        What Lightning saved: ``state_dict``, ``hyper_parameters``, ``optimizer_states``, ``loops``, ….

    Raises:
        InputError: if the checkpoint is missing, cannot be read, or is not of this library.
    """
    path = Path(path)
    fix = "give the best.ckpt or last.ckpt of a run folder"
    if not checkpoint_exists(path):
        raise InputError(f"checkpoint {str(path)!r} is not there, or not whole", "a checkpoint of this library", fix)
    try:
        if path.is_file():
            checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        else:
            checkpoint = read_rest(path)
            if tensors:
                checkpoint["state_dict"] = read_tensors(path, STATE)
                checkpoint[FUSED_OPTIMIZER_KEY] = read_tensors(path, FUSED)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, CheckpointException) as e:
        raise InputError(f"checkpoint {str(path)!r} cannot be read ({type(e).__name__})", "a whole file", fix) from e
    hyper = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if not {"schema", "statistics", "model"} <= hyper.keys():
        raise InputError(f"checkpoint {str(path)!r} names no schema, statistics and model", "one of this library", fix)
    return checkpoint


def load_schema(path: str | Path) -> DataSchema:
    """Data schema that a checkpoint was trained on."""
    return DataSchema.from_dict(read_checkpoint(path, tensors=False)["hyper_parameters"]["schema"])


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Learner:
    """Rebuild the network of a checkpoint as an ordinary module in eval mode.

    Needs no Lightning, no process group and no configs: ``model(dense, sparse)`` gives value and cost of every
    treatment, however many ranks trained it.

    Raises:
        InputError: if the checkpoint cannot be read or its weights do not fit the model it names.
    """
    checkpoint = read_checkpoint(path)
    hyper = checkpoint["hyper_parameters"]
    schema, statistics = DataSchema.from_dict(hyper["schema"]), DataStatistics.from_dict(hyper["statistics"])
    model = build_model(hyper["model"], schema, statistics)
    state = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        reason = str(e).splitlines()[-1].strip()
        raise InputError(
            f"checkpoint {str(path)!r} does not fit its model: {reason}", "weights of the model it names", "retrain it"
        ) from e
    # Saved inside an epoch: what validation would have put to use then.
    model.resume_observed(checkpoint.get(OBSERVED))
    model.settle(whole=False)
    model.resume_observed(None)
    return model.to(device).eval()
