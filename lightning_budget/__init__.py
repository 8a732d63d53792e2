"""Which user gets which incentive under a budget, learned end to end."""

from __future__ import annotations

import logging
from typing import Any

# TorchRec asks torch.fx at import whether it is tracing, and the remark this draws is for torch's own developers.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

__all__ = ["Allocation", "allocate"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """The allocator on its own, imported on first use: most of the package needs no solver."""
    if name in __all__:
        from lightning_budget import allocation

        return getattr(allocation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
