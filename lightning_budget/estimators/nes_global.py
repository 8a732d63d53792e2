"""Natural evolution strategies on one number, the goal of all users."""

from __future__ import annotations

from torch import Tensor

from lightning_budget.estimators.nes import NES


class NESGlobal(NES):
    """Natural evolution strategies that see nothing but the goal of the whole perturbed matrix.

    With ``F(a) = Σ_i g_i,argmax_j a_ij`` and M antithetic pairs of Gaussian matrices ε::

        ∂G/∂a_ij ≈ 1/(2Mσ) Σ_m [ F(a + σ ε_m) − F(a − σ ε_m) ] ε_m,ij

    The expectation is that of ``nes``, the variance about N times as large, as every user's noise multiplies the gains
    of all. A reference: what black-box evolution strategies do without the structure of the allocation.

    Args:
        sigma: σ in units of the spread of the scores.
        pairs: M.

    Raises:
        InputError: if σ is not above 0 or there is no pair.

    Source: Wierstra et al. 2014, JMLR 15:949.
    """

    is_global = True

    def _credit(self, change: Tensor) -> Tensor:
        return change.sum(dim=1, keepdim=True)
