"""Rows of raw features, scored batch by batch with a trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.data.files import check_names, read_columns, write_parquet
from lightning_budget.data.users import user_roles, users_of_rows
from lightning_budget.schema import DataSchema
from lightning_budget.streaming.source import Source

Model = Callable[..., ResponsePrediction]


class FeatureScorer:
    """A :class:`lightning_budget.streaming.predictions.Scorer` that runs a model.

    Predictions of a row depend in their last bits on the rows beside it in the batch, as matrix products do; batches
    are cut by the input's files and ``batch_rows``, whatever the number of processes.

    Args:
        model: ``model(dense, sparse)`` gives value and cost ``[n, K]``.
        schema: of its features and treatments.
        device: where it is.
        ids: the user column.
        seal: changes whenever the model does.
    """

    once = True

    def __init__(self, model: Model, schema: DataSchema, device: torch.device, ids: str, seal: str) -> None:
        self._model, self._schema, self._device = model, schema, device
        self.ids, self.seal = ids, seal
        self.roles = user_roles(schema, ids)
        self.columns = list(self.roles)
        self.treatments, self.arms, self.dtype = tuple(schema.treatments), schema.num_treatments, torch.float32

    @torch.no_grad()
    def __call__(self, batch: pa.RecordBatch, where: str) -> tuple[Tensor, Tensor]:
        users = users_of_rows(batch, where, self._schema, self.ids)
        rows = users.batch(torch.arange(len(users))).to(self._device)
        found = self._model(rows.dense, rows.sparse)
        return found.value.T.contiguous().cpu(), found.cost.T.contiguous().cpu()


def check_features(source: Source, scorer: FeatureScorer) -> None:
    """Refuse an input without one of the columns.

    Raises:
        InputError: naming it.
    """
    check_names(Path(source.root), source.columns(), list(scorer.roles.items()))
    source.check_alike(scorer.columns, [scorer.ids])


def as_parquet(path: Path, schema: DataSchema, ids: str, folder: Path) -> Path:
    """A Parquet copy of a csv file of users, in the work folder.

    Raises:
        InputError: as :func:`read_columns`.
    """
    folder.mkdir(exist_ok=True)
    stat = path.stat()
    copy = folder / f"{path.name}-{stat.st_size}-{stat.st_mtime_ns}.parquet"
    if not copy.is_file():
        file = read_columns(path, list(user_roles(schema, ids).items()))
        write_parquet(pa.table({name: column.data for name, column in file.items()}), copy)
    return copy
