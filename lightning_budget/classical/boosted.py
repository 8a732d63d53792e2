"""CausalML's R-learner over gradient-boosted trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_budget.classical.effects import EffectModel, Effects, Observed, fit_effects
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable


def boosted_r_learner(
    train: RCTTable,
    schema: DataSchema,
    statistics: DataStatistics,
    trees: int = 100,
    learning_rate: float = 0.05,
    max_leaves: int = 8,
    min_samples_leaf: int = 100,
    folds: int = 5,
    max_categories: int = 64,
    seed: int = 0,
    jobs: int = 1,
) -> EffectModel:
    """``causalml.inference.meta.BaseRRegressor`` over scikit-learn's ``HistGradientBoostingRegressor``.

    For each outcome y, with ``m̂`` fitted across folds and ``p_j`` the propensity of arm j among the rows given j or
    control, one fit of boosted trees an arm::

        minimise over τ_j   Σ_{t_i ∈ {0, j}} w_i (y_i − m̂(x_i) − (1[t_i = j] − p_j) τ_j(x_i))²

    ``p_j`` is the trial's where that is one number an arm, else CausalML estimates it by logistic regression.

    Args:
        train: rows to fit on; schema, statistics: of the training split.
        trees, learning_rate, max_leaves, min_samples_leaf: of every fit of boosted trees; of more than 10,000 rows
            scikit-learn sets a tenth aside, and stops at fewer trees where more do not help there.
        folds: of rows, for m̂, which is fitted without the sample weights w.
        max_categories: largest table, in rows, of an id feature that gets columns.
        seed: of folds and trees; jobs: processes that fit m̂, which do not change the result.

    Raises:
        InputError: without CausalML.

    Sources: Nie, Wager 2021, arXiv:1712.04912; Chen et al. 2020, arXiv:2002.11631.
    """
    try:
        from causalml.inference.meta import BaseRRegressor  # pyright: ignore[reportMissingImports]  # an optional extra
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as e:
        raise InputError(
            f"an R-learner without {e.name or 'CausalML'}", "CausalML", "pip install 'lightning-budget[classical]'"
        ) from e

    def fit(observed: Observed) -> Effects:
        outcome, effect = (
            HistGradientBoostingRegressor(
                learning_rate=learning_rate,
                max_iter=trees,
                max_leaf_nodes=max_leaves,
                min_samples_leaf=min_samples_leaf,
                random_state=seed,
            )
            for _ in range(2)
        )
        learner = BaseRRegressor(outcome_learner=outcome, effect_learner=effect, n_fold=folds, random_state=seed)
        # No argument of this class; by itself it starts a process on every core.
        learner.cv_n_jobs = jobs
        p = None
        if observed.propensity is not None:
            control, n = observed.propensity[0], len(observed.x)
            p = {j: np.full(n, q / (q + control)) for j, q in enumerate(observed.propensity) if j}
        learner.fit(observed.x, observed.treatment, observed.outcome, p=p, sample_weight=observed.weight, verbose=False)
        return _Learner(learner)

    return fit_effects(fit, train, schema, statistics, max_categories)


@dataclass(frozen=True)
class _Learner:
    """A fitted learner, which can be pickled."""

    learner: Any

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.learner.predict(x)
