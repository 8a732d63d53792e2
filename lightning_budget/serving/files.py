"""One file per serving model: plain tensors, plain containers, nothing to unpickle but those."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from lightning_budget.allocation.policy_origin import PolicyOrigin
from lightning_budget.atomic import atomic_path
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.serving.model import PREFIX, TABLES, ServingModel

FORMAT, VERSION = "lightning_budget.serving", 2


def description(model: ServingModel) -> dict[str, Any]:
    """Everything about a model but its weights, in containers that JSON has too."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "schema": model.schema.to_dict(),
        "statistics": model.statistics,
        "model": model.config,
        "tables": model.table_kind,
        "multiplier": model.multiplier,
        "origin": None if model.origin is None else model.origin.to_dict(),
    }


def save(model: ServingModel, path: str | Path) -> None:
    """Write a model; ``path`` is whole or untouched.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        # Into an open file: given a path, torch writes its (temporary) name into the archive.
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save({**description(model), "state": model.state_dict()}, file)
    except OSError as e:
        raise InputError(
            f"{path} cannot be written: {e.strerror or e}", "a writable folder", "create it, or name another one"
        ) from e


def load(path: str | Path, device: torch.device | str = "cpu") -> ServingModel:
    """Read a model that :func:`save` wrote; on the CPU its tensors stay mapped from the file until they are used.

    Raises:
        InputError: if the file is missing, damaged, or no such model.
    """
    fix = "give a .pt file that scripts/export.py wrote"
    if not Path(path).is_file():
        raise InputError(f"serving model {str(path)!r} is not a file", "a file", fix)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as e:
        raise InputError(f"serving model {str(path)!r} cannot be read ({type(e).__name__})", "a whole file", fix) from e
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} is no serving model", f"a file of format {FORMAT}", fix)
    if content["version"] == 1:
        content = _of_version_1(content)
    if content["version"] != VERSION or content["tables"] not in TABLES:
        raise InputError(
            f"{str(path)!r} has version {content['version']} and {content['tables']} tables",
            f"version {VERSION}, {' or '.join(TABLES)}",
            "read it with the release that wrote it, or export it again",
        )
    # Files of releases that did not write it have none.
    origin = content.get("origin")
    with torch.device("meta"):
        model = ServingModel(
            DataSchema.from_dict(content["schema"]),
            content["statistics"],
            content["model"],
            content["tables"],
            content["multiplier"],
            None if origin is None else PolicyOrigin.from_dict(origin),
        )
    try:
        model.load_state_dict(content["state"], assign=True)
    except RuntimeError as e:
        reason = str(e).splitlines()[-1].strip()
        raise InputError(f"{str(path)!r} does not fit its own description: {reason}", "a whole file", fix) from e
    return model.to(device)


def _of_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """There was one learner, whose parts lay beside the tables."""
    names = {k: PREFIX + k.removeprefix("tables.") if k.startswith("tables.") else f"net.{k}" for k in content["state"]}
    state = {names[k]: x for k, x in content["state"].items()}
    return {**content, "version": VERSION, "model": {"name": "tarnet", **content["layout"]}, "state": state}
