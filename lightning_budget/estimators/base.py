"""What every gradient estimator is given, gives back and declares."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_budget.errors import InputError


class GoalEstimate(NamedTuple):
    """What an estimator found for B multipliers, K treatments, N users.

    Attributes:
        value: ``[B]``, Σ_i of the gain of user i's (smoothed) arm.
        gradient: ``[B, K, N]``, estimate of the derivative of that sum with respect to the scores.
        score: ``[B]``, Σ_i of the score of that arm, where it comes at little cost.
    """

    value: Tensor
    gradient: Tensor
    score: Tensor | None = None


class GradientEstimator(ABC):
    """Gradient of what an allocation earns with respect to the scores that make it.

    At a fixed multiplier λ_b users do not touch each other: user i gets the arm ``argmax_j a_bji`` with scores
    ``a_bji = v̂_ij − λ_b ĉ_ij`` and earns its gain ``g_bji``. That is piecewise constant, so an estimator smooths it::

        G_b(a) = Σ_i E[ g_b,J(i),i ],    J(i) = argmax_j (a_bji + width_b · noise_ij)

    and estimates ``∂G_b / ∂a_bji``. Which noise, and whether exactly or from samples, is what estimators differ in.
    Tensors are treatment-major, ``[B, K, N]``: sums and maxima over a user's few arms then run along users.

    Class attributes (read by checks, tests, docs and diagnostics):
        is_random: whether two calls with different generators differ.
        unbiased_for: the smoothed goal whose gradient it gives exactly or on average; empty where there is none.
        requires: what must be passed to :meth:`estimate` beyond scores, gains and width: ``""`` or ``"given"``.
        is_global: whether a user's gradient depends on the other users of the call.
        is_symmetric: whether the gradient is exactly ``J g`` with a symmetric J, as that of a potential is.
        width_name: name of the constructor's argument that is ``width``.

    Attributes:
        width: scale of the noise (τ, σ or h) in units of the spread of scores, so that one default serves every data
            set; :meth:`estimate` takes it in units of the scores.
        evaluations_per_step: how often each multiplier's policy is evaluated for one gradient.
    """

    is_random: ClassVar[bool]
    unbiased_for: ClassVar[str]
    requires: ClassVar[str] = ""
    is_global: ClassVar[bool] = False
    is_symmetric: ClassVar[bool] = False
    width_name: ClassVar[str]

    width: float
    evaluations_per_step: int = 1

    @abstractmethod
    def assignment(self, scores: Tensor, width: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Probability of each arm under the smoothing.

        Args:
            scores: ``[B, K, N]``; width: ``[B]``, in units of the scores, above 0.
            generator: of the random estimators' noise, on the device of ``scores``; ``None``: torch's own.

        Returns:
            ``[B, K, N]``, sums to 1 over arms.
        """

    @abstractmethod
    def estimate(
        self,
        scores: Tensor,
        gains: Tensor,
        width: Tensor,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> GoalEstimate:
        """Value and gradient of the smoothed goal; nothing of it is recorded for autograd.

        Args:
            scores, gains: ``[B, K, N]`` floating, detached; width: ``[B]``, in units of the scores, above 0.
            given: ``[N]`` int64, the arm that the trial gave; for estimators that require it.
            generator: as in :meth:`assignment`.
        """

    @property
    def summary(self) -> dict[str, object]:
        """The declared properties, for tables of estimators."""
        return {
            "random": self.is_random,
            "unbiased for": self.unbiased_for,
            "evaluations": self.evaluations_per_step,
            "requires": self.requires,
        }


def check_width(estimator: GradientEstimator, width: float) -> float:
    """The width as a number above 0.

    Raises:
        InputError: if it is not.
    """
    if not 0 < width < math.inf:
        raise InputError(
            f"estimator.{estimator.width_name}={width}",
            "a number above 0, in units of the spread of scores",
            "1 is a start",
        )
    return float(width)


def check_count(name: str, count: int, least: int = 1) -> int:
    """A number of samples, pairs or nodes.

    Raises:
        InputError: if it is not an integer of at least ``least``.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise InputError(f"estimator.{name}={count!r}", f"a whole number of at least {least}", "raise it")
    return count
