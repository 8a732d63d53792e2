"""Which arm has the largest score, of plain scores and of noisy ones."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype that an estimator computes in: that of its scores, but float32 for shorter ones."""
    return torch.promote_types(x.dtype, torch.float32)


def standardize(scores: Tensor, width: Tensor) -> Tensor:
    """Scores in units of the width, from the user's best arm: ``(a − max_k a_k) / width``, at most 0.

    No smoothing depends on a constant added to a user's scores. Without it noise is not lost beside large scores, and
    what overflows is −∞, which loses, rather than ∞, which would be in doubt.

    Args:
        scores: ``[B, K, N]``; width: ``[B]``, above 0.

    Returns:
        ``[B, K, N]``, at least float32.
    """
    kind = at_least_float32(scores)
    wide = scores.to(kind)
    return (wide - wide.amax(dim=1, keepdim=True)).div_(width.to(kind)[:, None, None])


def hard_choice(scores: Tensor) -> Tensor:
    """One-hot of the largest score, ``[B, K, N]``, at least float32.

    Of equal scores the first wins: scores carry no cost, by which the library's policy would decide.
    """
    chosen = torch.zeros_like(scores, dtype=at_least_float32(scores))
    return chosen.scatter_(1, scores.max(dim=1, keepdim=True).indices, 1)


def noisy_choice_(noisy: Tensor) -> Tensor:
    """Turn noisy scores ``[B, K, N]`` into the one-hot of the largest, in place; equal ones share the choice.

    Ties have no chance but for rounding. To compare with the maximum is then as good as argmax, and over ten times
    faster on a CPU, where argmax over arms does not run along users.
    """
    noisy.eq_(noisy.amax(dim=1, keepdim=True))
    return noisy.div_(noisy.sum(dim=1, keepdim=True))


def noisy_gain_(noisy: Tensor, gains: Tensor) -> Tensor:
    """Gain ``[B, N]`` of the arm with the largest noisy score; overwrites ``noisy``.

    Arms behind the best one fall below every gain, so that the largest of the rest is its gain: three passes over
    memory, where this is what a step of random estimators consists of. Of equal scores the larger gain counts.
    """
    noisy.sub_(noisy.amax(dim=1, keepdim=True))
    return torch.add(gains, noisy, alpha=torch.finfo(noisy.dtype).max, out=noisy).amax(dim=1)
