"""What the marketing goal adds to a training step of the default model, loops with and without it taking turns.

One Lightning loop serves all turns: the batches that it asks for come from :class:`Turns`, which puts the term of
another objective into the module's loss before a turn. So steps with and without a goal are of one model at one state.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import lightning as L
import torch
from estimator_trial import FRACTIONS
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from own_process import ROOT

from datamodules import CampaignDataModule
from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.objective.build import objective_builder
from lightning_budget.training.plan import ShardingConfig
from lightning_budget.training.strategy import TorchRecStrategy

BATCH = 8_192
DISTINCT = 16
"""Batches that are cut; then they repeat."""
WARM = 40
"""Steps of prediction loss alone before the goal is measured, after which users differ."""
NEVER = 1 << 40
PLAIN = "without the goal"
SWITCHES: dict[str, Any] = {"form": "primal", "cost_term": "mu"}
PRIMAL = {**SWITCHES, "warm_start_epochs": 0}
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "softmax, μ": ({"name": "softmax"}, PRIMAL),
    "nes, 16 pairs, μ": ({"name": "nes", "pairs": 16}, PRIMAL),
    "nes, 16 pairs, μ, entropy 0": ({"name": "nes", "pairs": 16}, {**PRIMAL, "entropy": 0.0}),
}
"""Estimator and switches; what is not named is as by default: doubly robust, entropy 1."""


@dataclass
class Cost:
    """Seconds of processor time per step, a number for each round, by the loop's name.

    Attributes:
        steps: whole training steps; alone: a goal's value and its gradient by the predictions, nothing else.
        refresh: seconds of measuring the goal on all training rows, their prediction included.
        kept: bytes of tensors that an objective holds between refreshes; rows: of the training split.
    """

    steps: dict[str, list[float]] = field(default_factory=dict)
    alone: dict[str, list[float]] = field(default_factory=dict)
    refresh: dict[str, float] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    def add(self, other: Cost) -> None:
        """Rounds of another process after these."""
        for mine, theirs in ((self.steps, other.steps), (self.alone, other.alone)):
            for name, seconds in theirs.items():
                mine.setdefault(name, []).extend(seconds)
        self.refresh, self.kept, self.rows = other.refresh, other.kept, other.rows


class Turns(L.Callback):
    """Serves the loop, and decides for every turn which goal joins the loss.

    Args:
        rounds: turns of each loop; untimed, timed: steps of a turn.
    """

    def __init__(self, rounds: int, untimed: int, timed: int) -> None:
        self.rounds, self.untimed, self.timed = rounds, untimed, timed
        self.objectives: dict[str, BudgetObjective] = {}
        self.cost = Cost()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trainer, self.module = trainer, cast(BudgetModule, pl_module)
        table = trainer.datamodule.train  # type: ignore[attr-defined]  # Lightning sets it when a loop starts
        self.cost.rows = len(table)
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
        self.batches = [table.batch(i) for i in order.split(BATCH)[:DISTINCT]]

    def __len__(self) -> int:
        # Lightning fetches one batch ahead of a loader that does not know its length, which would shift the times.
        return NEVER

    def __iter__(self) -> Iterator[RCTBatch]:
        served = 0

        def batch() -> RCTBatch:
            nonlocal served
            served += 1
            return self.batches[served % len(self.batches)]

        for _ in range(WARM):
            yield batch()
        self._measure_goals()
        names = [PLAIN, *self.objectives]
        for r in range(self.rounds):
            for name in random.Random(r).sample(names, len(names)):
                self.module.objective_terms.clear()
                if name != PLAIN:
                    self.module.objective_terms["goal"] = self.objectives[name].goal
                start = 0.0
                for step in range(self.untimed + self.timed):
                    if step == self.untimed:
                        start = time.process_time()
                    yield batch()
                self.cost.steps.setdefault(name, []).append((time.process_time() - start) / self.timed)
                if name != PLAIN:
                    self.cost.alone.setdefault(name, []).append(self._alone(self.objectives[name], batch()))
        self.module.objective_terms.clear()

    def _measure_goals(self) -> None:
        for name, (estimator, switches) in OBJECTIVES.items():
            objective = objective_builder(estimator, switches, FRACTIONS)()
            start = time.process_time()
            for begin in (
                lambda o: o.setup(self.trainer, self.module, "fit"),
                lambda o: o.on_fit_start(self.trainer, self.module),
                lambda o: o.on_train_start(self.trainer, self.module),
                lambda o: o.on_train_epoch_start(self.trainer, self.module),
            ):
                begin(objective)
            self.cost.refresh[name] = time.process_time() - start
            self.cost.kept[name] = tensor_bytes({k: v for k, v in vars(objective).items() if k != "_module"})
            self.objectives[name] = objective

    def _alone(self, objective: BudgetObjective, batch: RCTBatch) -> float:
        """Seconds of the goal and its gradient by given predictions."""
        with torch.no_grad():
            found = self.module(batch)
        state = objective.state
        assert state is not None

        def once() -> None:
            leaves = [x.detach().requires_grad_() for x in (found.value, found.cost)]
            objective.regularizer(batch, ResponsePrediction(*leaves), state).backward()

        with torch.enable_grad():
            once()
            start = time.process_time()
            for _ in range(self.timed):
                once()
        return (time.process_time() - start) / self.timed


class Data(CampaignDataModule):
    """The campaign, whose training batches are served in turns."""

    def __init__(self, turns: Turns, **campaign: Any) -> None:
        super().__init__(BATCH, **campaign)
        self.turns = turns

    def train_dataloader(self) -> Any:
        return self.turns


def tensor_bytes(x: Any) -> int:
    """Of all tensors in an object, its containers and what they hold."""
    seen: set[int] = set()

    def size(x: Any) -> int:
        if id(x) in seen:
            return 0
        seen.add(id(x))
        if isinstance(x, torch.Tensor):
            return x.numel() * x.element_size()
        if isinstance(x, dict):
            return sum(map(size, x.values()))
        if isinstance(x, (list, tuple, set)):
            return sum(map(size, x))
        return size(vars(x)) if hasattr(x, "__dict__") and not isinstance(x, type) else 0

    return size(x)


def default_model() -> tuple[dict[str, Any], dict[str, Any]]:
    """The model of ``configs/model/tarnet.yaml``, and its optimizer."""
    model: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "model" / "tarnet.yaml"))
    return {k: v for k, v in model.items() if k != "optimizer"}, model["optimizer"]


def take_turns(rounds: int, untimed: int, timed: int) -> Cost:
    """Body of a process: all loops in turns, on one thread."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    turns = Turns(rounds, untimed, timed)
    # User ids, and with them all tables, as by default; fewer rows, as only batches of them matter.
    data = Data(turns, train_rows=BATCH * DISTINCT, val_rows=BATCH, test_rows=BATCH)
    data.setup()
    model, optimizer = default_model()
    module = BudgetModule(data.schema.to_dict(), data.statistics.to_dict(), model, **optimizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            strategy=TorchRecStrategy(sharding=ShardingConfig()),
            max_epochs=1,
            logger=CSVLogger(folder),
            # Steps that are logged do more with a goal: they also measure its angle to the prediction loss.
            log_every_n_steps=0,
            limit_val_batches=0,
            callbacks=[turns],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)
    return turns.cost
