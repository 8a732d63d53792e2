"""What is known of a data set that somebody published: a description as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.published.check import Check

Kind = Literal["flag", "int16", "int32", "double", "label"]
TYPES: dict[str, pa.DataType] = {
    "flag": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "double": pa.float64(),
    "label": pa.string(),
}
"""Arrow types of the kinds of columns; a flag is 0 or 1."""


@dataclass(frozen=True)
class Labels:
    """A column of labels: row i has ``names[codes[i]]``."""

    codes: NDArray[np.int8]
    names: tuple[str, ...]


@dataclass(frozen=True)
class PublishedFile:
    """A file as it was published; ``None`` for what is not known to us.

    Attributes:
        name: its name.
        size: bytes.
        sha256: hexadecimal.
        part: for data sets of several files, which part of the data it holds.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    part: str = ""


@dataclass(frozen=True)
class Arm:
    """An arm of the trial; ``share`` of the users by design or as published, ``rows`` as published."""

    label: str
    share: float | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Rate:
    """Published mean of a column, over the rows of one arm or over all.

    Attributes:
        column: its name; rows with a null there do not count.
        value: the mean.
        digits: decimal places published: of the publisher's rows, the mean is ``value`` ± half a unit of the last.
        arm: label; ``None``: all rows.
    """

    column: str
    value: float
    digits: int
    arm: str | None = None


@dataclass(frozen=True)
class Published:
    """A data set.

    Attributes:
        name: as on the command line.
        title: what it is.
        where: where a person gets it.
        licence: its name, or that there is none.
        allows: what the licence allows and asks for.
        citation: what to cite.
        files: as published; data sets of several files are read from a folder.
        rows: as published, all files together.
        columns: names and kinds of the columns.
        treatment: column of the arm given (of the file, or one that ``derive`` adds).
        arms: control first.
        rates: published means.
        implies: pairs of flags of which the first, where it is 1, makes the second 1.
        nullable: columns that may have nulls.
        required: columns without which a row cannot be used; rows with nulls there are left out, and counted.
        dropped: columns left out, each with the reason.
        derive: adds columns to a table of rows, given the part they are from and their number from 0 in it.
        split: the column ``split``, where it needs all rows, from a Parquet file of them.
        verify: checks of that column where the file has all the rows published, from the same Parquet file.
        aside: labels of ``split`` whose rows go to files of their own, ``…_<label>.parquet``; rows of other labels than
            these and train, val and test are left out.
        unknown: what no source known to us says.
        note: what else to know.
    """

    name: str
    title: str
    where: str
    licence: str
    allows: str
    citation: str
    files: tuple[PublishedFile, ...]
    rows: int | None
    columns: Mapping[str, Kind]
    treatment: str
    arms: tuple[Arm, ...]
    rates: tuple[Rate, ...] = ()
    implies: tuple[tuple[str, str], ...] = ()
    nullable: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    derive: Callable[[pa.Table, str, int], pa.Table] | None = None
    split: Callable[[Path], Labels] | None = None
    verify: Callable[[Path], Check] | None = None
    aside: tuple[str, ...] = ()
    unknown: str = ""
    note: str = ""
