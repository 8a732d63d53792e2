"""T-learner: a network for each treatment, over shared embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from lightning_budget.models.backbones import ArmLinear
from lightning_budget.models.heads import ArmHeads
from lightning_budget.models.learner import Learner
from lightning_budget.models.options import Options
from lightning_budget.schema import DataSchema


class TLearner(Learner):
    """``raw_ij = head_j(trunk_j(features_i))``: K trunks of their own, evaluated together as batched products.

    Tables and the dense arch are shared: a table of ids for every arm would see a K-th of the rows, and take K times
    the memory.

    Source: Künzel, Sekhon, Bickel, Yu 2019, arXiv:1706.03461.
    """

    shares_doses = False

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        super().__init__(schema, statistics, sparse_arch, options)
        self.trunk = self.backbone(self.width, partial(ArmLinear, self.num_treatments))
        sizes = options.trunk_hidden[-1], self.num_treatments, options.head_hidden
        self.value_heads = ArmHeads(*sizes, self.value_response.channels)
        self.cost_heads = ArmHeads(*sizes, self.cost_response.channels)

    def raw(self, features: Tensor) -> dict[str, Tensor]:
        representations = self.trunk(features.expand(self.num_treatments, -1, -1))
        return {"value": self.value_heads(representations), "cost": self.cost_heads(representations)}

    def is_by_arm(self, name: str) -> bool:
        return name.startswith("trunk.") or super().is_by_arm(name)
