"""Every model by name, and how one is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_budget.errors import InputError
from lightning_budget.models.tarnet import TARNet
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics

MODELS = {"tarnet": TARNet}
"""Every model by the name that configs and checkpoints use."""


def build_model(
    config: Mapping[str, Any],
    schema: DataSchema,
    statistics: DataStatistics,
    sparse_device: torch.device | str | None = None,
) -> TARNet:
    """Build ``config["name"]`` with the other entries as its arguments.

    Raises:
        InputError: if no model has that name.
    """
    arguments = dict(config)
    name = arguments.pop("name")
    if name not in MODELS:
        raise InputError(f"model.name={name!r}", ", ".join(MODELS), "choose one of the allowed")
    return MODELS[name](schema, statistics, sparse_device=sparse_device, **arguments)
