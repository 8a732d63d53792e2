"""From raw outputs of the heads to one outcome of every arm, and the likelihood where that is not enough."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_budget.errors import InputError
from lightning_budget.models.links import LINKS
from lightning_budget.schema import Outcome

LARGEST_LOG = 20.0
"""Bound of the exponent of a log-normal mean in units of the scale, well below where float32 ends."""

LEAST_SIGMA = 0.05


class Start(NamedTuple):
    """What raw outputs of 0 predict for each arm ``[K]``, or for the arm of each row ``[n]``.

    Attributes:
        mean: of the outcome; conversion: share of outcomes above 0.
    """

    mean: Tensor
    conversion: Tensor

    def of(self, arms: Tensor | slice) -> Start:
        """Those of some arms."""
        return Start(self.mean[arms], self.conversion[arms])


class Response:
    """One raw output per arm through the link: ``link(raw_j)``, started at the arm's mean.

    Args:
        outcome: ``value`` or ``cost``; kind: of that outcome; scale: its units of one unit of raw output.

    Attributes:
        name: in configs and checkpoints; channels: C raw outputs of each arm; outcomes: what it fits; ordered: takes it
            that the dose rises from each arm to the next; on_conversion: of rows whose value is above 0 alone.
    """

    name = "plain"
    channels = 1
    outcomes: tuple[str, ...] = ("value", "cost")
    ordered = False
    on_conversion = False

    @classmethod
    def converts(cls, kind: Outcome) -> bool:
        """Whether the first channel is the logit of a conversion, where the outcome is of that kind."""
        return kind == "binary"

    def __init__(self, outcome: str, kind: Outcome, scale: float) -> None:
        unbounded = "identity" if outcome == "value" else "positive"
        self.link = LINKS["probability" if kind == "binary" else unbounded]
        self.kind: Outcome = kind
        self.scale = scale

    def __call__(self, raw: Tensor, start: Start) -> Tensor:
        """``[N, K]`` from ``raw [N, K, C]`` and the arms' ``[K]`` start."""
        return self.link(raw[..., 0], start.mean, self.scale)

    def losses(self, raw: Tensor, start: Start, observed: Tensor) -> Tensor | None:
        """Loss ``[n]`` from ``raw [n, C]`` and the start ``[n]`` of the arms given; ``None``: the factual one."""
        return None

    def start_logit(self, start: Start) -> Tensor | None:
        """``[K]`` logits that the first channel is added to; ``None``: it is no logit."""
        return torch.logit(inner_probability(start.mean)) if self.kind == "binary" else None

    def excess(self, raw: Tensor, start: Start, observed: Tensor) -> tuple[Tensor, Tensor] | None:
        """1 where ``observed [n]`` is above 0, and the logarithm of its size less the predicted one; ``None``: none.

        Arguments as of :meth:`losses`; the predicted logarithm is linear in the second channel.
        """
        return None

    def paid(self, raw: Tensor, start: Start, observed: Tensor) -> tuple[Tensor, Tensor] | None:
        """1 where ``observed [n]`` is above 0, and the probability of it after a conversion; ``None``: no such thing.

        Arguments as of :meth:`losses`; the probability's logit is linear in the first channel.
        """
        return None


class Monotone(Response):
    """Control plus increments that are never negative: the outcome rises with the dose.

    ``v_0 = link(raw_0)``, ``v_j = v_{j−1} + scale · softplus(raw_j + step_j)``; of a probability the increments are
    added to its logit. ``step_j`` gives the difference of the arms' means, where that is positive.

    Source: after the monotone uplift of E3IR, Sun et al. 2024, arXiv:2408.11623.
    """

    name = "monotone"
    ordered = True

    @classmethod
    def converts(cls, kind: Outcome) -> bool:
        return False

    def start_logit(self, start: Start) -> None:
        """None: channels are steps from one arm to the next."""
        return None

    def __call__(self, raw: Tensor, start: Start) -> Tensor:
        raw, mean = raw[..., 0], start.mean
        binary = self.kind == "binary"
        level = torch.logit(mean.clamp(1e-4, 1 - 1e-4)) if binary else mean / self.scale
        step = level.diff().clamp_min(1e-4)
        steps = F.softplus(raw[:, 1:] + step + torch.log(-torch.expm1(-step)))
        if binary:
            return torch.sigmoid(torch.cat([raw[:, :1] + level[:1], steps], 1).cumsum(1))
        control = self.link(raw[:, :1], mean[:1], self.scale)
        return torch.cat([control, control + self.scale * steps.cumsum(1)], 1)


class Funnel(Response):
    """Probability of a conversion times its size: ``v_j = σ(raw_0j) · c_j``, a conversion being an outcome above 0.

    Loss: cross-entropy of the conversion, and half the gamma deviance of ``c_j = exp(raw_1j)`` on rows that converted,
    ``y / c_j − log(y / c_j) − 1``: least at the mean, in units of the size itself, so that few large ones do not rule.

    Raises:
        InputError: for a binary outcome, which is its own conversion.

    Source: after FunnelCausalNet, arXiv:2608.11675; the deviance is ours.
    """

    channels = 2
    name = "funnel"

    @classmethod
    def converts(cls, kind: Outcome) -> bool:
        return True

    def __init__(self, outcome: str, kind: Outcome, scale: float) -> None:
        super().__init__(outcome, kind, scale)
        if kind == "binary":
            raise InputError(
                f"model.{outcome}_head={self.name} on a binary {outcome}",
                f"a {outcome} of many sizes, often 0",
                f"use {outcome}_head=plain, which is a probability",
            )

    def __call__(self, raw: Tensor, start: Start) -> Tensor:
        logit, log = self.parts(raw, start)
        return self.scale * torch.sigmoid(logit) * log.exp()

    def parts(self, raw: Tensor, start: Start) -> tuple[Tensor, Tensor]:
        """Logit of a conversion, and logarithm of its size in units of the scale."""
        p = inner_probability(start.conversion)
        log = raw[..., 1] + (start.mean / (self.scale * p)).clamp_min(1e-4).log()
        return raw[..., 0] + torch.logit(p), log.clamp(-LARGEST_LOG, LARGEST_LOG)

    def start_logit(self, start: Start) -> Tensor:
        return torch.logit(inner_probability(start.conversion))

    def excess(self, raw: Tensor, start: Start, observed: Tensor) -> tuple[Tensor, Tensor]:
        bought = observed > 0
        size = torch.where(bought, observed / self.scale, 1.0)
        return bought.to(raw.dtype), size.log() - self.parts(raw, start)[1]

    def losses(self, raw: Tensor, start: Start, observed: Tensor) -> Tensor:
        logit, log = self.parts(raw, start)
        bought, amount = conversion(observed)
        excess = torch.where(bought > 0, amount / self.scale, 1.0).log() - log
        return F.binary_cross_entropy_with_logits(logit, bought, reduction="none") + bought * (
            excess.exp() - excess - 1
        )


class ZILN(Funnel):
    """Zero-inflated log-normal: ``v = scale · p · exp(μ + σ²/2)`` with its likelihood as the loss.

    ``−log L = CE(1[y > 0], p) + 1[y > 0] · (log(σ √(2π)) + (log(y / scale) − μ)² / (2σ²) + log(y / scale))``. The
    exponent of the mean is bounded by :data:`LARGEST_LOG`.

    Raises:
        InputError: for a binary value.

    Source: Wang, Liu, Miao 2019, arXiv:1912.07753.
    """

    channels = 3
    name = "ziln"
    outcomes = ("value",)

    def __call__(self, raw: Tensor, start: Start) -> Tensor:
        logit, mu, sigma = self.moments(raw, start)
        return self.scale * torch.sigmoid(logit) * (mu + sigma.square() / 2).clamp_max(LARGEST_LOG).exp()

    def moments(self, raw: Tensor, start: Start) -> tuple[Tensor, Tensor, Tensor]:
        """Logit of p, and μ and σ of ``log(y / scale)`` where y > 0; they start at a coefficient of variation of 1."""
        p = inner_probability(start.conversion)
        variance = math.log(2)
        mu = torch.log((start.mean / (self.scale * p)).clamp_min(1e-4)) - variance / 2
        sigma = LEAST_SIGMA + F.softplus(raw[..., 2] + math.log(math.expm1(math.sqrt(variance) - LEAST_SIGMA)))
        return raw[..., 0] + torch.logit(p), raw[..., 1] + mu, sigma

    def losses(self, raw: Tensor, start: Start, observed: Tensor) -> Tensor:
        logit, mu, sigma = self.moments(raw, start)
        bought, amount = conversion(observed)
        log = torch.where(bought > 0, amount / self.scale, 1.0).log()
        normal = sigma.log() + math.log(2 * math.pi) / 2 + ((log - mu) / sigma).square() / 2
        return F.binary_cross_entropy_with_logits(logit, bought, reduction="none") + bought * (normal + log)


class OnConversion(Funnel):
    """A cost that conversions alone have: this is its mean where there was one, paid with a probability or not.

    With the value's probability of a conversion P the cost is ``P_j · σ(raw_0j) · c_j``, so that value and cost of an
    arm rise and fall together. The loss is that of :class:`Funnel` on the rows that converted.

    Source: after FunnelCausalNet, arXiv:2608.11675.
    """

    name = "on_conversion"
    outcomes = ("cost",)
    on_conversion = True

    def paid(self, raw: Tensor, start: Start, observed: Tensor) -> tuple[Tensor, Tensor]:
        return (observed > 0).to(raw.dtype), torch.sigmoid(self.parts(raw, start)[0])


RESPONSES: dict[str, type[Response]] = {head.name: head for head in (Response, Monotone, Funnel, ZILN, OnConversion)}
"""Every way from raw outputs to an outcome by the name that configs and checkpoints use."""


def guessed_conversion(mean: Tensor, scale: float) -> Tensor:
    """Share of conversions ``[K]`` by the arms' means m and the root mean square s, ``2 m² / s²``, within bounds.

    Exact where sizes of conversions have the coefficient of variation 1 and all arms have one mean square.
    """
    return (2 * (mean / scale).square()).clamp(1e-3, 0.9)


def inner_probability(share: Tensor) -> Tensor:
    """The share of conversions, kept inside (0, 1)."""
    return share.clamp(1e-4, 1 - 1e-4)


def conversion(observed: Tensor) -> tuple[Tensor, Tensor]:
    """1 where the value is above 0, and the value.

    Raises:
        InputError: for a negative value on a CPU; on an accelerator, where asking would wait for the device, the loss
            of that row becomes NaN, which training refuses.
    """
    negative = observed < 0
    if not observed.is_cuda and bool(negative.any()):
        raise InputError(
            f"{float(observed.min()):g} under a head of kind funnel or ziln",
            "outcomes of at least 0",
            "use model.value_head=plain and model.cost_head=plain",
        )
    return (observed > 0).to(observed.dtype).masked_fill(negative, math.nan), observed
