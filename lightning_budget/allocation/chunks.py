"""Walk over users in pieces that stay in cache, arms first and in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CPU_USERS = 1 << 15
"""Users in a piece on the CPU."""

DEVICE_USERS = 1 << 21
"""Users in a piece on an accelerator, where a launch costs more than a cache miss."""


def user_chunks(value: Tensor, cost: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield ``(first user, value [K, n] float64, cost [K, n] float64)``; at least one piece, even for no users."""
    size = CPU_USERS if value.device.type == "cpu" else DEVICE_USERS
    for start in range(0, max(len(value), 1), size):
        stop = start + size
        yield start, _arms_first(value[start:stop]), _arms_first(cost[start:stop])


def _arms_first(x: Tensor) -> Tensor:
    return torch.empty(x.shape[1], x.shape[0], dtype=torch.float64, device=x.device).copy_(x.detach().T)
