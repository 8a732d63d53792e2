"""As ``rank_worker``, on a campaign whose ids are managed: ``python managed_ranks.py jobs.json``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import rank_worker
import torch
from torch import Tensor
from training_runs import small_data

from datamodules import CampaignDataModule
from lightning_budget.models import embeddings
from lightning_budget.schema import UNKNOWN
from lightning_budget.table import IdList, RCTTable

ROWS, INTERVAL = 40, 3


def large(ids: Tensor) -> Tensor:
    """Ids of 62 bits, one for each; the unknown stay unknown."""
    return torch.where(ids == UNKNOWN, UNKNOWN, ids * 0x123456789ABCD % 2**62 + 1)


def managed_table(table: RCTTable) -> RCTTable:
    ids: dict[str, Tensor | IdList] = {
        name: IdList(large(x.values), x.offsets) if isinstance(x, IdList) else large(x) for name, x in table.ids.items()
    }
    return replace(table, ids=ids)


def managed_data(**changes: Any) -> CampaignDataModule:
    """``small_data`` with tables of 40 rows, fewer than there are users."""
    data = small_data(**changes)
    sparse = tuple(replace(f, num_embeddings=ROWS, vocabulary=None, ids="managed") for f in data.schema.sparse)
    data.schema = replace(data.schema, sparse=sparse)
    data.train, data.val, data.test = map(managed_table, (data.train, data.val, data.test))
    return data


def every_third_batch() -> None:
    """Rows are given every third batch, so that checkpoints fall between."""
    embeddings.admission_interval = lambda rows: INTERVAL


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank_worker.small_data = managed_data
    every_third_batch()
    rank_worker.main()
