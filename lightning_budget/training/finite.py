"""Training never goes on from a loss that is not a number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_budget.errors import InputError


class FiniteGuard:
    """Stop at the first step whose loss has a term that is not finite.

    On a CPU each step is checked before its backward. On an accelerator that would make the host wait for the device at
    every step, so the terms are copied behind the computation and read one step later; :meth:`flush` reads the last
    ones before a checkpoint is written, so that none is written of a model that has seen NaN.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, tuple[str, ...], Tensor, torch.cuda.Event] | None = None

    def check(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Args: losses: scalars by name, the terms before their sum; step: the number of this one.

        Raises:
            InputError: naming the term, at this step or the one before.
        """
        values = torch.stack([x.detach().float() for x in losses.values()])
        names = tuple(losses)
        if not values.is_cuda:
            _refuse(step, names, values)
            return
        self.flush()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (step, names, host, event)

    def flush(self) -> None:
        """Check what is still under way.

        Raises:
            InputError: as :meth:`check`.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            step, names, host, event = pending
            event.synchronize()
            _refuse(step, names, host)


def refuse_broken_weights(module: nn.Module, step: int) -> None:
    """Of a finite loss the gradient may still overflow, and only the loss of the next step would tell.

    Args:
        module: whose weights, on this rank, are about to be saved; step: how many have been made.

    Raises:
        InputError: naming the first weight with an entry that is not finite.
    """
    named = [(name, p.detach()) for name, p in module.named_parameters() if p.numel()]
    # Extremes, which NaN passes through, take no memory beside a large table.
    ends = torch.stack([torch.stack(p.aminmax()).float().cpu() for _, p in named])
    finite = ends.isfinite().all(dim=1)
    if bool(finite.all()):
        return
    name = named[int(finite.logical_not().nonzero()[0])][0]
    raise InputError(
        f"{name} is not finite after {step} steps; training stops and the last checkpoint stays as it is",
        "finite weights",
        "lower model.optimizer.lr or objective.weight, or raise the estimator's width",
    )


def _refuse(step: int, names: tuple[str, ...], values: Tensor) -> None:
    if bool(torch.isfinite(values).all()):
        return
    name, value = next((n, v) for n, v in zip(names, values.tolist(), strict=True) if not abs(v) < float("inf"))
    fix = "lower model.optimizer.lr or objective.weight"
    raise InputError(
        f"{name} is {value} at step {step}; training stops and the last checkpoint stays as it is",
        "finite losses",
        f"{fix}, or look for outliers in the data; debug=anomaly finds the operation",
    )
