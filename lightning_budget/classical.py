"""Causal forests of EconML as a reference beside the networks; the library does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.cross_fitting import Features
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable

CHUNK = 1 << 16


def causal_forest(
    train: RCTTable,
    users: Sequence[RCTTable],
    schema: DataSchema,
    statistics: DataStatistics,
    trees: int = 200,
    min_samples_leaf: int = 20,
    max_categories: int = 64,
    seed: int = 0,
    jobs: int = 1,
) -> list[ResponsePrediction]:
    """Value and cost by ``econml.dml.CausalForestDML``, one forest for each outcome and all arms against control.

    ``v̂_ij = control's mean value + τ̂^v_j(x_i)`` and so for cost, where that is not known: a policy by price asks for
    differences between arms alone, and totals are right on average. Outcome nuisances are gradient-boosted trees; the
    treatment's is the arms' shares where the trial's propensity is one number an arm, else EconML's own choice. The
    features are the dense ones and one-hot columns of id features with few values.

    Args:
        train: rows to fit on; users: tables to predict, say validation and test.
        schema, statistics: of the training split.
        trees: of each forest, a multiple of 4; min_samples_leaf: rows.
        max_categories: largest table, in rows, of an id feature that gets columns.
        seed: of forests and folds; jobs: processes that grow trees, which do not change the result.

    Returns:
        ``[N, K]`` each, for every table of ``users``.

    Raises:
        InputError: without EconML, or where the number of trees is none it takes.

    Sources: Athey, Tibshirani, Wager 2019, arXiv:1610.01271; Chernozhukov et al. 2018, doi:10.1111/ectj.12097.
    """
    if trees < 4 or trees % 4:
        raise InputError(f"trees={trees}", "a multiple of 4, which EconML grows together", "200 is the default")
    forests = _library()
    features = Features.of(schema, statistics, max_categories)
    x = _columns(features, train)
    one_propensity = all(
        bool((p == p[0]).all())
        for j in range(schema.num_treatments)
        if len(p := train.propensity[train.treatment == j])
    )
    found: list[list[Tensor]] = [[] for _ in users]
    known = torch.tensor([float("nan") if c is None else c for c in schema.known_cost])
    for outcome, means in (("value", statistics.value_mean), ("cost", statistics.cost_mean)):
        if outcome == "cost" and not bool(known.isnan().any()):
            effects = [torch.zeros(len(table), schema.num_treatments - 1) for table in users]
        else:
            forest = forests(trees, min_samples_leaf, one_propensity, seed, jobs)
            weight = None if train.weight is None else train.weight.double().numpy()
            observed = getattr(train, outcome).double().numpy()
            forest.fit(observed, train.treatment.numpy(), X=x, sample_weight=weight)
            effects = [_effects(forest, _columns(features, table)) for table in users]
        for columns, effect in zip(found, effects, strict=True):
            control = torch.full((len(effect), 1), means[0])
            columns.append(torch.cat([control, means[0] + effect], dim=1))
    return [ResponsePrediction(v, torch.where(known.isnan(), c, known)) for v, c in found]


def _library() -> Any:
    """Makes an unfitted forest.

    Raises:
        InputError: if EconML cannot be imported.
    """
    try:
        from econml.dml import CausalForestDML  # pyright: ignore[reportMissingImports]  # an optional extra
        from sklearn.dummy import DummyClassifier
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as e:
        raise InputError(
            f"causal forests without {e.name or 'EconML'}", "EconML", "pip install 'lightning-budget[classical]'"
        ) from e

    def forest(trees: int, min_samples_leaf: int, one_propensity: bool, seed: int, jobs: int) -> Any:
        return CausalForestDML(
            model_y=HistGradientBoostingRegressor(random_state=seed),
            model_t=DummyClassifier(strategy="prior") if one_propensity else "auto",
            discrete_treatment=True,
            n_estimators=trees,
            min_samples_leaf=min_samples_leaf,
            random_state=seed,
            n_jobs=jobs,
            inference=False,
        )

    return forest


def _columns(features: Features, table: RCTTable) -> Any:
    parts = [features.matrix(table.batch(i))[:, 1:] for i in torch.arange(len(table)).split(CHUNK)]
    return torch.cat(parts).double().numpy()


def _effects(forest: Any, x: Any) -> Tensor:
    """``[N, K − 1]`` against control."""
    return torch.from_numpy(forest.const_marginal_effect(x)).float().reshape(len(x), -1)
