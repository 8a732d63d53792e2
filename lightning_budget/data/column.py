"""One column of a file, converted with one clear error for each thing amiss."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightning_budget.data.chunks import as_one
from lightning_budget.data.damage import BROKEN, reason
from lightning_budget.data.where import FROM_0, Where
from lightning_budget.data.whole_text import wholes_among
from lightning_budget.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Labels:
    """Labels in factored form.

    Attributes:
        codes: ``[N]`` int64 positions in ``names``, −1 where there is no label.
        names: the different labels.
    """

    codes: NDArray[np.int64]
    names: list[str]

    def take(self, of_name: Sequence[Any], missing: Any, dtype: type) -> NDArray[Any]:
        """One entry of ``of_name`` (parallel to ``names``) a row, ``missing`` where there is no label."""
        return np.array([*of_name, missing], dtype=dtype)[self.codes]

    def hashes(self) -> NDArray[np.uint64]:
        """``[N]``, a function of the label alone: equal in every file and process; 0 where there is none."""
        return self.take([stable_hash(n) for n in self.names], 0, np.uint64)


def stable_hash(label: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little")


def converted(convert: Callable[..., T]) -> Callable[..., T]:
    """What Arrow refuses to convert is the column's error, as damaged files bring it about."""

    @functools.wraps(convert)
    def checked(self: Column, *args: Any, **kwargs: Any) -> T:
        try:
            return convert(self, *args, **kwargs)
        except BROKEN as e:
            found = f"of type {self.data.type} cannot be read: {reason(e)}"
            raise self.error(found, "numbers, text, or lists of either", "check that the file is whole") from e

    return checked


@dataclass(frozen=True)
class Column:
    """One column of N rows, with what an error message needs to point at it; ``where`` is ``None`` for no rows."""

    file: str
    name: str
    data: pa.ChunkedArray | pa.Array
    where: Where | None = FROM_0

    def error(self, found: str, allowed: str, fix: str) -> InputError:
        """The error, naming file and column."""
        return InputError(f"{self.file}: column {self.name!r} {found}", allowed, fix)

    def first(self, bad: NDArray[np.bool_]) -> str:
        """``, the first in row 17``: the first of the rows ``bad`` (``[N]``), as a message goes on."""
        return "" if self.where is None else f", the first in {self.where.name(int(bad.argmax()))}"

    @converted
    def numbers(self, finite: bool = True) -> NDArray[np.float32]:
        """``[N]`` numbers; null is NaN. They may be the column's own memory, and then cannot be written to.

        Raises:
            InputError: for another type and, where they must be finite, for null, NaN and infinite entries.
        """
        kind = self.data.type
        types = pa.types
        if not any(
            is_(kind)
            for is_ in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
        ):
            raise self.error(f"has type {kind}", "numbers", "convert it to numbers, or list it under categorical")
        # Arrow casts no booleans to floats.
        data = self.data.cast(pa.int8()) if types.is_boolean(kind) else self.data
        with np.errstate(over="ignore"):
            if types.is_float32(kind) and not data.null_count:
                x = as_one(data).to_numpy(zero_copy_only=False)
            else:
                x = data.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32)
        if finite and not (fine := np.isfinite(x)).all():
            bad = ~fine
            raise self.error(
                f"has {int(bad.sum())} null, NaN or infinite entries of {len(x)}{self.first(bad)}",
                "finite numbers",
                "drop those rows, or fill them in",
            )
        return x

    @converted
    def labels(self) -> Labels:
        """Labels as text; null, NaN and empty text mean that there is none.

        Raises:
            InputError: for types that are no labels: fractions and nested types.
        """
        kind = self.data.type
        if pa.types.is_dictionary(kind):
            if (factored := self._factored()) is not None:
                return factored
            return Column(self.file, self.name, self.data.cast(kind.value_type), self.where).labels()
        if pa.types.is_nested(kind):
            raise self.error(f"has type {kind}", "one label a row", "list it under lists")
        # Text of a large file does not fit the 32-bit offsets of pa.string().
        data = self.data.cast(pa.large_string()) if pa.types.is_string(kind) else self.data
        encoded = as_one(data).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        names = self._names(encoded.dictionary)
        absent = np.array([n == "" for n in names] + [True])
        return Labels(np.where(absent[codes], -1, codes), names)

    @converted
    def factored(self) -> tuple[NDArray[np.integer[Any]], list[str]] | None:
        """Positions in some texts, and these, as they lie in a dictionary; ``None`` of nulls and of another column."""
        if not pa.types.is_dictionary(self.data.type) or self.data.null_count:
            return None
        data = as_one(self.data.unify_dictionaries() if isinstance(self.data, pa.ChunkedArray) else self.data)
        texts = data.dictionary
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)) or texts.null_count:
            return None
        return data.indices.to_numpy(zero_copy_only=False), texts.to_pylist()

    def _factored(self) -> Labels | None:
        """Labels of a dictionary of different texts as they lie there; ``None`` of another dictionary."""
        data = as_one(self.data.unify_dictionaries() if isinstance(self.data, pa.ChunkedArray) else self.data)
        texts = data.dictionary
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)) or texts.null_count:
            return None
        names = texts.to_pylist()
        codes = data.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        seen = np.zeros(len(names) + 1, bool)
        seen[codes] = True
        seen[-1] = False
        seen[[i for i, name in enumerate(names) if not name]] = False
        if len(set(names)) < len(names):
            return None
        if not seen[:-1].all():
            # A dictionary may hold what no row has.
            place = np.where(seen, np.cumsum(seen) - 1, -1)
            codes, names = place[codes], [name for name, there in zip(names, seen.tolist(), strict=False) if there]
        return Labels(codes, names)

    def _names(self, distinct: pa.Array) -> list[str]:
        if not pa.types.is_floating(distinct.type):
            return ["" if n is None else n for n in distinct.cast(pa.large_string()).to_pylist()]
        x = distinct.to_numpy(zero_copy_only=False)
        if not np.array_equal(x[~np.isnan(x)], np.round(x[~np.isnan(x)])):
            raise self.error(
                "has fractions", "labels: text or whole numbers", "list it under dense, or cut it into ranges"
            )
        return ["" if np.isnan(v) else str(int(v)) for v in x.tolist()]

    @converted
    def lists(self) -> tuple[Column, NDArray[np.int64]]:
        """The entries of all lists as one column, and the ``[N + 1]`` offsets of each row's; null is the empty list.

        Raises:
            InputError: for another type.
        """
        kind = self.data.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise self.error(
                f"has type {kind}", "a Parquet list of labels a row", "write it as list, or list it under categorical"
            )
        data = as_one(self.data)
        if not data.null_count and not pa.types.is_fixed_size_list(kind):
            offsets = data.offsets.to_numpy(zero_copy_only=False)
            return Column(self.file, self.name, data.flatten(), None), offsets - np.int64(offsets[0])
        lengths = pc.fill_null(pc.call_function("list_value_length", [self.data]), 0).to_numpy(zero_copy_only=False)
        entries = Column(self.file, self.name, pc.call_function("list_flatten", [self.data]), None)
        return entries, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @converted
    def users(self) -> NDArray[np.int64]:
        """``[N]`` identities: whole numbers modulo 2⁶⁴, other text by its stable hash.

        A number and its decimal text are one user, ``17`` and ``"17"``; ``"017"`` is another.

        Raises:
            InputError: where there is no label.
        """
        kind = self.data.type
        if pa.types.is_integer(kind) and not self.data.null_count:
            return as_one(self.data).to_numpy(zero_copy_only=False).astype(np.int64)
        labels = self.labels()
        if (bad := labels.codes < 0).any():
            raise self.error(
                f"names no user in {int(bad.sum())} of {len(bad)} rows{self.first(bad)}",
                "a user in every row",
                "drop those rows",
            )
        return _identities(labels.names)[labels.codes]


def _identities(names: list[str]) -> NDArray[np.int64]:
    """Of each name by itself, whatever others there are: pieces of a file agree."""
    place, numbers = wholes_among(pa.array(names, pa.large_string()))
    found = np.zeros(len(names), np.int64)
    found[place] = numbers.view(np.int64)
    if len(place) < len(names):
        text = np.ones(len(names), bool)
        text[place] = False
        others = np.flatnonzero(text)
        found[others] = [stable_hash(names[i]) >> 1 for i in others.tolist()]
    return found
