"""Loops over rows of a file as machine code; each has a twin in numpy with equal results."""

from __future__ import annotations

import os

from lightning_budget.allocation.compiled import SWITCH, installed


def usable() -> bool:
    """Whether the loops can be used: numba is installed, and not switched off."""
    return os.environ.get(SWITCH, "1") != "0" and installed()
