"""Users that splits by time or by label put into more than one split."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.column import Column
from lightning_budget.data.splits import SPLITS, Straddling


def settle(column: Column, part: NDArray[np.int8], then: Straddling) -> NDArray[np.int8]:
    """Refuse, count or take apart users with rows in several splits.

    Args:
        column: names the user of each of N rows.
        part: ``[N]`` 0 train, 1 val, 2 test, −1 none.
        then: what to do, see :class:`~lightning_budget.data.splits.SplitRule`.

    Returns:
        ``part``; for ``drop`` with −1 for the rows of a user in all splits but its first.

    Raises:
        InputError: for ``refuse``, naming how many there are and one of them.
    """
    users, index = np.unique(column.users(), return_inverse=True)
    seen = np.zeros((len(users), len(SPLITS)), bool)
    held = part >= 0
    seen[index[held], part[held]] = True
    several = np.flatnonzero(seen.sum(1) > 1)
    if not len(several):
        return part
    if then == "drop":
        return np.where(part > seen.argmax(1)[index], -1, part).astype(np.int8)
    example = several[0]
    name = column.data[int((index == example).argmax())].as_py()
    inside = " and ".join(split for split, there in zip(SPLITS, seen[example], strict=True) if there)
    found = f"puts {len(several)} of {len(users)} users into several splits, for example {name!r} into {inside}"
    if then == "refuse":
        raise column.error(found, "each user in one split", "split by user, or set straddling to warn or drop")
    text = f"{column.file}: column {column.name!r} {found}; val and test are not of new users alone"
    warnings.warn(text, stacklevel=2)
    return part
