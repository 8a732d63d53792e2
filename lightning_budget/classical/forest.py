"""EconML's causal forests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_budget.classical.effects import EffectModel, Effects, Observed, fit_effects
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable


def causal_forest(
    train: RCTTable,
    schema: DataSchema,
    statistics: DataStatistics,
    trees: int = 100,
    min_samples_leaf: int = 25,
    max_depth: int | None = None,
    max_samples: float = 0.2,
    max_categories: int = 64,
    seed: int = 0,
    jobs: int = 1,
) -> EffectModel:
    """``econml.dml.CausalForestDML``: one forest for each outcome, of all arms against control.

    Outcome nuisances are gradient-boosted trees; the treatment's is the arms' shares where the trial's propensity is
    one number an arm, else EconML's own choice.

    Args:
        train: rows to fit on; schema, statistics: of the training split.
        trees: of each forest, a multiple of 4; min_samples_leaf: rows, of the half of a sample that fills the leaves.
        max_depth: of a tree, ``None`` for any; max_samples: share of the rows that a tree is grown on.
        max_categories: largest table, in rows, of an id feature that gets columns.
        seed: of forests and folds; jobs: processes that grow trees, which do not change the result.

    Raises:
        InputError: without EconML, or where the number of trees is none it takes.

    Sources: Athey, Tibshirani, Wager 2019, arXiv:1610.01271; Chernozhukov et al. 2018, doi:10.1111/ectj.12097.
    """
    if trees < 4 or trees % 4:
        raise InputError(f"trees={trees}", "a multiple of 4, which EconML grows together", "100 is the default")
    try:
        from econml.dml import CausalForestDML  # pyright: ignore[reportMissingImports]  # an optional extra
        from sklearn.dummy import DummyClassifier
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as e:
        raise InputError(
            f"causal forests without {e.name or 'EconML'}", "EconML", "pip install 'lightning-budget[classical]'"
        ) from e

    def fit(observed: Observed) -> Effects:
        forest = CausalForestDML(
            model_y=HistGradientBoostingRegressor(random_state=seed),
            model_t="auto" if observed.propensity is None else DummyClassifier(strategy="prior"),
            discrete_treatment=True,
            n_estimators=trees,
            min_samples_leaf=min_samples_leaf,
            max_depth=max_depth,
            max_samples=max_samples,
            random_state=seed,
            n_jobs=jobs,
            inference=False,
        )
        forest.fit(observed.outcome, observed.treatment, X=observed.x, sample_weight=observed.weight)
        return _Forest(forest)

    return fit_effects(fit, train, schema, statistics, max_categories)


@dataclass(frozen=True)
class _Forest:
    """A fitted forest, which can be pickled."""

    forest: Any

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.forest.const_marginal_effect(x)
