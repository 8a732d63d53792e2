"""Labels of unbounded number as 64-bit hashes, and those as rows of an embedding table.

The identity of a label is 64 bits: a whole number is itself, modulo 2⁶⁴, and other text is the XXH3 hash of its UTF-8
bytes. A number and its decimal text are one label, ``17`` and ``"17"``; ``"017"`` is another. The feature's name then
picks one of 2⁶⁴ bijections (SplitMix64), so that labels that share a row in one table do not in another::

    key  = first 8 bytes of BLAKE2b-64("0/ids of NAME"), little-endian
    hash = SplitMix64 finaliser of (identity · 0x9E3779B97F4A7C15 + key)
    row  = 1 + hash mod (rows − 1);  no label: row 0

The row is a function of label, name and number of rows alone: equal in every process, file and release, and in a server
that computes it from these lines. Nothing is unseen to a hash: a new label has the row of the labels that share it.

Sources: XXH3, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md; SplitMix64, Steele, Lea, Flood 2014,
doi:10.1145/2660193.2660195; Weinberger et al. 2009, arXiv:0902.2206 (feature hashing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from lightning_budget.data.chunks import as_one
from lightning_budget.data.column import Column
from lightning_budget.data.whole_text import wholes_among
from lightning_budget.hashing import hash_ids, unhash_ids
from lightning_budget.schema import UNKNOWN, SparseFeature

LARGEST_ID = 2**63 - 2
"""TorchRec's maps mark a free row by 2⁶³ − 1."""


@dataclass(frozen=True)
class Identities:
    """Labels as 64 bits.

    Attributes:
        values: ``[N]`` uint64, 0 where there is no label.
        present: ``[N]``, whether there is one.
    """

    values: NDArray[np.uint64]
    present: NDArray[np.bool_]

    def take(self, codes: NDArray[np.int64]) -> Identities:
        """Those at some positions; −1 is no label."""
        return Identities(np.append(self.values, np.uint64(0))[codes], np.append(self.present, False)[codes])


def identities(column: Column) -> Identities:
    """Identity of every entry; null, NaN and empty text are no label.

    Raises:
        InputError: for types that are no labels: fractions and nested types.
    """
    data, kind = column.data, column.data.type
    if pa.types.is_integer(kind):
        return _of_integers(data)
    if pa.types.is_floating(kind):
        x = data.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        present = ~np.isnan(x)
        # Others may still be whole, and larger than 64 bits: labels() tells.
        if (np.abs(x[present]) < 2**63).all() and np.array_equal(x[present], np.round(x[present])):
            return Identities(np.where(present, x, 0).astype(np.int64).view(np.uint64), present)
    if _is_text(kind):
        # Text of a large file does not fit 32-bit offsets.
        encoded = as_one(data.cast(pa.large_binary()).dictionary_encode())
        return _of_text(encoded.dictionary).take(_codes(encoded))
    if pa.types.is_dictionary(kind):
        encoded = as_one(data)
        return identities(Column(column.file, column.name, encoded.dictionary, None)).take(_codes(encoded))
    labels = column.labels()
    return _of_text(pa.array(labels.names, pa.large_string()).cast(pa.large_binary())).take(labels.codes)


def rows_by_hash(ids: Identities, feature: SparseFeature) -> NDArray[np.int64]:
    """``[N]`` rows 1 … ``num_embeddings`` − 1 of a hashed feature; ``UNKNOWN`` where there is no label."""
    rows = (_hash(ids.values, feature) % np.uint64(feature.num_embeddings - 1)).astype(np.int64) + 1
    return np.where(ids.present, rows, UNKNOWN)


def managed_ids(ids: Identities, feature: SparseFeature) -> NDArray[np.int64]:
    """``[N]`` ids 1 … 2⁶³ − 2 of a managed feature, 63 bits of the hash; 0 where there is no label.

    Among n labels two share an id with a probability of about n² / 2⁶⁴: 5 in 10,000 for 1e8 labels.
    """
    found = (_hash(ids.values, feature) >> np.uint64(1)).astype(np.int64).clip(1, LARGEST_ID)
    return np.where(ids.present, found, UNKNOWN)


def encode(ids: Identities, feature: SparseFeature) -> NDArray[np.int64]:
    """``[N]``, as the batch of a hashed or managed feature holds them."""
    return managed_ids(ids, feature) if feature.ids == "managed" else rows_by_hash(ids, feature)


def stand_ins(encoded: NDArray[np.int64], feature: SparseFeature, group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers that are encoded to given rows or ids: what can be written where the labels themselves are lost.

    Args:
        encoded: ``[N]`` of :func:`encode`, none of them ``UNKNOWN``.
        group: ``[N]`` ≥ 0; rows of different groups get different numbers.

    Returns:
        ``[N]`` int64.
    """
    if feature.ids == "managed":
        hashes = encoded.view(np.uint64) << np.uint64(1)
    else:
        width = np.uint64(feature.num_embeddings - 1)
        hashes = (encoded - 1).view(np.uint64) + width * group.view(np.uint64)
    return unhash_ids(hashes, 0, _purpose(feature)).view(np.int64)


def _hash(values: NDArray[np.uint64], feature: SparseFeature) -> NDArray[np.uint64]:
    return hash_ids(values, 0, _purpose(feature))  # type: ignore[arg-type]


def _purpose(feature: SparseFeature) -> str:
    return f"ids of {feature.name}"


def _of_integers(data: pa.ChunkedArray | pa.Array) -> Identities:
    present = np.ones(len(data), bool)
    if data.null_count:
        present = data.is_valid().to_numpy(zero_copy_only=False)
        data = data.fill_null(0)
    x = data.to_numpy(zero_copy_only=False)
    if not pa.types.is_unsigned_integer(data.type):
        x = x.astype(np.int64, copy=False).view(np.uint64)
    return Identities(x.astype(np.uint64, copy=False), present)


def _of_text(texts: pa.Array) -> Identities:
    """Of different labels, as binary."""
    texts = texts.fill_null(b"") if texts.null_count else texts
    labels = texts.to_pylist()
    values = np.fromiter(map(xxhash.xxh3_64_intdigest, labels), np.uint64, len(labels))
    place, numbers = wholes_among(texts)
    values[place] = numbers
    present = _lengths(texts) > 0
    return Identities(np.where(present, values, np.uint64(0)), present)


def _lengths(texts: pa.Array) -> NDArray[np.int64]:
    return pc.call_function("binary_length", [texts]).to_numpy()


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_(kind)
        for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def _codes(encoded: pa.Array) -> NDArray[np.int64]:
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
