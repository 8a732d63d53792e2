"""The network of a checkpoint for serving: tables, dense arch, trunk, heads, links and the price policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_budget.allocation.policy_origin import PolicyOrigin
from lightning_budget.allocation.price_policy import PricePolicy
from lightning_budget.errors import InputError
from lightning_budget.models.backbones import mlp
from lightning_budget.models.heads import LINKS, TreatmentHeads, cost_with_known, unknown_if_none
from lightning_budget.schema import DataSchema
from lightning_budget.serving.policy import price_treatment
from lightning_budget.serving.tables import FloatTable, Int8Table

TABLES = {"float32": FloatTable, "int8": Int8Table}


@dataclass(frozen=True)
class Layout:
    """Widths of the network: E of every table, then of the layers, and of each treatment's head."""

    embedding_dim: int
    dense_hidden: tuple[int, ...]
    trunk_hidden: tuple[int, ...]
    head_hidden: int

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Layout:
        """Inverse of :meth:`to_dict`."""
        dense, trunk = tuple(state["dense_hidden"]), tuple(state["trunk_hidden"])
        return cls(state["embedding_dim"], dense, trunk, state["head_hidden"])


class Served(NamedTuple):
    """Value units and currency per user ``[N, K]`` each; ``[N]`` int64 treatments where a multiplier is known."""

    value: Tensor
    cost: Tensor
    treatment: Tensor | None


class ServingHeads(TreatmentHeads):
    """The same heads for any number of users: tracing an ``einsum`` takes it that there is more than one."""

    def forward(self, representation: Tensor) -> Tensor:
        h = F.silu(self.hidden(representation)).unflatten(1, (self.num_treatments, -1))
        return torch.bmm(h.transpose(0, 1), self.out.unsqueeze(2)).squeeze(2).T + self.bias


class ServingModel(nn.Module):
    """Value, cost and treatment of N users from tensors alone; no TorchRec, no gradient.

    The computation is :class:`lightning_budget.models.tarnet.TARNet`'s in eval mode::

        feature 0      values  [7, 3, 9]        offsets [0, 1, 2, 3]
        feature 1      values  [4, 1, 8, 2, 5]  offsets [0, 2, 2, 5]      user 1 has none: pooled to 0

    Args:
        schema: arms, dense and id features, with vocabularies.
        statistics: those of the training split, as ``DataStatistics.to_dict()`` gives them.
        layout: widths.
        tables: ``float32`` or ``int8``.
        multiplier: λ of the policy that travels along, value per currency; ``None`` leaves it to the caller.
        origin: of that multiplier.
    """

    dense_mean: Tensor
    dense_std: Tensor
    value_mean: Tensor
    cost_mean: Tensor
    known_cost: Tensor

    def __init__(
        self,
        schema: DataSchema,
        statistics: Mapping[str, Any],
        layout: Layout,
        tables: str = "float32",
        multiplier: float | None = None,
        origin: PolicyOrigin | None = None,
    ) -> None:
        super().__init__()
        self.schema, self.statistics, self.layout = schema, dict(statistics), layout
        self.table_kind, self.multiplier, self.origin = tables, multiplier, origin
        self.value_link = LINKS["probability" if schema.value_kind == "binary" else "identity"]
        self.cost_link = LINKS["probability" if schema.cost_kind == "binary" else "positive"]
        self.value_scale, self.cost_scale = statistics["value_scale"], statistics["cost_scale"]
        for name in ("dense_mean", "dense_std", "value_mean", "cost_mean"):
            self.register_buffer(name, torch.tensor(statistics[name], dtype=torch.float32))
        self.register_buffer("known_cost", unknown_if_none(schema.known_cost))
        # A list, not a dict: a column may have any name, that of a dict's method too.
        self.tables = nn.ModuleList(TABLES[tables](f.num_embeddings, layout.embedding_dim) for f in schema.sparse)
        self.dense_arch = mlp(len(schema.dense), layout.dense_hidden) if schema.dense else None
        width = layout.embedding_dim * len(schema.sparse) + (layout.dense_hidden[-1] if schema.dense else 0)
        self.trunk = mlp(width, layout.trunk_hidden)
        k = schema.num_treatments
        self.value_heads = ServingHeads(layout.trunk_hidden[-1], k, layout.head_hidden)
        self.cost_heads = ServingHeads(layout.trunk_hidden[-1], k, layout.head_hidden)
        self.requires_grad_(False).eval()

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
        parts = []
        if self.dense_arch is not None:
            parts.append(self.dense_arch(((dense - self.dense_mean) / self.dense_std).clamp(-8, 8)))
        parts += [table(v, o) for table, v, o in zip(self.tables, values, offsets, strict=True)]
        representation = self.trunk(torch.cat(parts, dim=1))
        value = self.value_link(self.value_heads(representation), self.value_mean, self.value_scale)
        learned = self.cost_link(self.cost_heads(representation), self.cost_mean, self.cost_scale)
        cost = cost_with_known(learned, self.known_cost)
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
            out = ServingModel(self.schema, self.statistics, self.layout, "int8", self.multiplier, self.origin)
        tables = nn.ModuleList(Int8Table.from_float(t) for t in self.tables if isinstance(t, FloatTable))
        rest = {k: v for k, v in self.state_dict().items() if not k.startswith("tables.")}
        out.load_state_dict(rest | tables.state_dict(prefix="tables."), assign=True)
        return out
