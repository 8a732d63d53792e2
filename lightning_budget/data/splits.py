"""Which split a row belongs to: a user's rows all go to one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.data.columns import TableColumns
from lightning_budget.data.files import File
from lightning_budget.hashing import hash_ids


def feature_hash(file: File, columns: TableColumns, dense: Tensor) -> NDArray[np.int64]:
    """Equal for rows with equal features: such rows may be one user."""
    h = np.zeros(len(dense), np.uint64)
    # Adding 0.0 makes −0.0 and 0.0 one number.
    parts = [(x.numpy() + np.float32(0)).view(np.uint32).astype(np.uint64) for x in dense.T.contiguous()]
    parts += [file[name].labels().hashes() for name in columns.categorical]
    for name in columns.lists:
        entries, offsets = file[name].lists()
        hashes, lengths = entries.labels().hashes(), np.diff(offsets)
        position = np.arange(len(hashes)) - np.repeat(offsets[:-1], lengths)
        mixed = hash_ids((hashes ^ hash_ids(position, 0, "position")).view(np.int64), 0, "entry")
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        parts.append(total[offsets[1:]] - total[offsets[:-1]] + lengths.astype(np.uint64))
    for part in parts:
        h = hash_ids((h ^ part).view(np.int64), 0, "features")
    return h.view(np.int64)
