"""Which loss a model's predictions are fitted by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.losses.cross_fitting import check_arguments

PAIRS = {"drp": "control", "drm": "control", "dpm": "adjacent"}
"""Direct methods, and what their scores are against."""
TWO_STEP = ("dr", "x")
LOSSES = ("factual", *TWO_STEP, *PAIRS)
"""Every loss by the name that configs and checkpoints use."""


@dataclass(frozen=True)
class LossChoice:
    """A loss by name, and what the first step of a two-step fit is.

    Args:
        name: ``factual``, outcomes of the given arm; ``dr``, ``x``, see :mod:`lightning_budget.losses.pseudo_outcomes`;
            ``drp``, ``dpm``, ``drm``, see :mod:`lightning_budget.losses.direct_ranking`.
        folds, ridge, max_categories: of ``dr`` and ``x``, see :func:`~lightning_budget.losses.cross_fitting.cross_fit`.

    Raises:
        InputError: for an unknown name or a number out of range.
    """

    name: str = "factual"
    folds: int = 5
    ridge: float = 100.0
    max_categories: int = 64

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise InputError(f"loss.name={self.name!r}", ", ".join(LOSSES), "choose one of the allowed")
        check_arguments(self.folds, self.ridge, self.max_categories)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LossChoice:
        """From a config.

        Raises:
            InputError: as the class, and for a key that it does not have.
        """
        names = [f.name for f in fields(cls)]
        if unknown := [key for key in config if key not in names]:
            raise InputError(f"loss.{unknown[0]}", ", ".join(names), "leave it out")
        return cls(**config)

    @property
    def is_two_step(self) -> bool:
        """Whether it regresses effects that a first fit gives."""
        return self.name in TWO_STEP

    @property
    def is_direct(self) -> bool:
        """Whether it is a loss of scores, not of predictions."""
        return self.name in PAIRS

    def check(self, pairs: str | None, own_losses: bool, objective: bool = False) -> None:
        """Refuse a model or a goal that the loss cannot train.

        Args:
            pairs: of the model's scores, ``None`` for one without.
            own_losses: whether a head of the model brings a likelihood.
            objective: whether the marketing goal is to join the loss.

        Raises:
            InputError: naming what does not fit.
        """
        if self.is_direct and pairs != PAIRS[self.name]:
            raise InputError(
                f"loss={self.name} with {'a model without scores' if pairs is None else f'model.pairs={pairs}'}",
                "scores against control" if PAIRS[self.name] == "control" else "scores against the adjacent arm",
                f"add model=direct_ranking model.pairs={PAIRS[self.name]}",
            )
        if not self.is_direct and pairs is not None:
            direct = [name for name, of in PAIRS.items() if of == pairs]
            raise InputError(
                f"model=direct_ranking with loss={self.name}", f"loss={' or '.join(direct)}", "choose another model"
            )
        if self.is_two_step and own_losses:
            raise InputError(
                f"loss={self.name} with a head that has a likelihood of its own",
                "heads whose mean can be fitted to effects",
                "set model.value_head=plain and model.cost_head=plain, or loss=factual",
            )
        if self.is_direct and objective:
            raise InputError(
                f"loss={self.name} with a marketing goal", "objective=none: it trains scores", "add objective=none"
            )
