"""Columns from csv, csv.gz and Parquet files, and Parquet files that are whole or not there."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet

from lightning_budget.atomic import atomic_path
from lightning_budget.data.column import Column
from lightning_budget.data.damage import BROKEN, first_damage, reason
from lightning_budget.data.where import Where
from lightning_budget.errors import InputError

TEXT_ROLES = ("treatment", "categorical", "user", "lists", "strata", "time", "split")
FORMATS = "a .csv, .csv.gz or .parquet file, or a folder of .parquet files"


class File(dict[str, Column]):
    """Columns by name."""


def read_columns(path: str | Path, roles: list[tuple[str, str]]) -> File:
    """Read some columns of a file or of a folder of Parquet files.

    Args:
        path: .csv, .csv.gz, .parquet, or a folder with .parquet files at any depth, in the order of their paths.
        roles: column names, each with the part it plays: those of ``TEXT_ROLES`` are read from csv as text, all
            others as numbers.

    Raises:
        InputError: if the file is missing, damaged or empty, or lacks a column.
    """
    path, where = Path(path), Where()
    if not path.exists():
        raise InputError(f"{path}: no such file", FORMATS, "check the path")
    try:
        if path.is_dir() or path.suffix in (".parquet", ".pq"):
            table, where = _read_parquet(path, roles)
        elif path.name.endswith((".csv", ".csv.gz")):
            table = _read_csv(path, roles)
        else:
            raise InputError(f"{path}: suffix {path.suffix!r}", FORMATS, "convert the file, or rename it")
    except BROKEN as e:
        place, why = first_damage(parquet_files(path), [name for name, _ in roles])
        if not place:
            place, why = str(path), reason(e)
        raise InputError(f"{place} cannot be read: {why}", FORMATS, "check that the file is whole") from e
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows", "at least one row", "bring a file with data")
    return File({name: Column(str(path), name, table.column(name), where) for name in table.column_names})


def _read_parquet(path: Path, roles: list[tuple[str, str]]) -> tuple[pa.Table, Where]:
    files = parquet_files(path)
    if not files:
        raise InputError(f"{path} has no .parquet file", FORMATS, "check the path")
    data = pyarrow.dataset.dataset(files, format="parquet", partitioning="hive")
    check_names(path, data.schema.names, roles)
    table = data.to_table(columns=list(dict.fromkeys(name for name, _ in roles)))
    # Damaged pages can decode to offsets and bytes that nothing has checked.
    table.validate(full=True)
    return table, Where(parts=tuple(files))


def parquet_files(path: Path) -> list[str]:
    """The Parquet files of a folder at any depth, in the order of their paths; a file itself; none for other files."""
    if path.is_dir():
        return [str(f) for f in sorted(path.rglob("*.parquet"))]
    return [str(path)] if path.suffix in (".parquet", ".pq") else []


def _read_csv(path: Path, roles: list[tuple[str, str]]) -> pa.Table:
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty", "a header and at least one row", "bring a file with data")
    with pyarrow.csv.open_csv(path, convert_options=pyarrow.csv.ConvertOptions(check_utf8=False)) as reader:
        names = reader.schema.names
    check_names(path, names, roles)
    # Types are set, not guessed: a guess sees only the first block of the file.
    types: dict[str, pa.DataType | None] = {}
    for name, role in roles:
        kind = pa.large_string() if role in TEXT_ROLES else pa.float64()
        types[name] = kind if types.get(name, kind) == kind else None
    options = pyarrow.csv.ConvertOptions(
        include_columns=list(types), column_types={name: kind for name, kind in types.items() if kind is not None}
    )
    try:
        return pyarrow.csv.read_csv(path, convert_options=options)
    except pa.ArrowInvalid as e:
        message = str(e).splitlines()[0]
        if (where := re.match(r"In CSV column #(\d+): (?:Row #(\d+): )?.*invalid value (.*)", message)) is None:
            raise
        column, row, value = names[int(where[1])], where[2], where[3]
        raise InputError(
            f"{path}: column {column!r} has the entry {value}" + (f" in line {row}" if row else ""),
            "numbers",
            "mend the entry, or list the column under categorical",
        ) from e


def check_names(path: Path, names: list[str], roles: list[tuple[str, str]]) -> None:
    """Refuse a file whose columns ``names`` lack one of the roles', or have it twice."""
    for name, role in roles:
        if names.count(name) == 1:
            continue
        if name in names:
            raise InputError(
                f"{path} has {names.count(name)} columns {name!r}", "one of each name", "rename or remove one"
            )
        close = get_close_matches(name, names, n=3)
        raise InputError(
            f"{path}: no column {name!r} (for {role})",
            ", ".join(names[:30]) + (", …" if len(names) > 30 else ""),
            "did you mean " + " or ".join(map(repr, close)) + "?" if close else f"name another column for {role}",
        )


def write_parquet(table: pa.Table, path: str | Path) -> None:
    """Write through a temporary file in the same folder, so that ``path`` is whole or untouched.

    Raises:
        InputError: if the folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise InputError(f"{path} as output", "a .parquet file", "end its name in .parquet")
    try:
        with atomic_path(path) as temporary:
            pyarrow.parquet.write_table(table, temporary)
    except OSError as e:
        raise InputError(
            f"{path} cannot be written: {e.strerror or e}", "a writable folder", "create it, or name another one"
        ) from e
