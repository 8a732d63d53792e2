"""Labels as a batch holds them, rows of embedding tables or ids that a map gives rows, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.data.column import Column
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.files import File
from lightning_budget.data.id_hash import Identities, encode, identities, stand_ins
from lightning_budget.data.lookup import lookup_of, whole_numbers
from lightning_budget.schema import UNKNOWN, SparseFeature
from lightning_budget.table import IdList


def feature_of(column: Column, rows: NDArray[np.bool_], columns: TableColumns) -> SparseFeature:
    """The feature of an id column: as ``columns`` declare it, else with a vocabulary learned on ``rows`` (``[N]``).

    Raises:
        InputError: as :func:`learn_feature`.
    """
    return columns.unlisted(column.name) or learn_feature(column, rows, column.name in columns.lists)


def learn_feature(column: Column, rows: NDArray[np.bool_], is_list: bool) -> SparseFeature:
    """The feature whose vocabulary are the labels found in ``rows`` (``[N]``), sorted; whole numbers by their size.

    Raises:
        InputError: if those rows have no label.
    """
    names = labels_in(column, rows, is_list)
    if not names:
        raise column.error("has no label in the training split", "at least one", "remove it from the features")
    return listed_feature(column.name, names, is_list)


def labels_in(column: Column, rows: NDArray[np.bool_], is_list: bool) -> list[str]:
    """The different labels found in ``rows`` (``[N]``)."""
    if is_list:
        entries, offsets = column.lists()
        labels, rows = entries.labels(), np.repeat(rows, np.diff(offsets))
    else:
        labels = column.labels()
    seen = np.zeros(len(labels.names) + 1, bool)
    seen[labels.codes[rows]] = True
    return [name for name, there in zip(labels.names, seen.tolist(), strict=False) if there and name]


def listed_feature(name: str, labels: Iterable[str], is_list: bool) -> SparseFeature:
    """The feature whose vocabulary are some labels, sorted; whole numbers by their size."""
    names = list(labels)
    whole = all(n.removeprefix("-").isdecimal() for n in names)
    vocabulary = tuple(sorted(names, key=lambda n: (int(n), n)) if whole else sorted(names))
    return SparseFeature(name, len(vocabulary) + 1, is_list, vocabulary)


def rows_of(column: Column, feature: SparseFeature) -> NDArray[np.int64]:
    """``[N]`` rows in the embedding table of ``feature``, or ids if it is managed; ``UNKNOWN`` where there is no label.

    A label that is not in the vocabulary is ``UNKNOWN`` too. Hashed labels all have a row, seen in training or not, and
    managed ones an id, whose row is the model's to find.

    Raises:
        InputError: if the feature has whole numbers and the column other labels.
    """
    if feature.ids != "listed":
        return encode(identities(column), feature)
    if (whole := whole_numbers(column.data)) is not None:
        return _rows_of_wholes(*whole, feature)
    labels = column.labels()
    if feature.vocabulary is not None:
        return labels.take(lookup_of(feature.vocabulary).texts(labels.names), UNKNOWN, np.int64)
    if odd := [n for n in labels.names if n and not n.removeprefix("-").isdecimal()]:
        raise column.error(
            f"has the entry {odd[0]!r}",
            f"whole numbers 0 … {feature.num_embeddings - 2}",
            "number the ids as in training",
        )
    numbers = [int(n) if n else -1 for n in labels.names]
    return labels.take([i + 1 if 0 <= i < feature.num_embeddings - 1 else UNKNOWN for i in numbers], UNKNOWN, np.int64)


def _rows_of_wholes(x: NDArray[np.int64], null: NDArray[np.bool_] | None, feature: SparseFeature) -> NDArray[np.int64]:
    """What :func:`rows_of` tells of the same numbers as text, without making any."""
    if feature.vocabulary is not None:
        rows = lookup_of(feature.vocabulary).wholes(x)
    else:
        rows = np.where((x >= 0) & (x < feature.num_embeddings - 1), x + 1, UNKNOWN)
    return rows if null is None else np.where(null, UNKNOWN, rows)


def id_columns(file: File, features: Sequence[SparseFeature]) -> dict[str, Tensor | IdList]:
    """Table rows of every feature, in their order, for :class:`RCTTable`.

    Raises:
        InputError: as :func:`rows_of`.
    """
    ids: dict[str, Tensor | IdList] = {}
    for feature in features:
        if feature.is_list:
            entries, offsets = file[feature.name].lists()
            ids[feature.name] = IdList(torch.from_numpy(rows_of(entries, feature)), torch.from_numpy(offsets))
        else:
            ids[feature.name] = torch.from_numpy(rows_of(file[feature.name], feature))
    return ids


def decode(rows: Tensor, feature: SparseFeature, user: NDArray[np.int64] | None = None) -> pa.Array:
    """Inverse of :func:`rows_of`; null where the row is ``UNKNOWN``.

    A hash cannot be undone: hashed and managed labels come back as numbers that have the same row or id.

    Args:
        user: ``[N]`` of a hashed or managed feature that names the users: their names where those have that row or id,
            and otherwise numbers that are different for different users.
    """
    index, unknown = rows.numpy() - 1, (rows == UNKNOWN).numpy()
    if feature.ids != "listed":
        return pa.array(_stand_ins(rows.numpy(), feature, user), mask=unknown)
    if feature.vocabulary is None:
        return pa.array(index, mask=unknown)
    return pa.array(feature.vocabulary, pa.large_string()).take(pa.array(index, mask=unknown))


def _stand_ins(encoded: NDArray[np.int64], feature: SparseFeature, user: NDArray[np.int64] | None) -> NDArray[np.int64]:
    known = encoded.clip(1)
    if user is None:
        return stand_ins(known, feature, np.zeros_like(known))
    _, group = np.unique(user, return_inverse=True)
    own = encode(Identities(user.view(np.uint64), np.ones(len(user), bool)), feature) == encoded
    return np.where(own, user, stand_ins(known, feature, group))
