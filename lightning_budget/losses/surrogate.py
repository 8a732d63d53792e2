"""A value whose gradient was found elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, cost: Tensor, goal: Tensor, d_value: Tensor, d_cost: Tensor) -> Tensor:
        ctx.kinds = value.dtype, cost.dtype
        ctx.save_for_backward(_within(d_value, value.dtype), _within(d_cost, cost.dtype))
        return goal.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = outputs
        # The product first: a loss scale is there to lift small derivatives above what float16 can hold.
        d_value, d_cost = ((upstream * d).to(kind) for d, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True))
        return d_value, d_cost, None, None, None


def _within(derivative: Tensor, kind: torch.dtype) -> Tensor:
    """Held at the largest number of ``kind``, so that only a loss scale, which adapts, makes it overflow."""
    largest = torch.finfo(kind).max
    return derivative if largest >= torch.finfo(derivative.dtype).max else derivative.clamp(-largest, largest)


def with_gradient(value: Tensor, cost: Tensor, goal: Tensor, d_value: Tensor, d_cost: Tensor) -> Tensor:
    """The scalar ``goal``, with ``d_value`` and ``d_cost`` as its derivatives by the predictions.

    Equal to the surrogate ``(stopgrad(d_value)·v̂ + stopgrad(d_cost)·ĉ).sum()`` in its gradient, and to the goal in
    its value, so that one backward carries both this and the prediction loss.

    Args:
        value, cost: ``[n, K]`` predictions, of any floating type.
        goal: scalar, of the type of the result; d_value, d_cost: ``[n, K]``, kept in their own type until backward.
    """
    result = _WithGradient.apply(value, cost, goal, d_value, d_cost)
    assert isinstance(result, Tensor)
    return result
