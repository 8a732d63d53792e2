"""The input: Parquet files, cut into pieces of row groups that do not depend on who works on them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from lightning_budget.errors import InputError
from lightning_budget.streaming.storage import files_below, filesystem_of, is_url, open_binary, size_and_version

PIECE_ROWS = 1 << 20
"""Rows at which a piece is full; a larger row group is a piece of its own."""


UNREADABLE = (OSError, pa.ArrowException, UnicodeError, OverflowError, MemoryError)
"""What reading damaged files brings about."""


@dataclass(frozen=True)
class SourceFile:
    """One Parquet file as it was when the job began.

    Attributes:
        path: on this machine, or a URL.
        name: path below the input folder; of a single file its name.
        version: a text that changes when the file is written anew.
        group_rows: rows of each row group.
        constants: columns that the folders' names give, ``key=value``.
        unlike: types of the columns that have another one than in the first file, ``None`` where there is no column.
    """

    path: str
    name: str
    size: int
    version: str
    group_rows: tuple[int, ...]
    constants: dict[str, object]
    unlike: dict[str, pa.DataType | None]

    @property
    def rows(self) -> int:
        return sum(self.group_rows)

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that is another one by now.

        Raises:
            InputError: naming it.
        """
        try:
            same = size_and_version(self.path) == (self.size, self.version)
        except FileNotFoundError:
            same = False
        if not same:
            raise InputError(
                f"{self.path} was changed or removed while it was being read",
                "an input that stays as it is until the job ends",
                "run the command again; partitions that did not change are not scanned again",
            )


@dataclass(frozen=True)
class Piece:
    """Neighbouring row groups of one file: what one process works on at a time.

    Attributes:
        number: position among all pieces.
        file: position of the file; groups: of the row groups in it.
        first_row: its first row's position in the file.
    """

    number: int
    file: int
    groups: tuple[int, ...]
    first_row: int
    rows: int


@dataclass(frozen=True)
class Source:
    """All files in the order of their paths, all pieces in the order of their rows; ``schema`` of every file."""

    root: str
    single: bool
    files: tuple[SourceFile, ...]
    pieces: tuple[Piece, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    def file_of(self, piece: Piece) -> SourceFile:
        """The file of a piece."""
        return self.files[piece.file]

    def check_alike(self, present: list[str], typed: list[str]) -> None:
        """Refuse a file that lacks a column ``present`` in the first one, or has one of ``typed`` with another type.

        Raises:
            InputError: naming the file.
        """
        first = self.files[0].name
        for file in self.files:
            for name, kind in file.unlike.items():
                if kind is None and name in present:
                    raise InputError(
                        f"{file.path}: no column {name!r}", f"the columns of {first}", "write the partition again"
                    )
                if kind is not None and name in typed:
                    raise InputError(
                        f"{file.path}: column {name!r} has type {kind}",
                        f"{self.schema.field(name).type}, as in {first}",
                        "write all partitions with one type",
                    )

    def columns(self) -> list[str]:
        """Names of all columns, those of the folders' names last."""
        return [*self.schema.names, *(k for k in self.files[0].constants if k not in self.schema.names)]

    def seal(self, piece: Piece) -> str:
        """Changes when the rows of the piece may have."""
        file = self.file_of(piece)
        return json.dumps([file.name, file.size, file.version, piece.groups, piece.rows])

    def fingerprint(self) -> str:
        """Of all files, by their sizes and footers, which tell the least and the largest number of every column.

        It is that of a copy too, and needs no second reading of what may be larger than memory.

        Raises:
            InputError: if a file cannot be read.
        """
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{'' if self.single else Path(file.name).as_posix()}\0{file.size}\n".encode())
            digest.update(_footer_bytes(file.path))
        return digest.hexdigest()

    def label(self, piece: Piece) -> str:
        """A name for the piece's files in the work folder."""
        text = f"{self.file_of(piece).name}|{piece.groups[0]}"
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def open_source(path: Path | str, piece_rows: int | None = None) -> Source:
    """Read the footers of a Parquet file, or of all ``*.parquet`` files in a folder at any depth.

    Names that begin with ``.`` or ``_`` are passed over; a ``_metadata`` file says which partitions there must be.

    Args:
        path: file or folder; text with ``://`` is a URL that fsspec knows.
        piece_rows: ``PIECE_ROWS`` if not given.

    Raises:
        InputError: if a file is missing, truncated, or there is no row in any.
    """
    root, paths, names = _remote(str(path)) if is_url(path) else _local(Path(path))
    constants = [{} for _ in paths] if root is None else _constants(paths)
    files, schema = [], None
    for p, name, constant in zip(paths, names, constants, strict=True):
        size, version = _stat(p)
        group_rows, found = _footer(p)
        schema = found if schema is None else schema
        files.append(SourceFile(p, name, size, version, group_rows, constant, _unlike(found, schema)))
    assert schema is not None
    pieces = _pieces(files, PIECE_ROWS if piece_rows is None else piece_rows)
    if not pieces:
        raise InputError(f"{path} has no rows", "at least one row", "bring a file with data")
    return Source(str(path), root is None, tuple(files), tuple(pieces), schema)


def open_parquet(
    path: str, memory_map: bool = False, factored: Sequence[str] | None = None
) -> pyarrow.parquet.ParquetFile:
    """A Parquet file ready to be read.

    Args:
        factored: columns of text to be read as dictionaries.

    Raises:
        InputError: if it is missing, truncated or no Parquet.
    """
    settings: dict[str, Any] = {"page_checksum_verification": True, "read_dictionary": list(factored or [])}
    try:
        if is_url(path):
            return pyarrow.parquet.ParquetFile(open_binary(path), pre_buffer=True, **settings)
        return pyarrow.parquet.ParquetFile(path, memory_map=memory_map, **settings)
    except UNREADABLE as e:
        raise unreadable(path, e) from e


def unreadable(path: str | Path, error: BaseException) -> InputError:
    """The error for a file that cannot be read."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path} cannot be read: {text}", "whole Parquet files", "write the partition again")


def _local(path: Path) -> tuple[str | None, list[str], list[str]]:
    """The folder, ``None`` for a single file; paths of the files; their names."""
    if not path.exists():
        raise InputError(f"{path}: no such file", "a .parquet file, or a folder of them", "check the path")
    if path.is_file():
        return None, [str(path)], [path.name]
    paths = _files(path)
    _check_listed(path, paths)
    return str(path), [str(p) for p in paths], [str(p.relative_to(path)) for p in paths]


def _remote(url: str) -> tuple[str | None, list[str], list[str]]:
    try:
        paths, single = files_below(url)
    except OSError as e:
        raise InputError(f"{url}: no such file", "a .parquet file, or a folder of them", "check the path") from e
    if single:
        return None, paths, [url.rsplit("/", 1)[-1]]
    system, root = filesystem_of(url)
    root = system.unstrip_protocol(root).rstrip("/") + "/"
    named = {p: p.removeprefix(root) for p in paths if p.endswith(".parquet")}
    named = {p: n for p, n in named.items() if not any(part.startswith((".", "_")) for part in n.split("/"))}
    if not named:
        raise InputError(f"{url} has no .parquet file", "a .parquet file, or a folder of them", "check the path")
    return root, list(named), list(named.values())


def _stat(path: str) -> tuple[int, str]:
    try:
        return size_and_version(path)
    except OSError as e:
        raise unreadable(path, e) from e


def _files(folder: Path) -> list[Path]:
    found = sorted(
        p
        for p in folder.rglob("*.parquet")
        if p.is_file() and not any(part.startswith((".", "_")) for part in p.relative_to(folder).parts)
    )
    if not found:
        raise InputError(f"{folder} has no .parquet file", "a .parquet file, or a folder of them", "check the path")
    return found


def _check_listed(folder: Path, paths: list[Path]) -> None:
    listing = folder / "_metadata"
    if not listing.is_file():
        return
    try:
        footer = pyarrow.parquet.read_metadata(listing)
    except (OSError, pa.ArrowException) as e:
        raise unreadable(listing, e) from e
    listed = {footer.row_group(i).column(0).file_path for i in range(footer.num_row_groups)} - {""}
    present = {str(p.relative_to(folder)) for p in paths}
    if missing := sorted(listed - present):
        raise InputError(
            f"{folder}: partition {missing[0]!r} is missing ({len(missing)} of {len(listed)} listed in _metadata)",
            "every partition that _metadata lists",
            "bring it, or remove _metadata",
        )


def _constants(paths: list[str]) -> list[dict[str, object]]:
    if not any("=" in part for p in paths for part in p.split("/")):
        return [{} for _ in paths]
    system = None
    if is_url(paths[0]):
        system = filesystem_of(paths[0])[0]
        paths = [system._strip_protocol(p) for p in paths]
    data = pyarrow.dataset.dataset(paths, format="parquet", partitioning="hive", filesystem=system)
    by_path = {f.path: pyarrow.dataset.get_partition_keys(f.partition_expression) for f in data.get_fragments()}
    return [dict(by_path[p]) for p in paths]


def _footer(path: str) -> tuple[tuple[int, ...], pa.Schema]:
    with open_parquet(path) as file:
        try:
            footer = file.metadata
            rows = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
            return rows, file.schema_arrow.remove_metadata()
        except UNREADABLE as e:
            raise unreadable(path, e) from e


def _footer_bytes(path: str) -> bytes:
    try:
        with open_binary(path) as file:
            end = file.seek(-8, os.SEEK_END)
            size = int.from_bytes(file.read(4), "little")
            file.seek(end - size)
            return file.read(size)
    except OSError as e:
        raise unreadable(path, e) from e


def _unlike(found: pa.Schema, first: pa.Schema) -> dict[str, pa.DataType | None]:
    kinds = dict(zip(found.names, found.types, strict=True))
    return {f.name: kinds.get(f.name) for f in first if kinds.get(f.name) != f.type}


def _pieces(files: list[SourceFile], piece_rows: int) -> list[Piece]:
    pieces: list[Piece] = []
    for index, file in enumerate(files):
        groups: list[int] = []
        start = rows = 0
        for group, n in enumerate(file.group_rows):
            groups.append(group)
            rows += n
            if rows >= piece_rows or (rows and group == len(file.group_rows) - 1):
                pieces.append(Piece(len(pieces), index, tuple(groups), start, rows))
                groups, start, rows = [], start + rows, 0
    return pieces
