"""One column of a file, converted with one clear error for each thing amiss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightning_budget.errors import InputError


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


@dataclass(frozen=True)
class Column:
    """One column of N rows, with what an error message needs to point at it."""

    file: str
    name: str
    data: pa.ChunkedArray | pa.Array

    def error(self, found: str, allowed: str, fix: str) -> InputError:
        """The error, naming file and column."""
        return InputError(f"{self.file}: column {self.name!r} {found}", allowed, fix)

    def numbers(self, finite: bool = True) -> NDArray[np.float32]:
        """``[N]`` numbers; null is NaN.

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
            x = data.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32)
        if finite and (bad := int((~np.isfinite(x)).sum())):
            raise self.error(
                f"has {bad} null, NaN or infinite entries of {len(x)}",
                "finite numbers",
                "drop those rows, or fill them in",
            )
        return x

    def labels(self) -> Labels:
        """Labels as text; null, NaN and empty text mean that there is none.

        Raises:
            InputError: for types that are no labels: fractions and nested types.
        """
        kind = self.data.type
        if pa.types.is_dictionary(kind):
            return Column(self.file, self.name, self.data.cast(kind.value_type)).labels()
        if pa.types.is_nested(kind):
            raise self.error(f"has type {kind}", "one label a row", "list it under lists")
        # Text of a large file does not fit the 32-bit offsets of pa.string().
        data = self.data.cast(pa.large_string()) if pa.types.is_string(kind) else self.data
        encoded = (
            data.combine_chunks().dictionary_encode() if isinstance(data, pa.ChunkedArray) else data.dictionary_encode()
        )
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        names = self._names(encoded.dictionary)
        absent = np.array([n == "" for n in names] + [True])
        return Labels(np.where(absent[codes], -1, codes), names)

    def _names(self, distinct: pa.Array) -> list[str]:
        if not pa.types.is_floating(distinct.type):
            return ["" if n is None else n for n in distinct.cast(pa.large_string()).to_pylist()]
        x = distinct.to_numpy(zero_copy_only=False)
        if not np.array_equal(x[~np.isnan(x)], np.round(x[~np.isnan(x)])):
            raise self.error(
                "has fractions", "labels: text or whole numbers", "list it under dense, or cut it into ranges"
            )
        return ["" if np.isnan(v) else str(int(v)) for v in x.tolist()]

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
        lengths = pc.fill_null(pc.call_function("list_value_length", [self.data]), 0).to_numpy(zero_copy_only=False)
        return Column(self.file, self.name, pc.call_function("list_flatten", [self.data])), np.concatenate(
            [[0], np.cumsum(lengths)]
        ).astype(np.int64)

    def users(self) -> NDArray[np.int64]:
        """``[N]`` identities: whole numbers as they are, other text by its stable hash.

        Raises:
            InputError: where there is no label.
        """
        kind = self.data.type
        if pa.types.is_integer(kind) and not self.data.null_count:
            return self.data.to_numpy(zero_copy_only=False).astype(np.int64)
        labels = self.labels()
        if bad := int((labels.codes < 0).sum()):
            raise self.error(
                f"names no user in {bad} of {len(labels.codes)} rows", "a user in every row", "drop those rows"
            )
        # The text "17" and the number 17 are the same user; "017" is another.
        whole = all(n.removeprefix("-").isdecimal() and str(int(n)) == n and abs(int(n)) < 2**63 for n in labels.names)
        return labels.take([int(n) if whole else stable_hash(n) >> 1 for n in labels.names], 0, np.int64)
