"""The publisher's file as typed tables of bounded size, each thing amiss told in one line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from lightning_budget.data.damage import BROKEN, first_damage, reason
from lightning_budget.errors import InputError
from lightning_budget.published.description import Published
from lightning_budget.published.typed import allowed, typed

BATCH_ROWS = 1 << 16
BLOCK_BYTES = 1 << 24
"""Of csv text read at once."""
FORMATS = "a .csv, .csv.gz or .parquet file"
SUFFIXES = (".csv", ".csv.gz", ".parquet", ".pq")

Advance = Callable[[int], None]
"""Told how many more bytes of the source are done."""


@dataclass(frozen=True)
class Source:
    """One file of a data set; ``part`` of the description."""

    path: Path
    part: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    @property
    def is_csv(self) -> bool:
        """Whether it is text, compressed or not."""
        return self.path.name.endswith((".csv", ".csv.gz"))


@dataclass(frozen=True)
class Chunk:
    """Rows of a source.

    Attributes:
        table: typed, the columns of the description.
        first_row: number of the first row in its source, from 0.
        extra: columns of the file that the description does not know.
    """

    source: Source
    table: pa.Table
    first_row: int
    extra: tuple[str, ...]


def locate(data: Published, path: Path) -> list[Source]:
    """The files of a data set behind ``--from``.

    Raises:
        InputError: if they are not there.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file", FORMATS, f"get it from {data.where}")
    parts = [f for f in data.files if f.part]
    if not parts:
        if path.is_dir():
            raise InputError(f"{path} is a folder", FORMATS, f"give the file: --from {path / data.files[0].name}")
        return [_known_format(Source(path))]
    if not path.is_dir():
        names = " and ".join(f.name for f in parts)
        raise InputError(f"{path} is one file", f"a folder with {names}", "give the folder that holds them")
    return [_known_format(Source(_part_file(path, f.part), f.part)) for f in parts]


def _part_file(folder: Path, part: str) -> Path:
    found = [folder / (part + suffix) for suffix in SUFFIXES if (folder / (part + suffix)).is_file()]
    if len(found) != 1:
        seen = f"{folder} has no {part}.csv" if not found else f"{folder} has {' and '.join(p.name for p in found)}"
        raise InputError(seen, f"{part}.csv, {part}.csv.gz or {part}.parquet", "bring one of them")
    return found[0]


def _known_format(source: Source) -> Source:
    if not source.path.name.endswith(SUFFIXES):
        raise InputError(f"{source.path}: suffix {source.path.suffix!r}", FORMATS, "unpack or rename it")
    return source


def sha256(path: Path, advance: Advance) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def chunks(data: Published, source: Source, advance: Advance) -> Iterator[Chunk]:
    """Read a source, at most 65,536 rows (of csv: 16 MiB of text) at once.

    Raises:
        InputError: for a file that is damaged or empty, lacks a column, or holds what its columns cannot: naming file,
            column and row (for Parquet the row group too).
    """
    read = _csv if source.is_csv else _parquet
    rows = 0
    try:
        for place, table, extra in read(data, source, advance):
            # Damaged pages can decode to offsets and bytes that nothing has checked.
            table.validate(full=True)
            if len(table):
                yield Chunk(source, typed(data, table, source.path, place, rows), rows, extra)
                rows += len(table)
    except BROKEN as e:
        place, why = ("", "") if source.is_csv else first_damage([str(source.path)], list(data.columns))
        raise InputError(
            f"{place or f'{source.path}, beyond row {rows},'} cannot be read: {why or reason(e)}",
            FORMATS,
            "check that the file is whole: get it anew",
        ) from e
    if not rows:
        raise InputError(f"{source.path} has no rows", "at least one row", "bring a file with data")


Tables = Iterator[tuple[str, pa.Table, tuple[str, ...]]]


def _csv(data: Published, source: Source, advance: Advance) -> Tables:
    path = source.path
    if not source.size:
        raise InputError(f"{path} is empty", "a header and at least one row", "bring a file with data")
    with pa.OSFile(str(path)) as raw:
        stream = pa.CompressedInputStream(raw, "gzip") if path.suffix == ".gz" else raw
        names: list[str] = []
        types = {n: pa.string() if kind == "label" else pa.float64() for n, kind in data.columns.items()}
        try:
            reader = pyarrow.csv.open_csv(
                stream,
                pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
                convert_options=pyarrow.csv.ConvertOptions(column_types=types),
            )
            names = reader.schema.names
            extra = _check_names(data, path, names)
            done = 0
            for batch in reader:
                yield "", pa.Table.from_batches([batch]).select(list(data.columns)), extra
                advance(raw.tell() - done)
                done = raw.tell()
        except pa.ArrowInvalid as e:
            _explain_csv(path, names, data, e)
            raise


def _explain_csv(path: Path, names: Sequence[str], data: Published, error: pa.ArrowInvalid) -> None:
    found = re.match(r"In CSV column #(\d+): (?:Row #(\d+): )?.*invalid value (.*)", str(error).splitlines()[0])
    if found is None:
        return
    place = f" in line {found[2]}" if found[2] else ""
    column = names[int(found[1])] if names else _first_line(path)[int(found[1])]
    raise InputError(
        f"{path}: column {column!r} has the entry {found[3]}{place}",
        allowed(data.columns.get(column, "double")),
        "get the file anew, or mend the entry",
    ) from error


def _first_line(path: Path) -> list[str]:
    stream = pa.input_stream(str(path), compression="detect")
    with (
        stream,
        pyarrow.csv.open_csv(
            stream,
            convert_options=pyarrow.csv.ConvertOptions(column_types={}, auto_dict_encode=False, check_utf8=False),
        ) as reader,
    ):
        return reader.schema.names


def _parquet(data: Published, source: Source, advance: Advance) -> Tables:
    with pyarrow.parquet.ParquetFile(source.path) as file:
        extra = _check_names(data, source.path, file.schema_arrow.names)
        for group in range(file.metadata.num_row_groups):
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(data.columns)):
                yield f", row group {group}", pa.Table.from_batches([batch]).select(list(data.columns)), extra
            advance(source.size // file.metadata.num_row_groups)


def _check_names(data: Published, path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Columns that the description does not know."""
    missing = [name for name in data.columns if name not in names]
    if missing:
        found = f"{path} lacks column {missing[0]!r}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        strange = [n for n in names if n not in data.columns]
        close = get_close_matches(missing[0], strange, n=1, cutoff=0.6)
        fix = f"rename {close[0]!r}" if close else f"bring the file of {data.name}: {data.where}"
        raise InputError(found, f"the {len(data.columns)} columns as published", fix)
    if twice := [n for n in data.columns if list(names).count(n) > 1]:
        raise InputError(f"{path} has column {twice[0]!r} twice", "each column once", "remove one of the two")
    return tuple(n for n in names if n not in data.columns)
