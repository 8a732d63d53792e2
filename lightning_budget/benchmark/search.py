"""Settings drawn from a search space."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_budget.errors import InputError

KINDS = ("choice", "uniform", "log")


def draw(space: Mapping[str, Mapping[str, Any]], dataset: str, method: str, seed: int, trial: int) -> dict[str, Any]:
    """The settings of one trial: a function of the arguments alone. Trial 0 is the preset, for which nothing is drawn.

    Args:
        space: key of the training's config to ``{"choice": […]}``, ``{"uniform": [a, b]}`` or ``{"log": [a, b]}``.
        dataset, method, seed, trial: name the draw.

    Raises:
        InputError: for a way of drawing that there is not.
    """
    check(space)
    if trial == 0:
        return {}
    digest = hashlib.sha256(f"{dataset}|{method}|{seed}|{trial}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    return {key: _one(space[key], rng) for key in sorted(space)}


def check(space: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a search space that cannot be drawn from.

    Raises:
        InputError: naming the key.
    """
    for key, how in space.items():
        if not _can_be_drawn(how):
            allowed = "{choice: […]}, {uniform: [a, b]} or {log: [a, b]}, a ≤ b"
            raise InputError(f"search.{key}={how}", allowed, "mend the search space")


def _can_be_drawn(how: Any) -> bool:
    if not isinstance(how, Mapping) or len(how) != 1:
        return False
    ((kind, values),) = how.items()
    if kind not in KINDS or not isinstance(values, list) or not values:
        return False
    return kind == "choice" or (len(values) == 2 and (values[0] > 0 or kind == "uniform") and values[0] <= values[1])


def _one(how: Mapping[str, Any], rng: np.random.Generator) -> Any:
    kind, values = next(iter(how.items()))
    if kind == "choice":
        return values[int(rng.integers(len(values)))]
    low, high = values
    drawn = rng.uniform(low, high) if kind == "uniform" else math.exp(rng.uniform(math.log(low), math.log(high)))
    return float(f"{drawn:.4g}")
