"""A checkpoint without its trainer: plain PyTorch for scoring and serving."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from lightning_budget.errors import InputError
from lightning_budget.models import TARNet, build_model
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics

PREFIX = "net."


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this library into host memory, tensors mapped from the file.

    Raises:
        InputError: if the file is missing, cannot be read, or is no such checkpoint.
    """
    path = Path(path)
    fix = "give the best.ckpt or last.ckpt of a run folder"
    if not path.is_file():
        raise InputError(f"checkpoint {str(path)!r} is not a file", "a checkpoint of this library", fix)
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as e:
        raise InputError(f"checkpoint {str(path)!r} cannot be read ({type(e).__name__})", "a whole file", fix) from e
    hyper = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if not {"schema", "statistics", "model"} <= hyper.keys():
        raise InputError(f"checkpoint {str(path)!r} names no schema, statistics and model", "one of this library", fix)
    return checkpoint


def load_schema(path: str | Path) -> DataSchema:
    """Data schema that a checkpoint was trained on."""
    return DataSchema.from_dict(read_checkpoint(path)["hyper_parameters"]["schema"])


def load_model(path: str | Path, device: torch.device | str = "cpu") -> TARNet:
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
    return model.to(device).eval()
