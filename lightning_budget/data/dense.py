"""Dense features of a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_budget.data.files import File


def dense_of(file: File, names: Sequence[str]) -> Tensor:
    """``[N, D]`` float32.

    Raises:
        InputError: for entries that are no finite numbers.
    """
    n = len(next(iter(file.values())).data)
    dense = torch.empty(n, len(names))
    for i, name in enumerate(names):
        dense[:, i] = torch.from_numpy(file[name].numbers())
    return dense
