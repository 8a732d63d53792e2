"""Labels as rows of embedding tables, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.data.column import Column
from lightning_budget.data.files import File
from lightning_budget.schema import UNKNOWN, SparseFeature
from lightning_budget.table import IdList


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


def rows_of(column: Column, feature: SparseFeature) -> NDArray[np.int64]:
    """``[N]`` rows in the embedding table of ``feature``; ``UNKNOWN`` for new labels and for none.

    Raises:
        InputError: if the feature has whole numbers and the column other labels.
    """
    labels = column.labels()
    if feature.vocabulary is not None:
        row_of = {label: i + 1 for i, label in enumerate(feature.vocabulary)}
        return labels.take([row_of.get(n, UNKNOWN) for n in labels.names], UNKNOWN, np.int64)
    if odd := [n for n in labels.names if n and not n.removeprefix("-").isdecimal()]:
        raise column.error(
            f"has the entry {odd[0]!r}",
            f"whole numbers 0 … {feature.num_embeddings - 2}",
            "number the ids as in training",
        )
    numbers = [int(n) if n else -1 for n in labels.names]
    return labels.take([i + 1 if 0 <= i < feature.num_embeddings - 1 else UNKNOWN for i in numbers], UNKNOWN, np.int64)


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


def decode(rows: Tensor, feature: SparseFeature) -> pa.Array:
    """Inverse of :func:`rows_of`; null where the row is ``UNKNOWN``."""
    index, unknown = rows.numpy() - 1, (rows == UNKNOWN).numpy()
    if feature.vocabulary is None:
        return pa.array(index, mask=unknown)
    return pa.array(feature.vocabulary, pa.large_string()).take(pa.array(index, mask=unknown))
