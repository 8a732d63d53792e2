"""What the columns of the folder mean, as an option of the ``data`` group of configs.

``python scripts/train.py hydra.searchpath=[OUTPUT/_config] data=simulated data.path=OUTPUT``; it names no place, so
that the folder can be moved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_budget.atomic import atomic_path
from lightning_budget.campaign.campaign import Campaign

CONFIG = "_config"
"""Folder of configs in the output; readers of a folder pass over names that begin so."""

DATASET = f"{CONFIG}/data/simulated.yaml"

TABLE_ROWS = 2
"""Rows of the hashed table of users, per user: with as many again as there are, two in five share one."""


def roles_of(campaign: Campaign) -> dict[str, Any]:
    """Settings of ``data=``, by their keys."""
    schema = campaign.schema
    lists = [f.name for f in schema.sparse if f.is_list]
    return {
        "treatment": "treatment",
        "arms": list(schema.treatments),
        "value": "value",
        "value_unit": schema.value_unit,
        "cost": "cost",
        "cost_per_arm": list(schema.known_cost),
        "cost_unit": schema.cost_unit,
        "propensity": "propensity",
        "dense": list(schema.dense),
        "categorical": [f.name for f in schema.sparse if not f.is_list],
        "lists": lists,
        "hashed": {"user_id": TABLE_ROWS * campaign.users},
        "user": "user_id",
        "time": "day",
        # Users come again in later splits, as they do in a campaign.
        "split_column": "split",
        "straddling": "warn",
    }


def write_dataset(campaign: Campaign, output: Path) -> None:
    """Write ``DATASET``, whole or not there.

    Raises:
        OSError: if it cannot be written.
    """
    # Every JSON value is YAML.
    roles = {"defaults": ["parquet", "_self_"], **roles_of(campaign)}
    lines = [f"{key}: {json.dumps(value)}" for key, value in roles.items()]
    (output / DATASET).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output / DATASET) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
