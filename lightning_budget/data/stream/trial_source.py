"""The rows of a trial in Parquet files, a piece at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.data.arm_cuts import ArmCuts
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.compiled import usable
from lightning_budget.data.files import File, check_names
from lightning_budget.data.screening import screened_part
from lightning_budget.data.splits import SplitRule, split_of
from lightning_budget.data.stream.encoding import Encoded, encode
from lightning_budget.data.trial_rows import file_of_rows
from lightning_budget.data.where import Where
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.streaming.source import UNREADABLE, Piece, Source, open_parquet, open_source, unreadable
from lightning_budget.trial.rows import Kind

WORTH_KEEPING = 0.75
"""Where fewer rows train, the others are left out first, which costs a copy of all columns."""


@dataclass(frozen=True)
class TrialSource:
    """Parquet files, and what their columns mean.

    Attributes:
        source: the files and their pieces.
        columns: what their columns mean.
        rule: how rows are split; exclude: kinds of rows left out.
        cuts: where each arm's users are cut, once it is known, of a rule with ``stratify``.
    """

    source: Source
    columns: TableColumns
    rule: SplitRule
    exclude: tuple[Kind, ...] = ()
    cuts: ArmCuts | None = None

    @classmethod
    def open(
        cls, path: str, columns: TableColumns, rule: SplitRule, piece_rows: int, exclude: tuple[Kind, ...] = ()
    ) -> TrialSource:
        """Read all footers, and refuse what they tell already.

        Raises:
            InputError: for damaged footers, and columns that are missing or of types that do not go together.
        """
        trial = cls(open_source(path, piece_rows), columns, rule, exclude)
        check_names(Path(path), trial.source.columns(), trial.roles)
        trial._check_types()
        return trial

    @property
    def roles(self) -> list[tuple[str, str]]:
        """Names of all columns that are read, with the part each plays."""
        return self.columns.roles() + self.rule.roles(self.columns)

    @cached_property
    def names(self) -> list[str]:
        """Names of all columns that are read, each once."""
        return list(dict.fromkeys(name for name, _ in self.roles))

    @cached_property
    def _factored(self) -> list[str]:
        """Columns of text that are wanted as labels: files mostly hold them in factored form already."""
        labels = {self.columns.treatment, self.rule.column, *self.columns.categorical, *self.columns.strata}
        fields = [f for f in self.source.schema if f.name in labels]
        return [f.name for f in fields if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]

    @cached_property
    def key(self) -> str:
        """Changes when the rows may have, or what they mean."""
        text = repr((self.source.fingerprint(), self.columns, self.rule, *self.exclude))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @cached_property
    def first_row(self) -> list[int]:
        """Number of each piece's first row in all files together."""
        return [0, *np.cumsum([p.rows for p in self.source.pieces])[:-1].tolist()]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Paths of all files, in whose order rows are numbered."""
        return tuple(f.path for f in self.source.files)

    def read(self, piece: Piece, names: Collection[str] | None = None) -> File:
        """All rows of a piece.

        Args:
            names: columns to read, of those of the trial; ``None``: all of them.

        Raises:
            InputError: if they cannot be read, naming file, row group and column.
        """
        where = Where(self.first_row[piece.number], parts=self.parts)
        return file_of_rows(self._table(piece, self.names if names is None else names), self._path(piece), where)

    def split_of(self, file: File) -> NDArray[np.int8]:
        """``[N]`` 0 train, 1 val, 2 test, of some rows.

        Raises:
            InputError: as :func:`~lightning_budget.data.splits.split_of`.
        """
        assert not self.rule.stratify or self.cuts is not None, "the rows of a piece are not ranked among themselves"
        return split_of(file, self.columns, self.rule, self.cuts)

    def training_rows(self, piece: Piece, schema: DataSchema) -> tuple[Encoded, NDArray[np.uint32]]:
        """Rows of a piece, and which of them train, in the order of the file.

        Raises:
            InputError: as :func:`~lightning_budget.data.stream.encoding.encode`.
        """
        file = self.read(piece)
        if self.exclude:
            file, _ = screened_part(file, self.columns, self.exclude)
        part = self.split_of(file)
        index = _training(part)
        if len(index) < WORTH_KEEPING * len(part):
            train = np.zeros(len(part), bool)
            train[index] = True
            mask = pa.array(train)
            kept = {
                name: replace(c, data=c.data.filter(mask), where=None if c.where is None else c.where.kept(train))
                for name, c in file.items()
            }
            file, index = File(kept), np.arange(len(index), dtype=np.uint32)
        return encode(file, self.columns, schema), index

    def _path(self, piece: Piece) -> str:
        return self.source.file_of(piece).path

    def _table(self, piece: Piece, names: Collection[str]) -> pa.Table:
        file = self.source.file_of(piece)
        file.check_unchanged()
        constants = {k: v for k, v in file.constants.items() if k in names and k not in self.source.schema.names}
        physical = [c for c in names if c not in constants]
        try:
            table = _read(file.path, piece.groups, physical, piece.rows, self._factored)
        except UNREADABLE as error:
            raise self._located(piece, physical, error) from error
        for name, value in constants.items():
            column = pa.array([value]).take(pa.array(np.zeros(piece.rows, np.int8)))
            table = table.append_column(name, column)
        return table

    def _located(self, piece: Piece, columns: list[str], error: BaseException) -> InputError:
        """The error with the first row group and column that cannot be read."""
        path = self.source.file_of(piece).path
        for group in piece.groups:
            for name in columns:
                try:
                    _read(path, (group,), [name], None, self._factored)
                except UNREADABLE as e:
                    return unreadable(f"{path}: row group {group}, column {name!r}", e)
                except InputError as e:
                    return e
        return unreadable(path, error)

    def _check_types(self) -> None:
        """Refuse partitions that lack a column, or have one with a type that does not go with the first one's."""
        self.source.check_alike(self.names, [])
        schema = self.source.schema
        for file in self.source.files:
            for name, kind in file.unlike.items():
                if name not in self.names or kind is None:
                    continue
                try:
                    kinds = [pa.schema([(name, _plain(k))]) for k in (schema.field(name).type, kind)]
                    pa.unify_schemas(kinds, promote_options="permissive")
                except pa.ArrowException as e:
                    raise InputError(
                        f"{file.path}: column {name!r} has type {kind}",
                        f"{schema.field(name).type}, as in {self.source.files[0].name}",
                        "write all partitions with one type",
                    ) from e


def _training(part: NDArray[np.int8]) -> NDArray[np.uint32]:
    """Which rows train."""
    if not usable():
        return np.flatnonzero(part == 0).astype(np.uint32)
    from lightning_budget.data.compiled.rows import rows_of

    index = np.empty(len(part), np.uint32)
    return index[: rows_of(part, 0, index)]


def _read(path: str, groups: Sequence[int], columns: list[str], rows: int | None, factored: list[str]) -> pa.Table:
    with open_parquet(path, factored=factored) as file:
        expected = sum(file.metadata.row_group(g).num_rows for g in groups)
        # Pieces are read on threads of their own; Arrow's would be one for all of them.
        table = file.read_row_groups(list(groups), columns=columns, use_threads=False)
    if table.num_rows != expected or (rows is not None and rows != expected):
        raise pa.ArrowInvalid(f"{table.num_rows} rows where its footer told {expected if rows is None else rows}")
    # Damaged pages can decode to offsets and bytes that nothing has checked.
    table.validate(full=True)
    return table.select(columns)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Of the entries, for lists; of the labels, for dictionaries."""
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _plain(kind.value_type)
    return kind
