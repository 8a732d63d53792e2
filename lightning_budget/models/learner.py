"""What all learners are: encoded features in, value and cost of every treatment out, and losses of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lightning_budget.errors import InputError
from lightning_budget.models.backbones import Affine, dcn_v2, mlp
from lightning_budget.models.chosen_heads import built_head, chosen_heads
from lightning_budget.models.heads import DoseHeads, LinearHeads, TreatmentHeads
from lightning_budget.models.links import cost_with_known, unknown_if_none
from lightning_budget.models.options import Options
from lightning_budget.models.responses import Start, guessed_conversion
from lightning_budget.prediction import ResponsePrediction
from lightning_budget.schema import DataSchema


class Encoder(Protocol):
    """Embeddings of the id features, ``[N, width]``."""

    width: int

    def __call__(self, sparse: Any) -> Tensor: ...
    def rows_of(self, feature: str, sparse: Any) -> tuple[Tensor, Tensor]: ...


class Observed(Protocol):
    """What losses read of a batch of n rows: arm given, outcomes and its probability, ``[n]`` each."""

    @property
    def treatment(self) -> Tensor: ...
    @property
    def value(self) -> Tensor: ...
    @property
    def cost(self) -> Tensor: ...
    @property
    def propensity(self) -> Tensor: ...


@dataclass(frozen=True)
class LearnerOutput:
    """What a learner gives in training.

    Attributes:
        prediction: value and cost of every treatment.
        extra: tensors of N rows that only the losses need: ``value`` and ``cost`` are the raw outputs ``[N, K, C]``.
    """

    prediction: ResponsePrediction
    extra: dict[str, Tensor] = field(default_factory=dict)


class Learner(nn.Module, ABC):
    """Value and cost of every treatment from dense and id features.

    ``features = dense arch(standardised dense) ‖ pooled embeddings``; a learner makes raw outputs of them, and
    ``v̂_ij = value response(raw)_ij``, ``ĉ_ij = cost response(raw)_ij``, or the known cost where an arm has one.

    Args:
        schema: names, arms and id features of the data.
        statistics: training-split moments, as ``DataStatistics.to_dict()`` gives them; they become buffers, so a
            checkpoint carries them.
        sparse_arch: encoder of the id features, ``None`` where there are none. Training gives TorchRec's tables,
            serving its own: a learner is plain torch.
        options: sizes and choices, of the class's own :attr:`kind`.

    Raises:
        InputError: for heads that do not fit the outcomes or the arms.
    """

    kind: ClassVar[type[Options]] = Options
    shares_doses: ClassVar[bool] = True
    """Whether ``share_doses`` has a meaning."""
    ordered_heads: ClassVar[bool] = True
    """Whether heads may build each arm on the one before."""
    may_be_wide: ClassVar[bool] = True
    """Whether raw outputs may have a linear part that :meth:`raw` does not know."""
    shares_conversions: ClassVar[bool] = True
    """Whether the cost may hang on the value's probability of a conversion."""

    dense_mean: Tensor
    dense_std: Tensor
    value_mean: Tensor
    cost_mean: Tensor
    value_conversion: Tensor
    cost_conversion: Tensor
    known_cost: Tensor

    def __init__(self, schema: DataSchema, statistics: Mapping[str, Any], sparse_arch: Any, options: Options) -> None:
        super().__init__()
        self.schema, self.options = schema, options
        self.num_treatments = schema.num_treatments
        for name in ("dense_mean", "dense_std", "value_mean", "cost_mean"):
            self.register_buffer(name, torch.as_tensor(statistics[name], dtype=torch.float32))
        for name in ("value", "cost"):
            known, mean = statistics.get(f"{name}_conversion"), getattr(self, f"{name}_mean")
            guessed = guessed_conversion(mean, statistics[f"{name}_scale"])
            share = torch.as_tensor(known, dtype=torch.float32) if known else guessed
            self.register_buffer(f"{name}_conversion", share)
        self.register_buffer("known_cost", unknown_if_none(schema.known_cost))
        self.value_scale, self.cost_scale = statistics["value_scale"], statistics["cost_scale"]
        heads = chosen_heads(options.value_head, options.cost_head, schema, statistics, self.shares_conversions)
        self.value_response, self.cost_response = (
            built_head(outcome, name, schema, statistics)
            for outcome, name in zip(("value", "cost"), heads, strict=True)
        )
        if not self.ordered_heads and (self.value_response.ordered or self.cost_response.ordered):
            raise InputError(
                f"model.value_head={options.value_head}, model.cost_head={options.cost_head} with a "
                f"{type(self).__name__}, whose pseudo effects are of one arm alone",
                "heads that do not build on the arm before",
                "use the plain heads, or another learner",
            )
        if options.share_doses and not self.shares_doses:
            raise InputError(
                f"model.share_doses={options.share_doses} with a {type(self).__name__}",
                "0 for learners without a head for each arm over one representation",
                "leave it out, or use tarnet, dragonnet or descn",
            )
        if options.wide and not self.may_be_wide:
            raise InputError(
                f"model.wide=true with a {type(self).__name__}",
                "false for learners whose raw outputs are not those of their heads alone",
                "leave it out, or use tarnet",
            )
        self.sparse_arch = sparse_arch
        self.dense_arch = mlp(self.dense_inputs, options.dense_hidden) if schema.dense else None
        self.width = (options.dense_hidden[-1] if schema.dense else 0) + (sparse_arch.width if sparse_arch else 0)
        self.is_wide = self.wants_wide and len(schema.dense) > 0
        if self.is_wide:
            sizes, degree = (len(schema.dense), self.num_treatments), options.share_doses
            self.wide_value_heads = LinearHeads(*sizes, self.value_response.channels, degree)
            self.wide_cost_heads = LinearHeads(*sizes, self.cost_response.channels, degree)

    @property
    def dense_inputs(self) -> int:
        """Width of what :meth:`encode` takes as dense features."""
        return len(self.schema.dense)

    @property
    def wants_wide(self) -> bool:
        """Whether raw outputs have a linear part, if there are dense features."""
        return self.options.wide

    @property
    def value_start(self) -> Start:
        """Where values start."""
        return Start(self.value_mean, self.value_conversion)

    @property
    def cost_start(self) -> Start:
        """Where costs start, of rows that converted where the cost is one of conversions."""
        start = Start(self.cost_mean, self.cost_conversion)
        if not self.cost_response.on_conversion:
            return start
        converted = torch.sigmoid(self._value_logit)
        return Start(start.mean / converted, (start.conversion / converted).clamp_max(1))

    def backbone(self, in_features: int, linear: Affine = nn.Linear) -> nn.Sequential:
        """The trunk that the options choose, ``[N, in_features] → [N, trunk_hidden[-1]]``."""
        o = self.options
        if o.backbone == "mlp":
            return mlp(in_features, o.trunk_hidden, o.dropout, linear)
        return dcn_v2(in_features, o.trunk_hidden, o.dropout, o.cross_layers, o.cross_rank, linear)

    def heads(self, channels: int, level: bool = False) -> TreatmentHeads | DoseHeads:
        """Heads over one representation, ``[N, trunk_hidden[-1]] → [N, K, channels]``; ``level``: see DoseHeads."""
        o = self.options
        sizes = (o.trunk_hidden[-1], self.num_treatments, o.head_hidden, channels)
        return DoseHeads(*sizes, o.share_doses, level) if o.share_doses else TreatmentHeads(*sizes)

    def standardised(self, dense: Tensor) -> Tensor:
        """``[N, D]`` z-scores of dense features as measured, within ±8."""
        return ((dense - self.dense_mean) / self.dense_std).clamp(-8, 8)

    def encode(self, x: Tensor, embeddings: Tensor | None) -> Tensor:
        """Features ``[N, width]`` of what is known of dense features, ``[N, dense_inputs]``, and pooled embeddings."""
        parts = [] if self.dense_arch is None else [self.dense_arch(x)]
        return torch.cat(parts if embeddings is None else [*parts, embeddings], dim=1)

    def widened(self, raw: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """Raw outputs with their linear part of standardised features ``x``, where there is one."""
        if not self.is_wide:
            return raw
        value, cost = raw["value"] + self.wide_value_heads(x), raw["cost"] + self.wide_cost_heads(x)
        return {**raw, "value": value, "cost": cost}

    @abstractmethod
    def raw(self, features: Tensor) -> dict[str, Tensor]:
        """Raw outputs ``value`` and ``cost``, ``[N, K, C]`` each, and what else :meth:`extra_losses` need."""

    def outputs(self, dense: Tensor, sparse: Any) -> LearnerOutput:
        """Value and cost ``[N, K]`` of every treatment, and what the losses need."""
        x = self.standardised(dense)
        embeddings = None if self.sparse_arch is None else self.sparse_arch(sparse)
        raw = self.widened(self.raw(self.encode(x, embeddings)), x)
        return LearnerOutput(self.respond(raw), raw)

    def respond(self, raw: Mapping[str, Tensor]) -> ResponsePrediction:
        """Value and cost ``[N, K]`` of every treatment from raw outputs."""
        value = self.value_response(raw["value"], self.value_start)
        cost = self.cost_response(raw["cost"], self.cost_start)
        if self.cost_response.on_conversion:
            cost = cost * self.conversion(raw["value"])
        return ResponsePrediction(value, cost_with_known(cost, self.known_cost))

    def conversion(self, raw: Tensor) -> Tensor:
        """``[N, K]`` probability that the value is above 0, from its raw outputs, where they have a logit."""
        return torch.sigmoid(raw[..., 0] + self._value_logit)

    @property
    def _value_logit(self) -> Tensor:
        """``[K]``, of the conversion that a raw output of 0 predicts."""
        logit = self.value_response.start_logit(self.value_start)
        assert logit is not None
        return logit

    def forward(self, dense: Tensor, sparse: Any) -> ResponsePrediction:
        """Value and cost ``[N, K]`` of every treatment."""
        return self.outputs(dense, sparse).prediction

    def extra_losses(self, batch: Observed, output: LearnerOutput) -> dict[str, Tensor]:
        """Losses of each row beside that of the given arm's outcomes, ``[n]`` each, by name."""
        return {}

    def observe(self, batch: Observed, output: LearnerOutput, epoch: int) -> None:
        """Take in a training batch and what was predicted of it, without a gradient; each row once an epoch."""

    def settle(self, whole: bool) -> dict[str, float]:
        """Put what :meth:`observe` took in to use; numbers worth a log, by name. ``whole``: it is of a whole epoch."""
        return {}

    def observed(self) -> dict[str, Any] | None:
        """What :meth:`observe` took in, for a checkpoint; ``None``: nothing."""
        return None

    def resume_observed(self, observed: Mapping[str, Any] | None) -> None:
        """Inverse of :meth:`observed`."""

    @contextmanager
    def as_in_training(self) -> Iterator[None]:
        """Predict without what :meth:`observe` took in: rows of the training split would meet their own outcomes."""
        yield

    def value_losses(self, batch: Observed, output: LearnerOutput) -> Tensor | None:
        """Loss ``[n]`` of the given arm's value, where the value's head has its own; ``None``: the factual one."""
        return self.value_response.losses(
            given(output.extra["value"], batch.treatment), self.value_start.of(batch.treatment), batch.value
        )

    def cost_losses(self, batch: Observed, output: LearnerOutput) -> Tensor | None:
        """As :meth:`value_losses`, of the cost: 0 where the arm's is known, or hangs on a conversion that was none."""
        raw, start = given(output.extra["cost"], batch.treatment), self.cost_start.of(batch.treatment)
        losses = self.cost_response.losses(raw, start, batch.cost)
        return None if losses is None else losses.where(self.teaches_cost(batch), 0.0)

    def teaches_cost(self, batch: Observed) -> Tensor:
        """``[n]``, whether a row says something of its arm's cost."""
        learned = self.known_cost[batch.treatment].isnan()
        return learned & (batch.value > 0) if self.cost_response.on_conversion else learned

    def feature_of(self, name: str) -> str | None:
        """The id feature whose table rows the leading axis of the state's entry ``name`` counts."""
        return None

    def is_by_arm(self, name: str) -> bool:
        """Whether the leading axis of the state's entry ``name`` holds the K arms, each its own block."""
        own = name.endswith("_heads.bias") if self.options.share_doses else "_heads." in name
        return own or name in ("value_mean", "cost_mean", "value_conversion", "cost_conversion")

    @property
    def joins_arms(self) -> bool:
        """Whether what is learned of an arm depends on which arms lie beside it."""
        return bool(self.options.share_doses) or self.value_response.ordered or self.cost_response.ordered


def given(raw: Tensor, treatment: Tensor) -> Tensor:
    """Raw outputs ``[n, C]`` of the arm given."""
    return raw.gather(1, treatment.view(-1, 1, 1).expand(-1, 1, raw.shape[2])).squeeze(1)


def arguments(kind: type[Options]) -> tuple[str, ...]:
    """Names of what a learner's options take."""
    return tuple(f.name for f in fields(kind))
