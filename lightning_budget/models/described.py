"""TARNet whose users are known by their features as well as by their rows' outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_budget.errors import InputError
from lightning_budget.models.learner import LearnerOutput, Observed
from lightning_budget.models.options import Options, refuse_negative
from lightning_budget.models.tarnet import TARNet
from lightning_budget.schema import DataSchema

USER_ID = "user_id"
"""Name of the id feature that is described where nothing else is said."""


@dataclass(frozen=True)
class DescribedTARNetOptions(Options):
    """Options of :class:`DescribedTARNet`.

    Args:
        described: id features whose embeddings learn from dense features alone; none named: :data:`USER_ID`, if the
            data has it and dense features. Else nothing is described, and the learner is a TARNet.
        description_weight: of that loss.
        wide_if_described: whether ``wide`` counts where something is described.

    Raises:
        InputError: for a repeated feature, or a weight below 0.
    """

    described: tuple[str, ...] = ()
    description_weight: float = 1.0
    wide_if_described: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative(description_weight=self.description_weight)
        if len(set(self.described)) < len(self.described):
            found = f"model.described={list(self.described)}"
            raise InputError(found, "id features, each once", "name the users' id, or use tarnet")


class DescribedTARNet(TARNet):
    r"""TARNet on embeddings that tell what kind of user an id stands for, and are fitted to no outcome.

    Dense features are noisy measurements of a user. The embedding :math:`e_u` of a described id learns what they have
    in common over the user's rows, by a linear decoder of the standardised features x of each row,

    - ``description_loss``: weight · mean over features of :math:`(A e_u + a - x)^2`,

    and enters the trunk with its gradient stopped: neither outcomes nor the goal can be memorised in it, as they can in
    an embedding of one user, which has few rows and noisy outcomes. An id without rows keeps its small start.

    Raises:
        InputError: for data without dense features or one of the described, where those are named.
    """

    kind = DescribedTARNetOptions

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        assert isinstance(options, DescribedTARNetOptions)
        names = [f.name for f in schema.sparse]
        described = options.described or tuple(name for name in names if name == USER_ID and schema.dense)
        self.is_described = [name in described for name in names]
        super().__init__(schema, statistics, sparse_arch, options)
        if missing := [name for name in described if name not in names]:
            raise InputError(
                f"model.described={missing[0]!r}", f"id features of the data: {', '.join(names) or 'none'}", "mend it"
            )
        if described and not schema.dense:
            raise InputError("model.described without dense features", "some", "leave it out")
        if described:
            self.describe = nn.Linear(options.embedding_dim * len(described), len(schema.dense))

    @property
    def wants_wide(self) -> bool:
        assert isinstance(self.options, DescribedTARNetOptions)
        return self.options.wide and (self.options.wide_if_described or not any(self.is_described))

    def outputs(self, dense: Tensor, sparse: Any) -> LearnerOutput:
        if not any(self.is_described):
            return super().outputs(dense, sparse)
        assert self.sparse_arch is not None
        x = self.standardised(dense)
        pooled = self.sparse_arch(sparse).split(self.options.embedding_dim, dim=1)
        own = [e for e, described in zip(pooled, self.is_described, strict=True) if described]
        held = [e.detach() if described else e for e, described in zip(pooled, self.is_described, strict=True)]
        raw = self.widened(self.raw(self.encode(x, torch.cat(held, dim=1))), x)
        if self.training:
            raw["description"] = (self.describe(torch.cat(own, dim=1)) - x).square().mean(dim=1)
        return LearnerOutput(self.respond(raw), raw)

    def extra_losses(self, batch: Observed, output: LearnerOutput) -> dict[str, Tensor]:
        assert isinstance(self.options, DescribedTARNetOptions)
        if "description" not in output.extra:
            return {}
        return {"description_loss": self.options.description_weight * output.extra["description"]}
