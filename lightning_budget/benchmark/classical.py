"""Classical learners as methods of the table: fitted to the training split, kept in a file, judged as all others."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from lightning_budget.atomic import atomic_path
from lightning_budget.batch import ResponsePrediction
from lightning_budget.benchmark.trial import Fit, Fitter
from lightning_budget.classical import EffectModel, boosted_r_learner, causal_forest
from lightning_budget.cli.composed import Config, plain
from lightning_budget.table import RCTTable
from lightning_budget.training.data import TrialData

LEARNERS: dict[str, tuple[str, Callable[..., EffectModel]]] = {
    "causal_forest": ("econml", causal_forest),
    "boosted_r_learner": ("causalml", boosted_r_learner),
}
"""Library and function by ``benchmark.fit`` of a method's config; ``benchmark.settings`` are the function's."""

FILE = "best.pickle"


def missing_library(fit: str | None) -> str | None:
    """The library that a way to fit needs and that is not installed here."""
    library, _ = LEARNERS.get(fit or "", (None, None))
    return None if library is None or find_spec(library) else library


def fitter(learner: Callable[..., EffectModel]) -> Fitter:
    """Fits by ``benchmark.settings``; epochs and parameters are not counted, and 0.

    Args:
        learner: of :data:`LEARNERS`.
    """

    def fit(config: Config, datamodule: TrialData, folder: Path) -> Fit:
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        settings = plain(config.benchmark)["settings"]
        start, start_cpu = time.perf_counter(), time.process_time()
        # Trees have an OpenMP of their own, which would take every core in each of several processes.
        with threadpool_limits(torch.get_num_threads()):
            model = learner(datamodule.train, datamodule.schema, datamodule.statistics, seed=config.seed, **settings)
        took = Fit(0, time.perf_counter() - start, time.process_time() - start_cpu, 0)
        with atomic_path(folder / FILE) as path, open(path, "wb") as file:
            pickle.dump(model, file, protocol=pickle.HIGHEST_PROTOCOL)
        return took

    return fit


def predict_effects(datamodule: TrialData, table: RCTTable, folder: Path) -> ResponsePrediction:
    """``[N, K]`` each, with the model that :func:`fitter` left in the folder."""
    model: EffectModel = pickle.loads((folder / FILE).read_bytes())
    return model.predict(table)
