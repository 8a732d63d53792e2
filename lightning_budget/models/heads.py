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
        level: whether the first channel is to have ``w_0`` and ``bias_j`` alone.
    """

    def __init__(
        self, in_features: int, num_treatments: int, hidden: int, channels: int, degree: int, level: bool = False
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.out = nn.Parameter(torch.zeros(degree + 1, hidden, channels))
        self.bias = nn.Parameter(torch.zeros(num_treatments, channels))
        self.num_treatments = num_treatments
        self.level = level

    def forward(self, representation: Tensor) -> Tensor:
        out = self.out
        if self.level:
            out = torch.cat((F.pad(out[:1, :, :1], (0, 0, 0, 0, 0, len(out) - 1)), out[..., 1:]), dim=2)
        weight = of_doses(out, self.num_treatments)
        raw = F.silu(self.hidden(representation)) @ weight.transpose(0, 1).flatten(1)
        return raw.unflatten(1, self.bias.shape) + self.bias


class LinearHeads(nn.Module):
    """A linear map for each treatment, without a bias, ``[N, in_features] → [N, K, channels]``; starts at zero.

    Args:
        in_features, num_treatments, channels: as of :class:`DoseHeads`; degree: R, maps are polynomials of the dose of
            that degree; 0: each treatment has its own.
    """

    def __init__(self, in_features: int, num_treatments: int, channels: int, degree: int = 0) -> None:
        super().__init__()
        self.degree, self.num_treatments = degree, num_treatments
        self.weight = nn.Parameter(torch.zeros(degree + 1 if degree else num_treatments, in_features, channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = of_doses(self.weight, self.num_treatments) if self.degree else self.weight
        return (x @ weight.transpose(0, 1).flatten(1)).unflatten(1, (self.num_treatments, weight.shape[2]))


def of_doses(weight: Tensor, num_treatments: int) -> Tensor:
    """``Σ_r d_j^r w_r``: ``[K, …]`` from ``weight [R + 1, …]``, with ``d_j = j / (K − 1)``."""
    dose = torch.arange(num_treatments, device=weight.device) / (num_treatments - 1)
    powers = dose.unsqueeze(1) ** torch.arange(weight.shape[0], device=weight.device)
    return (powers @ weight.flatten(1)).unflatten(1, weight.shape[1:])


class Sensitivity(nn.Module):
    """How strongly a user responds to any dose: ``S(x) = exp(w·x + b)``, 1 at the start, ``[N, width] → [N, 1]``.

    Raw outputs with the effects ``δ_j`` of the arms become ``raw_j + δ_j (S − 1)``: effects differ between users by a
    positive factor that all arms have in common. The exponent is kept within (−4, 3).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log = nn.Linear(width, 1)
        nn.init.zeros_(self.log.weight)
        nn.init.zeros_(self.log.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.log(x).clamp(-4, 3).exp()


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
