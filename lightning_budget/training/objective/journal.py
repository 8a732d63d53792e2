"""What the objective tells: numbers to the loggers, and a line to the user."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import lightning as L
import torch
from torch import Tensor

from lightning_budget.losses.goal_state import GoalState


def log_numbers(trainer: L.Trainer, numbers: Mapping[str, float]) -> None:
    """Under ``objective/``, to the loggers directly: a refresh may come where a module cannot log.

    Every rank calls it with the same numbers.
    """
    named = {f"objective/{name}": x for name, x in numbers.items()}
    for logger in trainer.loggers:
        logger.log_metrics({"epoch": trainer.current_epoch, **named}, step=trainer.global_step)
    trainer.callback_metrics.update({name: torch.tensor(x) for name, x in named.items()})


def logs_this_step(trainer: L.Trainer) -> bool:
    """Whether Lightning will log the step that is being computed."""
    every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # the trainer's arguments
    return bool(every) and (trainer.global_step + 1) % every == 0


def numbers_of(state: GoalState, names: Sequence[str], changed: Tensor | None) -> dict[str, float]:
    """``<what>@<target>`` of each of the B targets.

    Args:
        names: B of them; changed: ``[B]``, where it is known.
    """
    columns = {"multiplier": state.multiplier, "rate": state.rate, "spread": state.spread}
    if changed is not None:
        columns["changed"] = changed
    return {
        f"{what}@{name}": x for what, column in columns.items() for name, x in zip(names, column.tolist(), strict=True)
    }


def warn(trainer: L.Trainer, key: str, text: str) -> None:
    """A warning of one line, from rank 0, that names the config's key in place of a line of this library's source."""
    if trainer.is_global_zero:
        warnings.warn_explicit(text, UserWarning, filename=key, lineno=1)
