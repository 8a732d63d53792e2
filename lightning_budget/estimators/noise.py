"""Draws of the noise that random estimators add to the scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lightning_budget.estimators.choice import noisy_choice_


def normal_draws(like: Tensor, count: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """``count`` times N(0, 1), each ``[K, N]`` for scores ``[B, K, N]``.

    All multipliers share a draw: each of their gradients keeps its distribution, at a B-th of the cost. One draw at a
    time, so that memory does not grow with their number.
    """
    for _ in range(count):
        yield like.new_empty(like.shape[1:]).normal_(generator=generator)


def exponential_draws(like: Tensor, count: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """``count`` times Exp(1), above 0, each ``[K, N]``, as in :func:`normal_draws`; −log of it is standard Gumbel."""
    for _ in range(count):
        # Several times faster on a CPU than exponential_.
        uniform = like.new_empty(like.shape[1:]).uniform_(generator=generator)
        yield uniform.neg_().log1p_().neg_().clamp_min_(torch.finfo(like.dtype).tiny)


def frequency(standard: Tensor, draws: Iterable[Tensor]) -> Tensor:
    """How often each arm has the largest noisy score.

    Args:
        standard: ``[B, K, N]`` scores in units of the width; draws: at least one, ``[K, N]`` each.

    Returns:
        ``[B, K, N]``, sums to 1 over arms.
    """
    total, count = torch.zeros_like(standard), 0
    for draw in draws:
        total += noisy_choice_(standard + draw)
        count += 1
    return total.div_(count)
