"""What a scan leaves of a piece: everybody's arm, and all of the users that are still open.

File: blocks of arms, one per batch, each followed by value and cost where predictions are not made again; then rows,
keys, values and costs of the open users; then a JSON footer and its length. It is renamed into place when it is
complete, so a spool is whole or not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.allocation.settled import Settled, arm_dtype
from lightning_budget.allocation.shared_users import Block
from lightning_budget.streaming.keys import ascends

_NUMPY = {torch.int8: np.int8, torch.int16: np.int16, torch.int64: np.int64}
_FLOATS = {torch.float32: np.float32, torch.float64: np.float64}
PLACE_BITS = 40
"""A place is the number of a piece and, in so many bits, the row in it."""


@dataclass(frozen=True)
class Footer:
    """Small facts of a piece.

    Attributes:
        seal: of the rows, the predictions and the bracket that it holds for.
        arms: K; blocks: rows of each block; open: users left.
        spend, worth: floats that sum exactly to those of all others.
        ascending: whether keys grow from row to row; first_key, last_key: the least and the largest one.
        double: whether numbers are float64.
        outcomes: whether value and cost stand beside the arms.
    """

    seal: str
    arms: int
    blocks: list[int]
    open: int
    spend: list[float]
    worth: list[float]
    ascending: bool
    first_key: int
    last_key: int
    double: bool
    outcomes: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    @property
    def row_bytes(self) -> int:
        """Of a user in a block."""
        return _NUMPY[arm_dtype(self.arms)]().itemsize + self.outcomes * 2 * _FLOATS[self.dtype]().itemsize

    @property
    def length(self) -> int:
        """Bytes before the footer."""
        each = 16 + 2 * self.arms * _FLOATS[self.dtype]().itemsize
        return sum(self.blocks) * self.row_bytes + self.open * each


class SpoolWriter:
    """Collects the batches of one piece; ``with`` it, and :meth:`close` at the end, or nothing is left behind."""

    def __init__(self, path: Path, seal: str, arms: int, dtype: torch.dtype, outcomes: bool) -> None:
        self._path, self._seal, self._arms, self._dtype, self._outcomes = path, seal, arms, dtype, outcomes
        self._temporary = path.with_suffix(".part")
        self._file: BinaryIO = open(self._temporary, "wb")  # noqa: SIM115
        self._blocks: list[int] = []
        self._open: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._spend: list[float] = []
        self._worth: list[float] = []
        self._ascending, self._first, self._last = True, 2**63 - 1, -(2**63)

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, arm: Tensor, value: Tensor, cost: Tensor, key: NDArray[np.int64], part: Settled) -> None:
        """One batch: arms ``[n]``, value and cost ``[K, n]``, keys ``[n]``, and what the bracket settles."""
        self._file.write(arm.numpy().data)
        if self._outcomes:
            chosen = arm.long()[None]
            for x in (value, cost):
                self._file.write(x.gather(0, chosen).numpy().data)
        first_row = sum(self._blocks)
        self._blocks.append(len(arm))
        left = torch.from_numpy(key[part.rows.numpy()])
        self._open.append((part.rows + first_row, left, part.value, part.cost))
        self._spend += part.spend
        self._worth += part.worth
        first, last = int(key[0]), int(key[-1])
        self._ascending = self._ascending and first > self._last and ascends(key)
        if not self._ascending:
            first, last = int(key.min()), int(key.max())
        self._first, self._last = min(self._first, first), max(self._last, last)

    def close(self) -> Footer:
        """Write what is left and put the file in its place."""
        rows, key, value, cost = (torch.cat(x, dim=-1) for x in zip(*self._open, strict=True))
        for x in (rows, key, value, cost):
            self._file.write(np.ascontiguousarray(x.numpy()).data)
        footer = Footer(
            seal=self._seal,
            arms=self._arms,
            blocks=self._blocks,
            open=len(rows),
            spend=self._spend,
            worth=self._worth,
            ascending=self._ascending,
            first_key=self._first,
            last_key=self._last,
            double=self._dtype == torch.float64,
            outcomes=self._outcomes,
        )
        text = json.dumps(asdict(footer)).encode()
        self._file.write(text + len(text).to_bytes(8, "little"))
        self._file.close()
        os.replace(self._temporary, self._path)
        return footer


def read_footer(path: Path) -> Footer | None:
    """The footer of a complete spool, ``None`` if there is none."""
    try:
        with open(path, "rb") as file:
            end = file.seek(-8, os.SEEK_END)
            size = int.from_bytes(file.read(8), "little")
            file.seek(end - size)
            footer = Footer(**json.loads(file.read(size)))
    except (OSError, ValueError, TypeError):
        return None
    return footer if footer.length + size + 8 == path.stat().st_size else None


def read_open(path: Path, footer: Footer, piece: int) -> Block:
    """The open users of a piece; their place tells the piece and the row."""
    m, dtype = footer.open, _FLOATS[footer.dtype]
    with open(path, "rb") as file:
        file.seek(sum(footer.blocks) * footer.row_bytes)
        rows, key = (torch.from_numpy(np.fromfile(file, np.int64, m)) for _ in range(2))
        value, cost = (
            torch.from_numpy(np.fromfile(file, dtype, m * footer.arms)).view(footer.arms, m) for _ in range(2)
        )
    return Block(value, cost, key, rows + (piece << PLACE_BITS))


def read_blocks(path: Path, footer: Footer) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor] | None]]:
    """Arm ``[n]`` of every block, and value and cost ``[n]`` where they are kept."""
    arm, number = _NUMPY[arm_dtype(footer.arms)], _FLOATS[footer.dtype]
    with open(path, "rb") as file:
        for n in footer.blocks:
            arms = torch.from_numpy(np.fromfile(file, arm, n))
            if footer.outcomes:
                value, cost = (torch.from_numpy(np.fromfile(file, number, n)) for _ in range(2))
                yield arms, (value, cost)
            else:
                yield arms, None
