"""The learner of a checkpoint for serving: over tables of its own, with the price policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_budget.allocation.policy_origin import PolicyOrigin
from lightning_budget.allocation.price_policy import PricePolicy
from lightning_budget.errors import InputError
from lightning_budget.models.learners import assemble, complete_config
from lightning_budget.schema import DataSchema
from lightning_budget.serving.policy import price_treatment
from lightning_budget.serving.tables import FloatTable, Int8Table

TABLES = {"float32": FloatTable, "int8": Int8Table}
PREFIX = "net.sparse_arch.tables."


class Served(NamedTuple):
    """Value units and currency per user ``[N, K]`` each; ``[N]`` int64 treatments where a multiplier is known."""

    value: Tensor
    cost: Tensor
    treatment: Tensor | None


class TableEncoder(nn.Module):
    """Pooled embeddings ``[N, F·E]`` of values and offsets, one pair for each of F id features."""

    def __init__(self, schema: DataSchema, embedding_dim: int, kind: str) -> None:
        super().__init__()
        self.width = embedding_dim * len(schema.sparse)
        self.keys = [f.name for f in schema.sparse]
        # A list, not a dict: a column may have any name, that of a dict's method too.
        self.tables = nn.ModuleList(TABLES[kind](f.num_embeddings, embedding_dim) for f in schema.sparse)

    def forward(self, sparse: tuple[Sequence[Tensor], Sequence[Tensor]]) -> Tensor:
        values, offsets = sparse
        return torch.cat([table(v, o) for table, v, o in zip(self.tables, values, offsets, strict=True)], dim=1)

    def rows_of(self, feature: str, sparse: tuple[Sequence[Tensor], Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """Values and ``[N + 1]`` offsets of one id feature."""
        values, offsets = sparse
        return values[self.keys.index(feature)], offsets[self.keys.index(feature)]


class ServingModel(nn.Module):
    """Value, cost and treatment of N users from tensors alone; no TorchRec, no gradient.

    The training model itself, in eval mode, over tables of this package::

        feature 0      values  [7, 3, 9]        offsets [0, 1, 2, 3]
        feature 1      values  [4, 1, 8, 2, 5]  offsets [0, 2, 2, 5]      user 1 has none: pooled to 0

    Args:
        schema: arms, dense and id features, with vocabularies.
        statistics: those of the training split, as ``DataStatistics.to_dict()`` gives them.
        config: name and options of the learner, see :func:`~lightning_budget.models.learners.model_options`.
        tables: ``float32`` or ``int8``.
        multiplier: λ of the policy that travels along, value per currency; ``None`` leaves it to the caller.
        origin: of that multiplier.
    """

    def __init__(
        self,
        schema: DataSchema,
        statistics: Mapping[str, Any],
        config: Mapping[str, Any],
        tables: str = "float32",
        multiplier: float | None = None,
        origin: PolicyOrigin | None = None,
    ) -> None:
        super().__init__()
        self.schema, self.statistics, self.config = schema, dict(statistics), complete_config(config)
        self.table_kind, self.multiplier, self.origin = tables, multiplier, origin
        encoder = TableEncoder(schema, self.config["embedding_dim"], tables) if schema.sparse else None
        self.net = assemble(config, schema, self.statistics, encoder)
        self.requires_grad_(False).eval()

    @property
    def tables(self) -> nn.ModuleList:
        """Of the id features, in the order of the schema."""
        encoder = self.net.sparse_arch
        return nn.ModuleList() if encoder is None else encoder.tables

    @property
    def policy(self) -> PricePolicy | None:
        """The policy that travels along."""
        return None if self.multiplier is None else PricePolicy(self.multiplier, self.schema.treatments, self.origin)

    @property
    def table_bytes(self) -> int:
        """What the tables take, in memory and in a file."""
        return sum(x.numel() * x.element_size() for x in self.tables.state_dict().values())

    def forward(
        self,
        dense: Tensor,
        values: Sequence[Tensor],
        offsets: Sequence[Tensor],
        multiplier: Tensor | None = None,
    ) -> Served:
        """Score N users.

        Args:
            dense: ``[N, D]`` float32, as measured.
            values: for each id feature, in the order of the schema, the table rows of all users one after the other,
                int64; a row that the table has not counts as the row for unknown ids. Of a hashed feature the row is a
                formula of the label, which a server computes from :mod:`lightning_budget.data.id_hash`.
            offsets: for each id feature ``[N + 1]`` int64, from 0; user ``i`` has the values from ``offsets[i]`` up to
                but not including ``offsets[i + 1]``.
            multiplier: λ, 0-dim; by default that of the model.

        Raises:
            InputError: if there is not one pair of values and offsets for each id feature.
        """
        if not len(values) == len(offsets) == len(self.tables):
            raise InputError(
                f"{len(values)} values and {len(offsets)} offsets",
                f"{len(self.tables)} each: {', '.join(f.name for f in self.schema.sparse)}",
                "give one tensor of each kind for each id feature, in that order",
            )
        prediction = self.net(dense, (values, offsets))
        value, cost = prediction.value, prediction.cost
        if multiplier is None and self.multiplier is not None:
            multiplier = torch.tensor(self.multiplier, dtype=torch.float64, device=value.device)
        return Served(value, cost, None if multiplier is None else price_treatment(value, cost, multiplier))

    def int8(self) -> ServingModel:
        """The same model with its tables in eight bits; everything else is shared.

        Raises:
            InputError: if it has them already, or a weight is not finite.
        """
        if self.table_kind == "int8":
            raise InputError("a model whose tables are int8", "float32 tables", "quantise the float model")
        with torch.device("meta"):
            out = ServingModel(self.schema, self.statistics, self.config, "int8", self.multiplier, self.origin)
        tables = nn.ModuleList(Int8Table.from_float(t) for t in self.tables if isinstance(t, FloatTable))
        rest = {k: v for k, v in self.state_dict().items() if not k.startswith(PREFIX)}
        out.load_state_dict(rest | tables.state_dict(prefix=PREFIX), assign=True)
        return out
