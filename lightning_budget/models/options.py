"""Sizes and choices that all learners have."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_budget.errors import InputError
from lightning_budget.models.backbones import BACKBONES
from lightning_budget.models.responses import RESPONSES

WIDTHS = ("embedding_dim", "head_hidden", "dense_hidden", "trunk_hidden")


@dataclass(frozen=True)
class Options:
    """What a config says of a learner besides its name; a learner with more has a class of its own, derived from this.

    Args:
        embedding_dim: width of every embedding table.
        dense_hidden, trunk_hidden: layer widths; head_hidden: width of each treatment's head.
        dropout: applied after every trunk layer.
        backbone: of the trunk, one of :data:`~lightning_budget.models.backbones.BACKBONES`.
        cross_layers, cross_rank: of ``dcn_v2``; rank 0: full matrices.
        value_head, cost_head: from raw outputs to outcomes, see :data:`~lightning_budget.models.responses.RESPONSES`;
            ``auto``: plain for an outcome that is binary or can be negative, else funnel; of a cost that conversions
            alone have, as the training split shows it, on_conversion.
        share_doses: R > 0: heads share one hidden layer, and their output weights are a polynomial of degree R in the
            dose, taken as ``j / (K − 1)``; 0: every arm has a head of its own.
        wide: raw outputs are also linear in the standardised dense features, beside the trunk and its heads
            (Cheng et al. 2016, arXiv:1606.07792).

    Raises:
        InputError: for a size or choice that is not allowed.
    """

    embedding_dim: int = 16
    dense_hidden: tuple[int, ...] = (32,)
    trunk_hidden: tuple[int, ...] = (64, 32)
    head_hidden: int = 16
    dropout: float = 0.0
    backbone: str = "mlp"
    cross_layers: int = 2
    cross_rank: int = 0
    value_head: str = "plain"
    cost_head: str = "plain"
    share_doses: int = 0
    wide: bool = False

    def __post_init__(self) -> None:
        for name in WIDTHS:
            size = getattr(self, name)
            if not size or min([size] if isinstance(size, int) else size) < 1:
                shown = size if isinstance(size, int) else list(size)
                raise InputError(f"model.{name}={shown}", "widths of at least 1", "raise it")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout={self.dropout:g}", "at least 0, below 1", "0 leaves every unit in")
        for name, least in (("cross_layers", 1), ("cross_rank", 0), ("share_doses", 0)):
            if getattr(self, name) < least:
                raise InputError(f"model.{name}={getattr(self, name)}", f"at least {least}", "raise it")
        values, costs = (
            ("auto", *(name for name, head in RESPONSES.items() if outcome in head.outcomes))
            for outcome in ("value", "cost")
        )
        for name, allowed in (("backbone", BACKBONES), ("value_head", values), ("cost_head", costs)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"model.{name}={getattr(self, name)!r}", ", ".join(allowed), "choose one of the allowed"
                )


def refuse_negative(**weights: float) -> None:
    """Raises: InputError: for the first weight of a loss that is below 0 or not finite."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise InputError(f"model.{name}={weight:g}", "a number of at least 0", "0 leaves that loss out")
