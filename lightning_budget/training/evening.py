"""What a rank does with its batch, once it knows what all ranks have for the same step."""

from __future__ import annotations

import warnings
from typing import Any

import torch.distributed as dist
from torch import Tensor

NO_BATCH = -1
BATCH_OF_UNKNOWN_SIZE = -2


def size_of(batch: Any) -> int:
    """Rows of a batch that can be cut, or :data:`BATCH_OF_UNKNOWN_SIZE`."""
    if _can_be_filled(batch):
        return len(batch)
    # Lists and dictionaries have a length too, but not in rows.
    return len(batch) if isinstance(batch, Tensor) and batch.dim() > 0 else BATCH_OF_UNKNOWN_SIZE


def _can_be_filled(batch: Any) -> bool:
    return hasattr(batch, "filling") and hasattr(batch, "padded")


class Cut:
    """Cuts every batch to the smallest one of the step.

    Attributes:
        rows_left_out: so far.
    """

    def __init__(self) -> None:
        self.rows_left_out = 0

    def __call__(self, batch: Any, said: list[int]) -> Any:
        """This rank's batch, or ``None`` where the epoch ends.

        Args:
            batch: what this rank has; said: what each rank has, as :func:`size_of` tells it, or :data:`NO_BATCH`.
        """
        if NO_BATCH in said or min((s for s in said if s >= 0), default=1) == 0:
            return None
        if BATCH_OF_UNKNOWN_SIZE in said or len(batch) == min(said):
            return batch
        self.rows_left_out += len(batch) - min(said)
        return batch[: min(said)]


class Fill:
    """Fills every batch up to the largest one of the step; a rank without a batch gets one that is all filling.

    Args:
        group: of all ranks.
    """

    rows_left_out = 0

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._last: Any = None
        self._have_one = [False] * dist.get_world_size(group)

    def __call__(self, batch: Any, said: list[int]) -> Any:
        """As :meth:`Cut.__call__`; ``None`` where no rank has a batch."""
        have = [s != NO_BATCH for s in said]
        if not any(have):
            return None
        if batch is not None:
            self._last = batch
        self._have_one = [a or b for a, b in zip(self._have_one, have, strict=True)]
        if not all(self._have_one):
            self._share(have.index(True))
        real = batch is not None
        batch = self._last
        if not _can_be_filled(batch):
            if not real:
                # Python shows the same warning from the same line once.
                warnings.warn(
                    f"rank {dist.get_rank(self.group)} has no more batches and repeats its last one while others go "
                    "on: its rows are seen twice. Give the batch class filling(n) and padded(n), as RCTBatch has them",
                    stacklevel=2,
                )
            return batch
        rows = max(said) if BATCH_OF_UNKNOWN_SIZE not in said else len(batch)
        if not real:
            return batch.filling(rows)
        return batch.padded(rows) if len(batch) < rows else batch

    def _share(self, source: int) -> None:
        sending = dist.get_rank(self.group) == source
        one = None
        if sending:
            one = self._last.filling(1) if _can_be_filled(self._last) else self._last
        box = [one]
        dist.broadcast_object_list(box, dist.get_global_rank(self.group, source), group=self.group)
        if self._last is None:
            self._last = box[0]
        self._have_one = [True] * len(self._have_one)
