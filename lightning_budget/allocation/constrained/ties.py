"""Random numbers that belong to a user's key and not to the row: for ties and samples that no sorting changes."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.allocation.order import mixed


def hashed_unit(key: Tensor, stream: int) -> Tensor:
    """Uniform numbers in [0, 1), float64, a function of int64 keys; another one for every stream."""
    # Two rounds: after one, streams would be the same numbers in another place.
    seeded = mixed(mixed(key) + stream)
    return ((seeded >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def lowest_hashes(key: Tensor, users: int) -> Tensor:
    """Positions of a sample of so many users, which does not depend on the order of the rows."""
    # Mixed twice, so that the order within the sample is not that of a single mix, by which ties are broken.
    return mixed(mixed(key)).topk(users, largest=False, sorted=True).indices


def by_hash(key: Tensor) -> Tensor:
    """Positions in the order of the keys' hashes."""
    return torch.argsort(mixed(key))
