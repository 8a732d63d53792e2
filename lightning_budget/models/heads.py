"""One response head per treatment, evaluated together: raw outputs, before any link."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_budget.models.backbones import ArmLinear


class TreatmentHeads(nn.Module):
    """K separate one-hidden-layer heads over a shared representation, ``[N, in_features] → [N, K, channels]``.

    The output layer starts at zero: an untrained model predicts what its links are centred on.
    """

    def __init__(self, in_features: int, num_treatments: int, hidden: int, channels: int = 1) -> None:
        super().__init__()
        self.num_treatments = num_treatments
        # One channel has no axis: checkpoints hold these shapes.
        axis = () if channels == 1 else (channels,)
        self.hidden = nn.Linear(in_features, num_treatments * hidden)
        self.out = nn.Parameter(torch.zeros(num_treatments, hidden, *axis))
        self.bias = nn.Parameter(torch.zeros(num_treatments, *axis))

    def forward(self, representation: Tensor) -> Tensor:
        k = self.num_treatments
        h = F.silu(self.hidden(representation)).unflatten(1, (k, -1))
        # Not by einsum, of which tracing takes it that there is more than one user.
        weight = self.out.unsqueeze(2) if self.out.dim() == 2 else self.out
        return torch.bmm(h.transpose(0, 1), weight).transpose(0, 1) + self.bias.view(k, -1)


class DoseHeads(nn.Module):
    """Heads that share strength: one hidden layer, output weights polynomial in the dose, ``[N, K, channels]``.

    ``raw_j = (w_0 + Σ_{r=1}^{R} d_j^r w_r) · silu(A x + b) + bias_j`` with ``d_j = j / (K − 1)``. Starts at zero as
    :class:`TreatmentHeads` does.

    Args:
        in_features: of the representation; num_treatments: K; hidden: of the shared layer; channels: of the output.
        degree: R; K − 1 gives every arm output weights of its own.
    """

    def __init__(self, in_features: int, num_treatments: int, hidden: int, channels: int, degree: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.out = nn.Parameter(torch.zeros(degree + 1, hidden, channels))
        self.bias = nn.Parameter(torch.zeros(num_treatments, channels))
        self.num_treatments = num_treatments

    def forward(self, representation: Tensor) -> Tensor:
        dose = torch.arange(self.num_treatments, device=self.out.device) / (self.num_treatments - 1)
        powers = dose.unsqueeze(1) ** torch.arange(self.out.shape[0], device=self.out.device)
        weight = (powers @ self.out.flatten(1)).unflatten(1, self.out.shape[1:])
        raw = F.silu(self.hidden(representation)) @ weight.transpose(0, 1).flatten(1)
        return raw.unflatten(1, self.bias.shape) + self.bias


class ArmHeads(nn.Module):
    """K separate one-hidden-layer heads, each over a representation of its own, ``[K, N, W] → [N, K, channels]``.

    Starts at zero as :class:`TreatmentHeads` does.
    """

    def __init__(self, in_features: int, num_treatments: int, hidden: int, channels: int = 1) -> None:
        super().__init__()
        self.hidden = ArmLinear(num_treatments, in_features, hidden)
        self.out = nn.Parameter(torch.zeros(num_treatments, hidden, channels))
        self.bias = nn.Parameter(torch.zeros(num_treatments, channels))

    def forward(self, representations: Tensor) -> Tensor:
        return torch.bmm(F.silu(self.hidden(representations)), self.out).transpose(0, 1) + self.bias


class SharedHead(nn.Module):
    """One one-hidden-layer head for all arms, ``[..., in_features] → [..., channels]``; starts at zero."""

    def __init__(self, in_features: int, hidden: int, channels: int = 1) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(in_features, hidden), nn.Linear(hidden, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, representation: Tensor) -> Tensor:
        return self.out(F.silu(self.hidden(representation)))
