"""What the columns of a file mean, and the conversion of single columns with one clear error for each thing amiss."""

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
from lightning_budget.schema import UNKNOWN, Outcome, SparseFeature

UNIFORM = "uniform"


@dataclass(frozen=True)
class TableColumns:
    """Which column plays which part; K treatments.

    Args:
        treatment: column with the label of the arm given.
        arms: K labels as they stand in the file, control first.
        value: column with the observed value.
        cost: column with the observed cost; ``None`` if ``cost_per_arm`` says it all.
        cost_per_arm: K costs per user (currency) certain beforehand; beside a ``cost`` column, ``None`` for arms whose
            cost is learned from it.
        propensity: column, or K numbers, or ``"uniform"`` for 1/K.
        dense: real-valued features.
        categorical: features of one label each.
        lists: features of a list of labels each (Parquet only).
        user: column naming the user; ``None``: every row is a user of its own, named by its number.
        value_kind, cost_kind, value_unit, cost_unit: as in :class:`DataSchema`.

    Raises:
        InputError: if the parts do not fit together.
    """

    treatment: str
    arms: tuple[str, ...]
    value: str
    cost: str | None = None
    cost_per_arm: tuple[float | None, ...] | None = None
    propensity: str | tuple[float, ...] = UNIFORM
    dense: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    user: str | None = None
    value_kind: Outcome = "continuous"
    cost_kind: Outcome = "continuous"
    value_unit: str = "value"
    cost_unit: str = "currency"

    def __post_init__(self) -> None:
        k = len(self.arms)
        if k < 2 or len(set(self.arms)) < k:
            raise InputError(
                f"arms={list(self.arms)}",
                "2 or more different labels, control first",
                "list every arm of the trial once",
            )
        self._check_cost(k)
        if not isinstance(self.propensity, str):
            fits = len(self.propensity) == k and all(0 < p <= 1 for p in self.propensity)
            if not fits or abs(sum(self.propensity) - 1) > 1e-3:
                raise InputError(
                    f"propensity={list(self.propensity)} for {k} arms",
                    f'a column, "{UNIFORM}", or {k} numbers in (0, 1] that sum to 1',
                    "give the shares in which users were assigned",
                )
        for kind in ("value_kind", "cost_kind"):
            if getattr(self, kind) not in ("continuous", "binary"):
                raise InputError(f"{kind}={getattr(self, kind)!r}", "continuous, binary", f"set {kind} to one of them")
        self._check_features()

    def _check_cost(self, k: int) -> None:
        if self.cost is None and self.cost_per_arm is None:
            raise InputError(
                "neither cost nor cost_per_arm",
                "one of them",
                f"name the cost column, or give {k} costs in cost_per_arm",
            )
        if self.cost_per_arm is None:
            return
        known = [c for c in self.cost_per_arm if c is not None]
        if (
            len(self.cost_per_arm) != k
            or (self.cost is None and len(known) < k)
            or not all(0 <= c < float("inf") for c in known)
        ):
            raise InputError(
                f"cost_per_arm={list(self.cost_per_arm)} for {k} arms",
                f"{k} numbers ≥ 0" + (", or null for arms whose cost is learned" if self.cost else ""),
                "give each arm's cost per user, control first",
            )

    def _check_features(self) -> None:
        outcomes = {
            self.treatment,
            self.value,
            self.cost,
            self.propensity if isinstance(self.propensity, str) else None,
        }
        features = [*self.dense, *self.categorical, *self.lists]
        if leaks := [f for f in features if f in outcomes]:
            raise InputError(
                f"column {leaks[0]!r} as a feature and as treatment or outcome",
                "one part",
                "remove it from dense, categorical and lists",
            )
        if not features:
            raise InputError("no features", "at least one column in dense, categorical or lists", "name the features")
        for group in (list(self.dense), [*self.categorical, *self.lists]):
            if twice := [f for i, f in enumerate(group) if f in group[:i]]:
                raise InputError(f"feature {twice[0]!r} is listed twice", "each column once", "remove one of the two")


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

    def rows(self, feature: SparseFeature) -> NDArray[np.int64]:
        """``[N]`` rows in the embedding table of ``feature``; ``UNKNOWN`` for new labels and for none.

        Raises:
            InputError: if the feature has whole numbers and the column other labels.
        """
        labels = self.labels()
        if feature.vocabulary is not None:
            row_of = {label: i + 1 for i, label in enumerate(feature.vocabulary)}
            return labels.take([row_of.get(n, UNKNOWN) for n in labels.names], UNKNOWN, np.int64)
        if odd := [n for n in labels.names if n and not n.removeprefix("-").isdecimal()]:
            raise self.error(
                f"has the entry {odd[0]!r}",
                f"whole numbers 0 … {feature.num_embeddings - 2}",
                "number the ids as in training",
            )
        numbers = [int(n) if n else -1 for n in labels.names]
        return labels.take(
            [i + 1 if 0 <= i < feature.num_embeddings - 1 else UNKNOWN for i in numbers], UNKNOWN, np.int64
        )


def learn_feature(column: Column, rows: NDArray[np.bool_], is_list: bool) -> SparseFeature:
    """The feature whose vocabulary are the labels found in ``rows`` (``[N]``), sorted; whole numbers by their size.

    Raises:
        InputError: if those rows have no label.
    """
    if is_list:
        entries, offsets = column.lists()
        labels, rows = entries.labels(), np.repeat(rows, np.diff(offsets))
    else:
        labels = column.labels()
    seen = np.unique(labels.codes[rows & (labels.codes >= 0)])
    if not len(seen):
        raise column.error("has no label in the training split", "at least one", "remove it from the features")
    names = [labels.names[i] for i in seen]
    whole = all(n.removeprefix("-").isdecimal() for n in names)
    vocabulary = tuple(sorted(names, key=lambda n: (int(n), n)) if whole else sorted(names))
    return SparseFeature(column.name, len(vocabulary) + 1, is_list, vocabulary)
