"""Gradient estimators of the marketing goal with respect to predictions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.estimators.base import GoalEstimate, GradientEstimator
from lightning_budget.estimators.finite_difference import FiniteDifference
from lightning_budget.estimators.gaussian import Gaussian
from lightning_budget.estimators.ifd import IFD
from lightning_budget.estimators.nes import NES
from lightning_budget.estimators.nes_global import NESGlobal
from lightning_budget.estimators.perturbed import Perturbed
from lightning_budget.estimators.score_function import ScoreFunction
from lightning_budget.estimators.softmax import Softmax
from lightning_budget.estimators.straight_through import StraightThrough

ESTIMATORS: dict[str, type[GradientEstimator]] = {
    "softmax": Softmax,
    "gaussian": Gaussian,
    "nes": NES,
    "nes_global": NESGlobal,
    "finite_difference": FiniteDifference,
    "ifd": IFD,
    "perturbed": Perturbed,
    "score_function": ScoreFunction,
    "straight_through": StraightThrough,
}
"""Every gradient estimator by the name that configs use."""


def estimator_arguments(name: str) -> dict[str, Any]:
    """Names and defaults of an estimator's arguments."""
    parameters = inspect.signature(ESTIMATORS[name].__init__).parameters
    return {p.name: p.default for p in parameters.values() if p.name != "self"}


def build_estimator(config: Mapping[str, Any]) -> GradientEstimator:
    """Build ``config["name"]`` with the other entries as its arguments; ``None`` stands for the default.

    Raises:
        InputError: if no estimator has that name, or it has no such argument.
    """
    arguments = {key: value for key, value in config.items() if value is not None}
    name = arguments.pop("name", None)
    if name not in ESTIMATORS:
        raise InputError(f"estimator.name={name!r}", ", ".join(ESTIMATORS), "choose one of the allowed")
    known = estimator_arguments(name)
    for key in arguments:
        if key not in known:
            raise InputError(f"estimator.{key} of {name!r}", ", ".join(known) or "no argument", "leave it out")
    return ESTIMATORS[name](**arguments)


__all__ = [
    "ESTIMATORS",
    "IFD",
    "NES",
    "FiniteDifference",
    "Gaussian",
    "GoalEstimate",
    "GradientEstimator",
    "NESGlobal",
    "Perturbed",
    "ScoreFunction",
    "Softmax",
    "StraightThrough",
    "build_estimator",
    "estimator_arguments",
]
