"""Gradient estimators of the marketing goal with respect to predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.estimators.softmax import Softmax

ESTIMATORS = {"softmax": Softmax}
"""Every gradient estimator by the name that configs use."""


def build_estimator(config: Mapping[str, Any]) -> Softmax:
    """Build ``config["name"]`` with the other entries as its arguments.

    Raises:
        InputError: if no estimator has that name.
    """
    arguments = dict(config)
    name = arguments.pop("name")
    if name not in ESTIMATORS:
        raise InputError(f"estimator.name={name!r}", ", ".join(ESTIMATORS), "choose one of the allowed")
    return ESTIMATORS[name](**arguments)


__all__ = ["ESTIMATORS", "Softmax", "build_estimator"]
