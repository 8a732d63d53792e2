"""What every model predicts, and how far from it an outcome is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from lightning_budget.schema import Outcome


@dataclass(frozen=True)
class ResponsePrediction:
    """Predicted mean outcomes of every treatment for every user.

    Attributes:
        value: ``[N, K]``, value units per user.
        cost: ``[N, K]``, currency per user.
    """

    value: Tensor
    cost: Tensor

    def detach(self) -> ResponsePrediction:
        return ResponsePrediction(self.value.detach(), self.cost.detach())


def outcome_loss(predicted: Tensor, observed: Tensor, kind: Outcome, scale: float) -> Tensor:
    """Loss of each row, ``[N] → [N]``: squared error in units of ``scale``, or cross-entropy of a probability."""
    if kind == "binary":
        return F.binary_cross_entropy(predicted.clamp(1e-6, 1 - 1e-6), observed, reduction="none")
    return ((predicted - observed) / scale).square()
