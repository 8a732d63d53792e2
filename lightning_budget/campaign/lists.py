"""Lists of ids of different lengths, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """Row ``i`` has ``values[offsets[i]:offsets[i + 1]]``; ``[total]`` and ``[n + 1]`` int64."""

    values: Ints
    offsets: Ints

    def mean_of(self, effect: Floats) -> Floats:
        """Mean effect of each row's list, 0 for an empty one."""
        total = np.concatenate([[0.0], np.cumsum(effect[self.values])])
        return (total[self.offsets[1:]] - total[self.offsets[:-1]]) / np.maximum(np.diff(self.offsets), 1)
