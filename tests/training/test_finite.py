"""Training never goes on from what is not a number, and what was saved before stays good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from training_runs import small_data, small_module, small_trainer

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer
from lightning_budget.losses.surrogate import with_gradient
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.finite import FiniteGuard, refuse_broken_weights
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.source import Source

AT, EPOCH = 11, 8
NAN, INF = float("nan"), float("inf")
Harm = Callable[[Any, Any], None]


class Harms(L.Callback):
    """Does harm before step ``AT``, and saves after every step but the one before it."""

    def __init__(self, harm: Harm, path: Path) -> None:
        self.harm, self.path = harm, path

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == AT:
            self.harm(pl_module, batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        trainer.save_checkpoint(self.path)


def value_of_a_row(module: Any, batch: RCTBatch) -> None:
    batch.value[3] = NAN


def cost_of_a_row(module: Any, batch: RCTBatch) -> None:
    batch.cost[3] = INF


def exploded_weights(module: Any, batch: RCTBatch) -> None:
    with torch.no_grad():
        module.net.trunk[0].weight.mul_(1e30)
        module.net.value_heads.hidden.weight.mul_(1e30)


def goal_alone(module: Any, batch: RCTBatch) -> None:
    goal = module.objective_terms["goal"]
    module.objective_terms["goal"] = lambda *args: goal(*args) * NAN


def gradient_alone(module: Any, batch: RCTBatch) -> None:
    def term(batch: RCTBatch, p: ResponsePrediction) -> torch.Tensor:
        huge = torch.full_like(p.value, INF)
        return with_gradient(p.value, p.cost, p.value.new_tensor(1.0), huge, huge)

    module.objective_terms["overflow"] = term


def stopped(folder: Path, harm: Harm, source: str = "full", strategy: str = "torchrec") -> str:
    """The message of a run that comes to harm, of whose last checkpoint everything is finite."""
    data = small_data()
    schedule = Schedule(2.0, warm_start_epochs=1)
    objective = BudgetObjective(BudgetRegularizer(Softmax(1.0)), None, schedule, Source(source))  # type: ignore[arg-type]
    module, path = small_module(data), folder / "last.ckpt"
    trainer = small_trainer(folder, [objective, Harms(harm, path)], limit_val_batches=0, strategy=strategy)
    with pytest.raises(InputError) as caught:
        trainer.fit(module, data)
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == AT
    named = {**saved["state_dict"], **saved.get("torchrec_fused_optimizer", {})}
    assert all(bool(x.isfinite().all()) for name, x in named.items() if not name.endswith("known_cost"))
    resumed = small_trainer(folder, max_steps=AT + 2, limit_val_batches=0, strategy=strategy)
    resumed.fit(small_module(data), data, ckpt_path=str(path))
    assert resumed.global_step == AT + 2
    message = str(caught.value)
    assert "\n" not in message
    assert "; allowed: " in message
    assert "; fix: " in message
    return message


@pytest.mark.parametrize(
    ("harm", "source", "messages"),
    [
        (value_of_a_row, "full", ["prediction_loss is nan at step 11"]),
        (cost_of_a_row, "full", ["prediction_loss is inf at step 11"]),
        (value_of_a_row, "batch", ["the goal cannot be measured at step 11: value has entries that are not finite"]),
        (exploded_weights, "full", ["prediction_loss is ", " at step 11"]),
        (exploded_weights, "running", ["the goal cannot be measured at step 11: value[", "] is "]),
        (goal_alone, "full", ["goal is nan at step 11"]),
        (gradient_alone, "full", [".weight is not finite after 12 steps"]),
    ],
)
def test_training_stops_and_says_which_term_and_step(
    tmp_path: Path, harm: Harm, source: str, messages: list[str]
) -> None:
    found = stopped(tmp_path, harm, source)
    assert all(m in found for m in messages), found


def test_under_another_strategy(tmp_path: Path) -> None:
    assert "goal is nan at step 11" in stopped(tmp_path, goal_alone, strategy="auto")


def test_a_refresh_of_predictions_that_are_not_finite(tmp_path: Path) -> None:
    data = small_data()
    schedule = Schedule(2.0, warm_start_epochs=1)
    for name, bad, message in (("value", NAN, "value has entries"), ("propensity", 1.5, "propensities from ")):
        objective = BudgetObjective(BudgetRegularizer(Softmax(1.0)), schedule=schedule)

        class Spoil(L.Callback):
            def on_train_epoch_end(self, *args: Any, name: str = name, bad: float = bad) -> None:
                getattr(data.train, name)[5] = bad

        with pytest.raises(InputError, match=f"the goal cannot be measured at step {EPOCH}: {message}"):
            small_trainer(tmp_path, [Spoil(), objective], limit_val_batches=0).fit(small_module(data), data)
        getattr(data.train, name)[5] = 0.5


def test_every_term_is_looked_at() -> None:
    guard, fine = FiniteGuard(), torch.tensor(1.0)
    guard.check({"prediction_loss": fine, "goal": -fine}, 3)
    for bad in (NAN, INF, -INF):
        with pytest.raises(InputError, match=f"goal is {bad} at step 3; training stops and the last checkpoint stays"):
            guard.check({"prediction_loss": fine, "goal": torch.tensor(bad)}, 3)
    guard.flush()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_every_weight_is_looked_at(bad: float) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 300), nn.Linear(0, 1, bias=False))
    module.low = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    refuse_broken_weights(module, 5)
    with torch.no_grad():
        module[1].weight[150, 1] = bad
    with pytest.raises(InputError, match=r"1\.weight is not finite after 5 steps"):
        refuse_broken_weights(module, 5)


@pytest.mark.gpu
def test_on_a_gpu_before_a_checkpoint_at_the_latest() -> None:
    guard, device = FiniteGuard(), torch.device("cuda")
    guard.check({"goal": torch.tensor(NAN, device=device)}, 3)
    with pytest.raises(InputError, match="goal is nan at step 3"):
        guard.flush()
    guard.flush()
    guard.check({"goal": torch.tensor(NAN, device=device)}, 4)
    with pytest.raises(InputError, match="goal is nan at step 4"):
        guard.check({"goal": torch.tensor(1.0, device=device)}, 5)
