"""From the publisher's file to typed Parquet: checked on the way, whole or not there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from lightning_budget.atomic import atomic_path
from lightning_budget.errors import InputError
from lightning_budget.published.check import Check
from lightning_budget.published.checks import check_files, check_rows, comparable
from lightning_budget.published.description import Labels, Published
from lightning_budget.published.row_groups import METADATA, RowGroups
from lightning_budget.published.source import Advance, Source, chunks, locate, sha256
from lightning_budget.published.splits import SPLITS
from lightning_budget.published.tally import Tally

Progress = Callable[[str, int], Advance]
"""Called with a task and its size; returns what to call with the amounts done."""


def no_progress(task: str, size: int) -> Advance:
    """Show nothing."""
    return lambda done: None


@dataclass(frozen=True)
class Prepared:
    """What was done.

    Attributes:
        output: the file, ``None`` where checks failed and nothing was written.
        rows: in the output.
        left_out: rows without an entry in a required column.
        checks: all comparisons.
        remarks: what else to tell.
    """

    output: Path | None
    rows: int
    left_out: int
    checks: tuple[Check, ...]
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)


def prepare(
    data: Published, path: Path, output: Path, force: bool = False, progress: Progress = no_progress
) -> Prepared:
    """Check a publisher's file and write it as typed Parquet, in bounded memory.

    Args:
        path: the file, or the folder of a data set of several.
        output: the Parquet file; it appears whole or not at all.
        force: write it although checks failed.

    Raises:
        InputError: for a file that cannot be read as this data set at all.
    """
    with workplace(output) as folder:
        staged = folder / "staged.parquet"
        found = stage(data, path, staged, progress)
        if data.verify is not None and found.rows == data.rows:
            found = replace(found, checks=(*found.checks, data.verify(staged)))
        if not found.passed and not force:
            return found
        if data.split is not None:
            return _with_split(found, staged, output, data.split(staged), data.aside, progress)
        with atomic_path(output) as target:
            staged.replace(target)
    return replace(found, output=output)


@contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """A folder beside the output, for files on the way; gone afterwards.

    Raises:
        InputError: if it, or anything in it, cannot be written.
    """
    if output.suffix != ".parquet":
        raise InputError(f"{output} as output", "a .parquet file", "end its name in .parquet")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".") as folder:
            yield Path(folder)
    except OSError as e:
        raise InputError(
            f"{output} cannot be made: {e.strerror or e}", "a source to read, and room to write", "look after that"
        ) from e


def stage(data: Published, path: Path, target: Path, progress: Progress = no_progress) -> Prepared:
    """The part of :func:`prepare` that reads the source: typed rows in ``target``, checked, without ``complete``."""
    sources = locate(data, path)
    hashes: dict[Source, str | None] = {}
    for source in sources:
        known = comparable(data, source)
        hash_it = any(f.size == source.size for f in known)
        hashes[source] = sha256(source.path, progress(f"hashing {source.path.name}", source.size)) if hash_it else None
    tally = Tally(data)
    origin = {"data": data.name, "source": [s.path.name for s in sources], "licence": data.licence}
    with RowGroups(target, {**origin, "citation": data.citation}) as groups:
        for source in sources:
            for table in _rows(data, source, tally, progress(f"reading {source.path.name}", source.size)):
                groups.add(table)
    checks = (*check_files(data, hashes), *check_rows(tally))
    return Prepared(None, groups.rows, tally.lacking, checks, tuple(_remarks(tally)))


def _rows(data: Published, source: Source, tally: Tally, advance: Advance) -> Iterator[pa.Table]:
    for chunk in chunks(data, source, advance):
        table = chunk.table
        if data.derive is not None:
            table = data.derive(table, chunk.source.part, chunk.first_row)
        tally.extra.update(chunk.extra)
        tally.add(table, str(source.path), chunk.first_row)
        usable = np.ones(len(table), bool)
        for name in data.required:
            usable &= table[name].is_valid().to_numpy()
        tally.lacking += int((~usable).sum())
        yield table.filter(pa.array(usable)).drop_columns(list(data.dropped))


def _remarks(tally: Tally) -> Iterator[str]:
    data = tally.data
    if tally.lacking:
        yield f"{tally.lacking:,} rows without {' or '.join(data.required)} left out"
    for reason in dict.fromkeys(data.dropped.values()):
        yield f"left out: {', '.join(n for n, r in data.dropped.items() if r == reason)} ({reason})"
    if tally.extra:
        yield f"left out, as not published: {', '.join(sorted(tally.extra))}"
    if data.note:
        yield data.note


def _with_split(
    found: Prepared, staged: Path, output: Path, labels: Labels, aside: Sequence[str], progress: Progress
) -> Prepared:
    remarks = []
    for label in aside:
        file = output.with_stem(f"{output.stem}_{label}")
        rows = _write_split(staged, file, labels, [label], progress(f"writing {file.name}", found.rows))
        remarks.append(f"{rows:,} rows of {label}: {file.name}")
    # The file itself comes last: once it is there, all are.
    rows = _write_split(staged, output, labels, SPLITS, progress(f"writing {output.name}", found.rows))
    counts = (f"{int((labels.codes == labels.names.index(split)).sum()):,} {split}" for split in SPLITS)
    return replace(found, output=output, rows=rows, remarks=(f"split: {', '.join(counts)}", *remarks, *found.remarks))


def _write_split(staged: Path, output: Path, labels: Labels, kept: Sequence[str], advance: Advance) -> int:
    """Rows of the labels ``kept``, with the column ``split``; returns their number."""
    wanted = np.isin(labels.codes, [labels.names.index(label) for label in kept])
    with atomic_path(output) as target, pyarrow.parquet.ParquetFile(staged) as file:
        first = 0
        with RowGroups(target, json.loads(file.schema_arrow.metadata[METADATA])) as groups:
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group)
                rows = slice(first, first + len(table))
                split = pa.array(np.array(labels.names)[labels.codes[rows]], pa.string())
                groups.add(table.append_column("split", split).filter(pa.array(wanted[rows])))
                first += len(table)
                advance(len(table))
    return groups.rows
