"""TARNet whose users are known by their features as well as by their rows' outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_budget.errors import InputError
from lightning_budget.models.heads import Sensitivity
from lightning_budget.models.learner import LearnerOutput, Observed, given
from lightning_budget.models.options import Options, refuse_negative
from lightning_budget.models.responses import OnConversion
from lightning_budget.models.tarnet import TARNet
from lightning_budget.models.user_effects import payment_shift, sums_of
from lightning_budget.models.user_history import UserHistory
from lightning_budget.schema import DataSchema, SparseFeature

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
        sensitivity: whether, where something is described and the value has a probability or a funnel, its arms'
            effects on the logit differ between users by one factor, and not by heads.
        user_history: whether the first of the described has a history, if its ids are neither managed nor lists: how
            far a user's description is trusted beside the row's features, and random effects on the size of a funnel's
            values and on the payment of costs on conversion.

    Raises:
        InputError: for a repeated feature, a weight below 0, or a sensitivity without shared doses.
    """

    described: tuple[str, ...] = ()
    description_weight: float = 1.0
    wide_if_described: bool = False
    sensitivity: bool = False
    user_history: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative(description_weight=self.description_weight)
        if len(set(self.described)) < len(self.described):
            found = f"model.described={list(self.described)}"
            raise InputError(found, "id features, each once", "name the users' id, or use tarnet")
        if self.sensitivity and not self.share_doses:
            raise InputError("model.sensitivity=true with share_doses=0", "share_doses of at least 1", "raise it")


class DescribedTARNet(TARNet):
    r"""TARNet on embeddings that tell what kind of user an id stands for, and are fitted to no outcome.

    Dense features are noisy measurements of a user. The embedding :math:`e_u` of a described id learns what they have
    in common over the user's rows, by a linear decoder of the standardised features x of each row,

    - ``description_loss``: weight · mean over features of :math:`(A e_u + a - x)^2`,

    and enters the trunk with its gradient stopped: neither outcomes nor the goal can be memorised in it, as they can in
    an embedding of one user, which has few rows and noisy outcomes. An id without rows keeps its small start.

    With ``sensitivity`` the effects :math:`\delta_j` of the arms on the logit of a conversion are scaled by
    :math:`S`, see :class:`~lightning_budget.models.heads.Sensitivity`.

    With ``user_history`` the network sees a user's n training rows: beside x it gets :math:`(n (A e_u + a) + x) /
    (n + 1)` and log n; and a user's own conversions shift the logarithm of their size and the logit of their payment,
    see :mod:`~lightning_budget.models.user_effects`. Those shifts are left out in training: they hold the outcomes of
    the very rows that are fitted.

    Raises:
        InputError: for data without dense features or one of the described, where those are named.
    """

    kind = DescribedTARNetOptions

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        assert isinstance(options, DescribedTARNetOptions)
        self.choice = options
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
        if self.scales_effects:
            self.sensitivity = Sensitivity(self.dense_inputs + options.embedding_dim * len(names))
        users = self._users
        self.user_history = None if users is None else UserHistory(users.num_embeddings, users.name)
        self._shows_effects = True

    @property
    def _users(self) -> SparseFeature | None:
        """The id feature that has a history."""
        described = (f for f, yes in zip(self.schema.sparse, self.is_described, strict=True) if yes)
        users = next(described, None) if self.choice.user_history else None
        return None if users is None or users.ids == "managed" or users.is_list else users

    @property
    def dense_inputs(self) -> int:
        return len(self.schema.dense) * (1 if self._users is None else 2) + (self._users is not None)

    @property
    def wants_wide(self) -> bool:
        return self.options.wide and (self.choice.wide_if_described or not any(self.is_described))

    @property
    def scales_effects(self) -> bool:
        logit = self.value_response.start_logit(self.value_start)
        return self.choice.sensitivity and any(self.is_described) and logit is not None

    def outputs(self, dense: Tensor, sparse: Any) -> LearnerOutput:
        if not any(self.is_described):
            return super().outputs(dense, sparse)
        assert self.sparse_arch is not None
        x = self.standardised(dense)
        pooled = self.sparse_arch(sparse).split(self.options.embedding_dim, dim=1)
        own = [e for e, described in zip(pooled, self.is_described, strict=True) if described]
        held = torch.cat([e.detach() if d else e for e, d in zip(pooled, self.is_described, strict=True)], dim=1)
        described = self.describe(torch.cat(own, dim=1))
        known = x if self.user_history is None else self._with_history(x, described.detach(), sparse)
        raw = self.widened(self.raw(self.encode(known, held)), x)
        if self.scales_effects:
            raw["value"] = self._scaled(raw["value"], torch.cat((known, held), dim=1))
        if self.training:
            raw["description"] = (described - x).square().mean(dim=1)
        elif self.user_history is not None and self._shows_effects:
            raw = self._shifted(raw, sparse)
        return LearnerOutput(self.respond(raw), raw)

    def _with_history(self, x: Tensor, described: Tensor, sparse: Any) -> Tensor:
        """Features ``[N, D]``, what row and description together say of them, and how much the latter weighs."""
        assert self.user_history is not None
        assert self.sparse_arch is not None
        seen = self.user_history.seen(*self.sparse_arch.rows_of(self.user_history.feature, sparse)).unsqueeze(1)
        together = (seen * described + x) / (seen + 1)
        return torch.cat((x, together, (torch.log1p(seen) - 3) / 2), dim=1)

    def _scaled(self, raw: Tensor, x: Tensor) -> Tensor:
        """``raw [N, K, C]`` with the arms' effects on the first channel scaled by the user's sensitivity."""
        start = self.value_response.start_logit(self.value_start)
        assert start is not None
        level = start + self.value_heads.bias[:, 0]
        first = raw[..., 0] + (self.sensitivity(x) - 1) * (level - level[0])
        return torch.cat((first.unsqueeze(2), raw[..., 1:]), dim=2)

    def _shifted(self, raw: dict[str, Tensor], sparse: Any) -> dict[str, Tensor]:
        """Raw outputs with the users' own effects on size and payment of a conversion."""
        assert self.user_history is not None
        assert self.sparse_arch is not None
        effects = self.user_history(*self.sparse_arch.rows_of(self.user_history.feature, sparse))
        level, slope, payment = effects.split(1, dim=1)
        value, cost = raw["value"], raw["cost"]
        if self.value_response.channels > 1:
            log = value[..., 1] + level + slope * self._doses(value.device)
            value = torch.cat((value[..., :1], log.unsqueeze(2), value[..., 2:]), dim=2)
        if isinstance(self.cost_response, OnConversion):
            logit, _ = self.cost_response.parts(cost, self.cost_start)
            shift = payment_shift(payment, torch.sigmoid(logit))
            cost = torch.cat((cost[..., :1] + shift.unsqueeze(2), cost[..., 1:]), dim=2)
        return {**raw, "value": value, "cost": cost}

    def _doses(self, device: torch.device) -> Tensor:
        return torch.arange(self.num_treatments, device=device) / (self.num_treatments - 1)

    @torch.no_grad()
    def observe(self, batch: Any, output: LearnerOutput, epoch: int) -> None:
        if self.user_history is None:
            return
        assert self.sparse_arch is not None
        raw, start = given(output.extra["value"], batch.treatment), self.value_start.of(batch.treatment)
        real = (batch.row >= 0).to(raw.dtype)
        none = torch.zeros_like(real)
        converted, excess = self.value_response.excess(raw, start, batch.value) or (none, none)
        dose = self._doses(raw.device)[batch.treatment]
        raw, start = given(output.extra["cost"], batch.treatment), self.cost_start.of(batch.treatment)
        paid, q = self.cost_response.paid(raw, start, batch.cost) or (none, none)
        q = q.where(self.teaches_cost(batch), torch.nan)
        rows, _ = self.sparse_arch.rows_of(self.user_history.feature, batch.sparse)
        self.user_history.observe(rows, real, sums_of(converted, excess, dose, paid, q), epoch)

    def settle(self, whole: bool) -> dict[str, float]:
        return {} if self.user_history is None else self.user_history.settle(whole)

    def observed(self) -> dict[str, Any] | None:
        return None if self.user_history is None else self.user_history.state()

    def resume_observed(self, observed: Mapping[str, Any] | None) -> None:
        if self.user_history is not None:
            self.user_history.resume(observed)

    @contextmanager
    def as_in_training(self) -> Iterator[None]:
        shown, self._shows_effects = self._shows_effects, False
        try:
            yield
        finally:
            self._shows_effects = shown

    def feature_of(self, name: str) -> str | None:
        return self.user_history.feature if self.user_history is not None and name.startswith("user_history.") else None

    def extra_losses(self, batch: Observed, output: LearnerOutput) -> dict[str, Tensor]:
        if "description" not in output.extra:
            return {}
        return {"description_loss": self.choice.description_weight * output.extra["description"]}
