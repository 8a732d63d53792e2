"""Points of time in a column, and the boundaries that they are compared with."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.data.column import Column, converted
from lightning_budget.errors import InputError

Boundary = float | int | str | dt.date
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Times:
    """N points of time.

    Attributes:
        values: ``[N]`` numbers as they stand, or int64 microseconds since 1970 (UTC).
        dates: they are dates or times, not numbers.
    """

    values: NDArray[Any]
    dates: bool

    def point(self, boundary: Boundary, column: Column) -> float | int:
        """The boundary as ``values`` are.

        Raises:
            InputError: for a number among dates, or a date among numbers.
        """
        point = boundary_of(boundary)
        if isinstance(point, dt.datetime) != self.dates:
            found, allowed = ("dates", "a date") if self.dates else ("numbers", "a number")
            raise column.error(f"has {found}, the boundary is {boundary!r}", allowed, "give boundaries of its kind")
        return (point - EPOCH) // dt.timedelta(microseconds=1) if isinstance(point, dt.datetime) else point

    def text(self, value: Any) -> str:
        """One of ``values`` as a person writes it."""
        return (EPOCH + dt.timedelta(microseconds=int(value))).isoformat() if self.dates else f"{value:g}"


def boundary_of(boundary: Boundary) -> float | dt.datetime:
    """A number, or a point of time in UTC.

    Raises:
        InputError: for anything else.
    """
    if isinstance(boundary, dt.datetime):
        return boundary if boundary.tzinfo else boundary.replace(tzinfo=dt.UTC)
    if isinstance(boundary, dt.date):
        return dt.datetime(boundary.year, boundary.month, boundary.day, tzinfo=dt.UTC)
    point = _parse(boundary) if isinstance(boundary, str) else float(boundary)
    if point is None or (isinstance(point, float) and not math.isfinite(point)):
        raise InputError(
            f"boundary {boundary!r}", "a number, or a date as 2024-03-01 or 2024-03-01T12:00:00", "mend it"
        )
    return point


@converted
def times_of(column: Column) -> Times:
    """``[N]`` points of time: numbers, dates, timestamps (without zone: UTC), or text of either.

    Raises:
        InputError: for another type, missing entries and text that is neither.
    """
    kind, types = column.data.type, pa.types
    if types.is_date(kind) or types.is_timestamp(kind):
        _check_there(column, column.data.is_null().to_numpy(zero_copy_only=False))
        return Times(_microseconds(column.data), True)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        data = column.data.cast(pa.float64(), safe=False) if types.is_decimal(kind) else column.data
        x = data.to_numpy(zero_copy_only=False)
        _check_there(column, ~np.isfinite(x))
        return Times(x, False)
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)):
        raise column.error(f"has type {kind}", "numbers, dates or times", "convert it")
    labels = column.labels()
    _check_there(column, labels.codes < 0)
    points = [_parse(name) for name in labels.names]
    if (odd := [n for n, p in zip(labels.names, points, strict=True) if n and p is None]) or (
        len({type(p) for n, p in zip(labels.names, points, strict=True) if n}) > 1
    ):
        found = f"has the entry {odd[0]!r}" if odd else "has both numbers and dates"
        raise column.error(found, "numbers, or dates as 2024-03-01 or 2024-03-01T12:00:00", "mend them")
    dates = any(isinstance(p, dt.datetime) for p in points)
    as_numbers = [(p - EPOCH) // dt.timedelta(microseconds=1) if isinstance(p, dt.datetime) else p or 0 for p in points]
    return Times(labels.take(as_numbers, 0, np.int64 if dates else np.float64), dates)


def _parse(text: str) -> float | dt.datetime | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        point = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return point if point.tzinfo else point.replace(tzinfo=dt.UTC)


def _microseconds(data: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    zone = data.type.tz if pa.types.is_timestamp(data.type) else None
    cast = data.cast(pa.timestamp("us", zone), safe=False)
    return cast.cast(pa.int64()).to_numpy(zero_copy_only=False)


def _check_there(column: Column, missing: NDArray[np.bool_]) -> None:
    if missing.any():
        found = f"has no time in {int(missing.sum())} of {len(missing)} rows{column.first(missing)}"
        raise column.error(found, "a time in every row", "drop those rows")
