"""From a checkpoint to the files that serving reads, none of which is kept unless it scores as the checkpoint does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_budget.allocation.policy_origin import PolicyOrigin
from lightning_budget.atomic import atomic_path
from lightning_budget.batch import RCTBatch
from lightning_budget.errors import InputError
from lightning_budget.models.learner import Learner
from lightning_budget.models.learners import model_config
from lightning_budget.schema import DataSchema
from lightning_budget.serving import ServingModel, load, load_program, save, save_program
from lightning_budget.table import RCTTable
from lightning_budget.training.serving_check import Comparison, Scorer, Trial

FORMATS = {"plain": ("model.pt",), "program": ("model.pt2",), "int8": ("model_int8.pt", "model_int8.pt2")}
"""The files of every export format."""


def to_serving(
    model: Learner,
    schema: DataSchema,
    statistics: Mapping[str, Any],
    multiplier: float | None = None,
    origin: PolicyOrigin | None = None,
) -> ServingModel:
    """The model for serving; it shares the weights, copying none.

    Args:
        model: unsharded, on one device.
        schema: that the model was built with; statistics: likewise, ``DataStatistics.to_dict()``.
        multiplier: λ of the policy that travels along, value per currency; origin: of that multiplier.

    Raises:
        InputError: for managed ids, whose rows only the training model's map knows.
    """
    if managed := [f.name for f in schema.sparse if f.ids == "managed"]:
        raise InputError(
            f"managed feature {managed[0]!r}, whose ids have no rows but those of the training model's map",
            "listed and hashed features in files for serving",
            "train it hashed (data.hashed), or score with scripts/allocate.py",
        )
    weights = []
    if model.sparse_arch is not None:
        bags: Any = model.sparse_arch.tables.embedding_bags
        weights = [bags[f.name].weight.detach() for f in schema.sparse]
    with torch.device("meta"):
        serving = ServingModel(schema, statistics, model_config(model), multiplier=multiplier, origin=origin)
    rest = {f"net.{n}": x for n, x in model.state_dict().items() if not n.startswith("sparse_arch.")}
    tables = {f"net.sparse_arch.tables.{i}.weight": weight for i, weight in enumerate(weights)}
    serving.load_state_dict(rest | tables, assign=True)
    return serving


def serving_inputs(batch: RCTBatch) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Dense features, values and offsets of a batch, as :meth:`ServingModel.forward` takes them."""
    if batch.sparse is None:
        return batch.dense, [], []
    lengths = batch.sparse.lengths().view(len(batch.sparse.keys()), len(batch))
    values = batch.sparse.values().split(lengths.sum(dim=1).tolist())
    offsets = torch.cat([lengths.new_zeros(len(lengths), 1), lengths.cumsum(dim=1)], dim=1).long()
    return batch.dense, list(values), list(offsets)


def write_checked(
    model: Learner, serving: ServingModel, users: RCTTable, formats: list[str], output: Path
) -> list[Comparison]:
    """Write the files of ``formats`` into a folder, all of them or, if one does not score as the model does, none.

    Args:
        model: the training model, to be compared with; serving: its form for serving.
        users: N users on whom they are compared.
        formats: keys of :data:`FORMATS`.
        output: folder, made if need be; files of the same names in it are replaced.

    Returns:
        The training model itself, then every file as read back from disk.

    Raises:
        InputError: if the folder cannot be written, or a float file differs from the model.
    """
    trial = Trial.of(model, users, serving.multiplier)
    rows = [trial.reference(serving.table_bytes)]
    try:
        with _folder(output), ExitStack() as files:
            for name in dict.fromkeys(name for f in formats for name in FORMATS[f]):
                path = files.enter_context(atomic_path(output / name))
                exported = serving.int8() if "int8" in name else serving
                save_program(exported, path) if name.endswith(".pt2") else save(exported, path)
                exact = exported.table_kind == "float32"
                rows.append(trial.compare(name, scorer(path), path.stat().st_size, exported.table_bytes, exact))
    except OSError as e:
        raise InputError(
            f"output={str(output)!r} cannot be written: {e.strerror or e}", "a writable folder", "give another output=…"
        ) from e
    return rows


def scorer(path: Path) -> Scorer:
    """Score with the file at ``path``, as a server would read it."""
    model = load_program(path)[0] if path.suffix == ".pt2" else load(path)

    def prepare(batch: RCTBatch, multiplier: float) -> Any:
        inputs = serving_inputs(batch)
        price = torch.tensor(multiplier, dtype=torch.float64)
        return lambda: model(*inputs, price)

    return prepare


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder; if the block fails, what was made and is still empty goes again."""
    made = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise
