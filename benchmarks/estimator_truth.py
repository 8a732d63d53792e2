"""How near the gradient of a batch comes to that of the true goal: what the noise of outcomes leaves of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from estimator_quality import WIDTHS
from estimator_trial import Trial, cosine, predict
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.cross_fitting import cross_fit
from lightning_budget.losses.gains import ArmsFirst

Baseline = Callable[[Trial], ResponsePrediction | None]


def _own(trial: Trial) -> None:
    return None


def _cross_fitted(trial: Trial) -> ResponsePrediction:
    """Fitted to the batch itself, outside each user's fold."""
    return cross_fit(trial.table, trial.schema, trial.statistics).predict(trial.batch)


WEIGHTINGS: dict[str, tuple[dict[str, str], Baseline]] = {
    "ipw": ({"weighting": "ipw"}, _own),
    "ipw, centred": ({"weighting": "ipw", "baseline": "centred"}, _own),
    "hajek": ({"weighting": "hajek"}, _own),
    "poststratified": ({"weighting": "poststratified"}, _own),
    "doubly robust, own predictions": ({"weighting": "doubly_robust"}, _own),
    "doubly robust, cross-fitted on the batch": ({"weighting": "doubly_robust"}, _cross_fitted),
}
ORACLE = "true means of the batch's users"
TREATMENTS = 5
LEVELS = {"the campaign's noise": 1.0, "a tenth of the campaign's noise": 0.1}
"""What is left of the distance of observed outcomes from their true means."""


@dataclass(frozen=True)
class Truth:
    """Mean cosine to the true gradient, by the weights of the linear head, of one weighting at each batch size."""

    weighting: str
    cosines: dict[int, float]


def head_gradient(trial: Trial, form: GoalForm, model: ResponsePrediction | None = None) -> Tensor:
    """``[P, 2K]``, of the goal as training has it; constants of the weighting from the batch alone."""
    head = trial.head.clone().requires_grad_()
    prediction, batch = predict(trial.columns, head), trial.batch
    goal = BudgetRegularizer(_estimator(), form)
    state = goal.measure(prediction.detach(), batch, trial.multipliers, model=model)
    goal(batch, prediction, state, model).backward()
    assert head.grad is not None
    return head.grad


def true_gradient(trial: Trial, form: GoalForm) -> Tensor:
    """The same with each arm's true mean value net of cost as its gain, ``[P, 2K]``."""
    assert trial.table.true_value is not None
    assert trial.table.true_cost is not None
    multipliers, prediction, estimator = trial.multipliers.float(), trial.prediction, _estimator()
    own, truth = (
        ArmsFirst.of(prediction),
        ArmsFirst.of(ResponsePrediction(trial.table.true_value, trial.table.true_cost)),
    )
    state = BudgetRegularizer(estimator, form).measure(prediction, trial.table, trial.multipliers)
    scores = own.scores(multipliers)
    gain = truth.scores(multipliers).sub_(scores, alpha=form.entropy)
    gradient = estimator.estimate(scores, gain, estimator.width * state.spread).gradient
    by_prediction = torch.stack([torch.ones_like(multipliers), -multipliers]) @ gradient.flatten(1)
    by_prediction = by_prediction.view(2 * trial.treatments, len(trial)) / (len(multipliers) * len(trial))
    return trial.columns.T @ by_prediction.T


def _estimator() -> Softmax:
    return Softmax(WIDTHS["temperature"])


def compare(
    sizes: Sequence[int],
    noise: float,
    entropy: float,
    population: int,
    batches: int,
    seeds: Sequence[int],
) -> list[Truth]:
    """Every weighting at every batch size.

    Args:
        sizes: rows of a batch; noise: of the campaign's outcomes; entropy: of the goal.
        population: rows, a multiple of every size, whose true gradient is looked for and which batches are cut from.
        batches: of a size at most so many.
        seeds: of campaigns.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for seed in seeds:
        everyone = Trial.draw(population, TREATMENTS, seed, noise)
        target = torch.zeros_like(everyone.head)
        for part in _parts(everyone, min(sizes)):
            target += true_gradient(part, GoalForm(entropy=entropy)) * len(part)
        for size in sizes:
            for part in list(_parts(everyone, size))[:batches]:
                for name, (switches, baseline) in WEIGHTINGS.items():
                    form = GoalForm(entropy=entropy, **switches)  # type: ignore[arg-type]
                    gradient = head_gradient(part, form, baseline(part))
                    found.setdefault(name, {}).setdefault(size, []).append(cosine(gradient, target))
                exact = true_gradient(part, GoalForm(entropy=entropy))
                found.setdefault(ORACLE, {}).setdefault(size, []).append(cosine(exact, target))
    return [Truth(name, {n: statistics.fmean(x) for n, x in by_size.items()}) for name, by_size in found.items()]


def _parts(trial: Trial, size: int) -> Iterator[Trial]:
    """Whole batches, one after the other."""
    for start in range(0, len(trial) - size + 1, size):
        yield trial.part(start, start + size)
