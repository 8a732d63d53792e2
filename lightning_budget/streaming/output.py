"""The output: as the input is partitioned, complete in the work folder before any of it takes its place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from lightning_budget.allocation.shared_decision import Decision
from lightning_budget.atomic import atomic_path, sync_path
from lightning_budget.errors import InputError
from lightning_budget.streaming.batches import read_piece
from lightning_budget.streaming.predictions import Scorer
from lightning_budget.streaming.progress import Rows
from lightning_budget.streaming.source import Piece, Source
from lightning_budget.streaming.spool import PLACE_BITS, Footer, read_blocks, read_open

CERTIFICATE, POLICY = "_certificate.json", "_policy.json"
"""Beside the partitions; readers of a folder pass over names that begin so."""

GROUP_ROWS = 1 << 20
"""Rows of a row group of the output."""


def check_output(source_path: Path, output: Path) -> None:
    """Refuse an output that would mix with the input or replace what is no allocation.

    Raises:
        InputError: saying which.
    """
    inside = source_path.resolve() in (output.resolve(), *output.resolve().parents)
    around = source_path.is_file() and output.resolve() in source_path.resolve().parents
    if inside or around or output.resolve() in source_path.resolve().parents:
        raise InputError(
            f"output={str(output)!r} and input={str(source_path)!r}",
            "an output apart from the input",
            "give another output=…",
        )
    if source_path.is_dir() and output.exists():
        if not output.is_dir():
            raise InputError(f"output={str(output)!r} is a file", "a folder, as the input", "give another output=…")
        if any(output.iterdir()) and not (output / CERTIFICATE).is_file():
            raise InputError(
                f"output={str(output)!r} holds something else than an allocation",
                "a new or empty folder, or an earlier output to replace",
                "give another output=…",
            )


def write_partition(
    source: Source,
    index: int,
    spools: dict[int, tuple[Path, Footer]],
    decision: Decision,
    certificate: dict[str, float | int],
    scorer: Scorer,
    path: Path,
    room: Path,
    batch_rows: int,
    tell: Rows,
) -> list[int]:
    """Write the output of one input file and say how many of its users got which treatment.

    Args:
        index: of the file.
        spools: of its pieces.
        path: replaced whole or not at all.
        room: a folder on the same disk, in which it grows.
        batch_rows: of the scan.

    Raises:
        InputError: if the file cannot be written, or the input changed.
    """
    counts = torch.zeros(scorer.arms, dtype=torch.int64)
    source.files[index].check_unchanged()
    ids = source.schema.field(scorer.ids)
    schema = _schema(ids, scorer).with_metadata({"certificate": json.dumps(certificate)})
    # Elsewhere until it is complete: what a killed job leaves must not be published with the rest.
    temporary = room / f"{index}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pyarrow.parquet.ParquetWriter(temporary, schema, **_encoding(schema)) as writer:
            held: list[pa.RecordBatch] = []
            for piece in (p for p in source.pieces if p.file == index):
                for batch in _decided(source, piece, spools[piece.number], decision, scorer, batch_rows, schema):
                    held.append(batch)
                    counts += torch.from_numpy(np.bincount(batch.column("treatment").to_numpy(), minlength=len(counts)))
                    tell(batch.num_rows)
                    if sum(b.num_rows for b in held) >= GROUP_ROWS:
                        writer.write_table(pa.Table.from_batches(held))
                        held = []
            if held:
                writer.write_table(pa.Table.from_batches(held))
        source.files[index].check_unchanged()
        sync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return counts.tolist()


def prepare(made: Path, source: Source) -> None:
    """Make the folder of the complete partitions, without those of inputs that are gone."""
    made.mkdir(exist_ok=True)
    names = {file.name for file in source.files}
    for path in made.rglob("*"):
        if path.is_file() and str(path.relative_to(made)) not in names:
            path.unlink()


def policy_path(output: Path, single: bool) -> Path:
    """Where the policy of an output stands: in its folder, or beside its only file."""
    return output.with_suffix(".policy.json") if single else output / POLICY


def publish(made: Path, output: Path, single: bool) -> None:
    """Put the complete output in its place; an earlier one is there until the moment before."""
    if single:
        (file,) = (p for p in made.iterdir() if p.suffix == ".parquet")
        os.replace(file, output)
        if (made / POLICY).exists():
            os.replace(made / POLICY, policy_path(output, single))
    else:
        earlier = made.with_name("earlier")
        if output.exists():
            os.replace(output, earlier)
        os.replace(made, output)
        shutil.rmtree(earlier, ignore_errors=True)
    sync_path(output.parent)


def write_certificate(folder: Path, certificate: dict[str, float | int]) -> None:
    """The certificate beside the partitions."""
    with atomic_path(folder / CERTIFICATE) as temporary:
        temporary.write_text(json.dumps(certificate, indent=1) + "\n")


def _schema(ids: pa.Field, scorer: Scorer) -> pa.Schema:
    number = pa.float64() if scorer.dtype == torch.float64 else pa.float32()
    fields = [("user_id", ids.type), ("treatment", pa.int64())]
    if scorer.treatments:
        fields.append(("treatment_name", pa.dictionary(pa.int32(), pa.string())))
    return pa.schema([*fields, ("value", number), ("cost", number)])


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Treatments repeat; predictions do not, and do not compress."""
    numbers = ("value", "cost")
    return {
        "use_dictionary": [n for n in schema.names if n.startswith("treatment")],
        "compression": {n: "none" if n in numbers else "snappy" for n in schema.names},
        "write_statistics": ["user_id", "treatment"],
    }


def _decided(
    source: Source,
    piece: Piece,
    spool: tuple[Path, Footer],
    decision: Decision,
    scorer: Scorer,
    batch_rows: int,
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    path, footer = spool
    rows, arm, value, cost = _open_users(path, footer, piece, decision)
    columns = [scorer.ids] if footer.outcomes else scorer.columns
    start = 0
    rest = _Stream(read_piece(source, piece, columns, batch_rows))
    for block_arm, kept in read_blocks(path, footer):
        n = len(block_arm)
        batch = rest.take(n)
        first, last = (int(torch.searchsorted(rows, x)) for x in (start, start + n))
        here = rows[first:last] - start
        block_arm[here] = arm[first:last].to(block_arm.dtype)
        chosen = block_arm.long()
        if kept is None:
            outcomes = [x.gather(0, chosen[None])[0] for x in scorer(batch, source.file_of(piece).path)]
        else:
            outcomes = list(kept)
            outcomes[0][here], outcomes[1][here] = value[first:last], cost[first:last]
        out = [batch.column(scorer.ids), pa.array(chosen.numpy())]
        if scorer.treatments:
            names = pa.array(scorer.treatments)
            out.append(pa.DictionaryArray.from_arrays(pa.array(chosen.int().numpy()), names))
        yield pa.RecordBatch.from_arrays([*out, *(pa.array(x.numpy()) for x in outcomes)], schema=schema)
        start += n


def _open_users(path: Path, footer: Footer, piece: Piece, decision: Decision) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row ``[m]``, arm, value and cost of the users whom the bracket left open, now decided."""
    block = read_open(path, footer, piece.number)
    arm = decision.arms(block)
    rows = block.place - (piece.number << PLACE_BITS)
    return rows, arm, block.value.gather(0, arm[None])[0], block.cost.gather(0, arm[None])[0]


class _Stream:
    """Batches cut anew: how many rows come at once may hang on the columns read."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches, self._held, self._rows = batches, [], 0

    def take(self, n: int) -> pa.RecordBatch:
        while self._rows < n:
            self._held.append(next(self._batches))
            self._rows += len(self._held[-1])
        whole = self._held[0] if len(self._held) == 1 else pa.concat_batches(self._held)
        self._held, self._rows = [whole.slice(n)], self._rows - n
        return whole.slice(0, n)
