"""One rank of runs with the objective: ``python objective_ranks.py folder``; see ``test_objective_two_ranks``.

The last run comes to harm on rank 1 alone.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import lightning as L  # noqa: E402
import torch  # noqa: E402
from objective_runs import EPOCH, fit, objective  # noqa: E402

from lightning_budget.estimators import NES  # noqa: E402
from lightning_budget.losses.budget_regularizer import GoalForm  # noqa: E402
from lightning_budget.losses.budgets import FixedBudgets  # noqa: E402
from lightning_budget.training.objective.schedule import Schedule  # noqa: E402
from lightning_budget.training.objective.source import Source  # noqa: E402
from lightning_budget.training.strategy import TorchRecStrategy  # noqa: E402

SCHEDULE = Schedule(1.0, warm_start_epochs=1, width_end=0.5)
IDLE = 50.0
"""A budget that does not bind."""
CASES: dict[str, dict[str, Any]] = {
    "full": {"form": GoalForm(cost_term="mu")},
    "cross-fitted": {"form": GoalForm(baseline="centred"), "outcome_model": "cross_fitted"},
    "every three steps": {"source": Source(every_n_steps=3), "form": GoalForm(weighting="hajek")},
    "batch": {"source": Source("batch"), "form": GoalForm(weighting="poststratified")},
    "running": {
        "source": Source("running", momentum=0.8),
        "form": GoalForm(cost_term="mu"),
        "budgets": FixedBudgets((0.1, 0.4, IDLE)),
    },
}
RANDOM = "random"
"""Draws are each rank's own: not the run of one process, but one state on all ranks."""


class Harm(L.Callback):
    """One value of rank 1's part of a batch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == EPOCH + 3:
            batch.value[3] = float("nan")


def run(folder: Path, name: str) -> dict[str, Any]:
    settings = CASES.get(name, {})
    if name == RANDOM:
        form = GoalForm(cost_term="mu", weighting="hajek")
        settings = {"estimator": NES(pairs=2), "source": Source("batch"), "form": form}
    callback = objective(schedule=SCHEDULE, **settings)
    world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    done = fit(folder, callback, strategy=TorchRecStrategy(process_group_backend="gloo"), devices=world)
    assert callback.state is not None
    steps = done.spy.steps
    return {
        "losses": [steps[s].loss for s in sorted(steps)],
        "numbers": {f"{what} {step}": x for (what, step), x in done.notes.numbers.items()},
        "state": {name: x.tolist() for name, x in callback.state.tensors().items()},
        "multipliers": [s.state["multiplier"].tolist() for s in steps.values() if s.state],
        "metrics": {k: float(v) for k, v in done.trainer.callback_metrics.items() if k.startswith("objective/")},
        "rows": [len(steps[s].batch) for s in sorted(steps)],
    }


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", message="budgets of ")
    rank = os.environ["RANK"]
    for name in (*CASES, RANDOM):
        print(f"rank {rank}: {name}", flush=True)
        (folder / f"{name}.{rank}.json").write_text(json.dumps(run(folder, name)))
    print("harm", flush=True)
    strategy = TorchRecStrategy(process_group_backend="gloo")
    fit(folder, objective(schedule=SCHEDULE), [Harm()], strategy=strategy, devices=int(os.environ["LOCAL_WORLD_SIZE"]))
    (folder / f"went on.{rank}").touch()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
