"""The passes over many users as machine code. Everything here has a twin in plain torch with equal results."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

from torch import Tensor

SWITCH = "LIGHTNING_BUDGET_COMPILED"
"""Environment variable: ``0`` takes the plain torch path everywhere."""


@cache
def installed() -> bool:
    """Whether numba can be imported."""
    return find_spec("numba") is not None


def enabled() -> bool:
    """Whether there are compiled passes, not switched off."""
    return os.environ.get(SWITCH, "1") != "0" and installed()


def usable(x: Tensor) -> bool:
    """Whether the compiled path takes this tensor: in host memory, single or double precision, and not switched off."""
    return x.device.type == "cpu" and x.element_size() in (4, 8) and enabled()
