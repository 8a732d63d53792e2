"""The smoothed dual of several constraints: value, gradient, and curvature in a form that is cheap to solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.rows import Block


@dataclass(frozen=True)
class SmoothDual:
    r"""The smoothed dual at one point.

    .. math:: D_\tau(\lambda) = \lambda^\top b
        + \tau \sum_i \log \sum_j \exp\frac{v_{ij} - \sum_m \lambda_m a_{mij}}{\tau}

    Attributes:
        value: :math:`D_\tau`.
        gradient: ``[P]``, the slack of the smoothed policy.
        curvature: of the Q limits outside the largest constraint, ``[Q, Q]``.
        border: between the largest constraint's G groups and the others, ``[G, Q]``.
        diagonal: of the groups, ``[G]``: a user is in one of them only, so they meet in no user.
        groups: where the groups lie among the P limits.
    """

    value: float
    gradient: Tensor
    curvature: Tensor
    border: Tensor
    diagonal: Tensor
    groups: slice

    def newton(self, right: Tensor, ridge: Tensor) -> Tensor:
        """Solve (curvature + diag(ridge)) x = right, ``[P]``, by eliminating the groups."""
        others = _others(right, self.groups)
        mass = self.diagonal + ridge[self.groups]
        scaled = self.border / mass[:, None]
        left = self.curvature + torch.diag(_others(ridge, self.groups)) - self.border.T @ scaled
        rhs = others - scaled.T @ right[self.groups]
        # Jacobi scaling: the limits that do not bind have a ridge many orders above those that do.
        size = left.diagonal().clamp(min=1e-300).rsqrt()
        left, rhs = size[:, None] * left * size, (size * rhs)[:, None]
        one = torch.eye(len(left), dtype=left.dtype, device=left.device)
        factor, failed = torch.linalg.cholesky_ex(left + 1e-14 * one)
        if int(failed):
            factor = torch.linalg.cholesky_ex(left + 1e-8 * one)[0]
        x = size * torch.cholesky_solve(rhs, factor)[:, 0]
        inner = (right[self.groups] - self.border @ x) / mass
        return torch.cat([x[: self.groups.start], inner, x[self.groups.start :]])


def smooth_dual(block: Block, multiplier: Tensor, temperature: float) -> SmoothDual:
    """The smoothed dual at multipliers ``[P]``; see :class:`SmoothDual`."""
    score = block.scores(multiplier)
    best = score.amax(dim=0)
    share = score.sub_(best).div_(temperature).exp_()
    mass = share.sum(dim=0)
    value = float((best + temperature * mass.log()).sum() + multiplier @ block.limit)
    share /= mass
    mean = (share * block.usage).sum(dim=1)
    gradient = block.limit - block.used(mean)
    spread = (block.usage - mean[:, None]).mul_(share.sqrt())
    groups, curvature, border, diagonal = _curvature(block, spread)
    return SmoothDual(value, gradient, curvature / temperature, border / temperature, diagonal / temperature, groups)


def hard_dual(block: Block, multiplier: Tensor) -> float:
    """The dual itself, at temperature 0."""
    return float(block.scores(multiplier).amax(dim=0).sum() + multiplier @ block.limit)


def _curvature(block: Block, spread: Tensor) -> tuple[slice, Tensor, Tensor, Tensor]:
    sizes, limits = block.sizes, len(block.limit)
    first = [sum(sizes[:r]) for r in range(len(sizes))]
    largest = max(range(len(sizes)), key=lambda r: sizes[r], default=-1)
    split = largest if largest >= 0 and sizes[largest] > 1 else -1
    groups = slice(first[split], first[split] + sizes[split]) if split >= 0 else slice(0, 0)
    count = groups.stop - groups.start
    others = limits - count

    def place(r: int) -> Tensor:
        """Row or column of the dense part."""
        return block.index[r] - (count if split >= 0 and first[r] >= groups.stop else 0)

    curvature, border = spread.new_zeros(others * others), spread.new_zeros(count * others)
    diagonal = spread.new_zeros(count)
    single = [r for r in range(len(sizes)) if sizes[r] == 1]
    flat = spread[single].flatten(1)
    if single:
        at = torch.tensor(
            [first[r] - (count if split >= 0 and first[r] >= groups.stop else 0) for r in single], device=spread.device
        )
        curvature.index_add_(0, (at[:, None] * others + at).reshape(-1), (flat @ flat.T).reshape(-1))
    for r in range(len(sizes)):
        for s in range(len(sizes)):
            if sizes[r] == 1 and sizes[s] == 1:
                continue
            if r == split and s == split:
                diagonal.index_add_(0, block.index[r] - groups.start, spread[r].square().sum(0))
            elif r == split:
                both = (spread[r] * spread[s]).sum(0)
                border.index_add_(0, (block.index[r] - groups.start) * others + place(s), both)
            elif s != split:
                curvature.index_add_(0, place(r) * others + place(s), (spread[r] * spread[s]).sum(0))
    return groups, curvature.reshape(others, others), border.reshape(count, others), diagonal


def _others(x: Tensor, groups: slice) -> Tensor:
    return torch.cat([x[: groups.start], x[groups.stop :]])
