"""Exposures as the table that models train on."""

from __future__ import annotations

import torch

from lightning_budget.campaign.campaign import Exposures
from lightning_budget.table import IdList, RCTTable


def table_of(exposures: Exposures) -> RCTTable:
    """The same rows, oracle included; id i is row i + 1 of its table, row 0 is for unknown ids."""
    x = exposures
    return RCTTable(
        user=torch.from_numpy(x.user),
        dense=torch.from_numpy(x.dense),
        ids={
            "user_id": torch.from_numpy(x.user + 1),
            "city": torch.from_numpy(x.city + 1),
            "tier": torch.from_numpy(x.tier + 1),
            "device": torch.from_numpy(x.device + 1),
            "viewed": IdList(torch.from_numpy(x.viewed.values + 1), torch.from_numpy(x.viewed.offsets)),
        },
        treatment=torch.from_numpy(x.treatment),
        value=torch.from_numpy(x.value),
        cost=torch.from_numpy(x.cost),
        propensity=torch.from_numpy(x.propensity),
        true_value=torch.from_numpy(x.true_value),
        true_cost=torch.from_numpy(x.true_cost),
    )
