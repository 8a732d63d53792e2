"""Which columns hold value and cost, and how a batch of them becomes matrices with treatments first."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.streaming.keys import is_key_type
from lightning_budget.streaming.source import Source

CONTRACT = "value_0 … value_{K-1} and cost_0 … cost_{K-1}, or one list column of each"
_SINGLE = (pa.types.is_float32, pa.types.is_float16)


class Scorer(Protocol):
    """Turns rows of an input file into predictions.

    Attributes:
        columns: what it reads; ids: the user column among them.
        treatments: names, or none.
        arms: K; dtype: of value and cost.
        seal: changes whenever the same rows may give other predictions.
        once: whether predictions are dear, so that those needed later are kept rather than made again.
    """

    columns: list[str]
    ids: str
    treatments: tuple[str, ...]
    arms: int
    dtype: torch.dtype
    seal: str
    once: bool

    def __call__(self, batch: pa.RecordBatch, where: str) -> tuple[Tensor, Tensor]:
        """Value and cost ``[K, n]``; valid until the thread's next call."""
        ...


@dataclass
class PredictionColumns:
    """Columns of the input that are predictions already; K names each, or one of a list."""

    value: list[str]
    cost: list[str]
    ids: str
    treatments: tuple[str, ...]
    arms: int
    dtype: torch.dtype
    once = False

    def __post_init__(self) -> None:
        self.columns = [self.ids, *self.value, *self.cost]
        self.seal = repr((self.ids, self.value, self.cost, self.arms, str(self.dtype)))
        self._rooms = threading.local()

    def __call__(self, batch: pa.RecordBatch, where: str) -> tuple[Tensor, Tensor]:
        return self._matrix(batch, "value", self.value, where), self._matrix(batch, "cost", self.cost, where)

    def _matrix(self, batch: pa.RecordBatch, part: str, names: list[str], where: str) -> Tensor:
        n, rooms = batch.num_rows, vars(self._rooms)
        if part not in rooms or rooms[part].shape[1] < n:
            rooms[part] = torch.empty(self.arms, n, dtype=self.dtype)
        out = rooms[part].numpy()[:, :n]
        if self.arms == len(names):
            for row, name in zip(out, names, strict=True):
                row[:] = _numbers(batch.column(name))
            return rooms[part][:, :n]
        column = batch.column(names[0])
        lengths = pc.call_function("list_value_length", [column])
        if column.null_count or pc.call_function("min_max", [lengths]).as_py() != {"min": self.arms, "max": self.arms}:
            raise InputError(
                f"{where}: column {names[0]!r} has lists of other lengths or nulls",
                f"{self.arms} numbers in every row, as in the first",
                "write one number per treatment",
            )
        out[:] = _numbers(pc.call_function("list_flatten", [column])).reshape(n, self.arms).T
        return rooms[part][:, :n]


def prediction_columns(
    source: Source,
    ids: str,
    value: str | Sequence[str] | None,
    cost: str | Sequence[str] | None,
    treatments: Sequence[str] | None,
) -> PredictionColumns:
    """Find the columns in the schema of the input.

    Args:
        ids: the user column.
        value, cost: names; ``None``: by the contract ``value_0 …``, ``cost_0 …``.
        treatments: names of the K treatments for the output, if wanted.

    Raises:
        InputError: naming the column that is missing or of a wrong type.
    """
    names = source.schema.names
    values = _named(source, "value", value)
    costs = _named(source, "cost", cost)
    for name in (ids, *values, *costs):
        if name not in names:
            raise _missing(source, name)
    if not is_key_type(source.schema.field(ids).type):
        raise InputError(
            f"{source.root}: column {ids!r} has type {source.schema.field(ids).type}",
            "whole numbers or text",
            "name another user_column",
        )
    source.check_alike([ids, *values, *costs], [ids, *values, *costs])
    kinds = [_number_type(source, name) for name in (*values, *costs)]
    lists = [kind != source.schema.field(name).type for kind, name in zip(kinds, (*values, *costs), strict=True)]
    arms = len(values)
    if any(lists):
        if not all(lists) or len(values) != 1 or len(costs) != 1:
            raise InputError(
                f"value_columns={values}, cost_columns={costs} with lists", CONTRACT, "give one list column of each"
            )
        arms = _list_length(source, values[0])
    elif len(values) != len(costs):
        raise InputError(
            f"{len(values)} value columns {values} and {len(costs)} cost columns {costs}",
            "as many of each",
            "name the columns of all treatments in value_columns and cost_columns",
        )
    if treatments is not None and len(treatments) != arms:
        raise InputError(
            f"treatments={list(treatments)}", f"{arms} names, one per treatment", "name all of them, or leave it out"
        )
    dtype = torch.float32 if all(any(is_(k) for is_ in _SINGLE) for k in kinds) else torch.float64
    return PredictionColumns(values, costs, ids, tuple(treatments or ()), arms, dtype)


def _named(source: Source, part: str, given: str | Sequence[str] | None) -> list[str]:
    if given is not None:
        return [given] if isinstance(given, str) else list(given)
    found = [n for n in source.schema.names if re.fullmatch(rf"{part}_(0|[1-9]\d*)", n)]
    if not found:
        raise InputError(
            f"{source.root}: no columns {part}_0, {part}_1, …",
            CONTRACT,
            f"name them in {part}_columns, or give ckpt=… if these are features",
        )
    expected = [f"{part}_{j}" for j in range(len(found))]
    if gaps := [n for n in expected if n not in found]:
        raise _missing(source, gaps[0])
    return expected


def _missing(source: Source, name: str) -> InputError:
    names = source.columns()
    close = get_close_matches(name, names, n=3)
    return InputError(
        f"{source.root}: no column {name!r}",
        ", ".join(names[:30]) + (", …" if len(names) > 30 else ""),
        "did you mean " + " or ".join(map(repr, close)) + "?" if close else "name another column",
    )


def _number_type(source: Source, name: str) -> pa.DataType:
    kind = source.schema.field(name).type
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    if not (types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind)):
        raise InputError(
            f"{source.root}: column {name!r} has type {source.schema.field(name).type}",
            "numbers, or lists of numbers",
            "name the columns of predictions in value_columns and cost_columns",
        )
    return kind


def _list_length(source: Source, name: str) -> int:
    kind = source.schema.field(name).type
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size
    from lightning_budget.streaming.batches import first_row

    entry = first_row(source, name)
    if not entry:
        raise InputError(
            f"{source.root}: column {name!r} begins with an empty list", CONTRACT, "write one number per treatment"
        )
    return len(entry)


def _numbers(column: pa.Array) -> np.ndarray:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy(zero_copy_only=False)
