"""How fast training goes, and where a step's time goes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch._C._autograd import _profiler_enabled
from torch.autograd.profiler import profile, record_function

from lightning_budget.batch import RCTBatch
from lightning_budget.errors import InputError
from lightning_budget.models.embeddings import SparseEncoder
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.step_split import PARTS, RANGE, STEP, read_events, step_shares

WARM_UP_STEPS = 10


class _Marks(NamedTuple):
    """Moments of one step: the end of the step before, the batch at hand, the end; and the batch's rows."""

    before: Any
    start: Any
    end: Any
    rows: int


class _HostClock:
    def mark(self) -> float:
        return time.perf_counter()

    def passed(self, mark: float) -> bool:
        return True

    def milliseconds(self, a: float, b: float) -> float:
        return 1e3 * (b - a)


class _CudaClock:
    """Events on the stream, read once the device has passed them, so that nobody waits."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def milliseconds(self, a: torch.cuda.Event, b: torch.cuda.Event) -> float:
        return a.elapsed_time(b)


class Throughput(L.Callback):
    """Log rows per second over all ranks, and the parts of a step, whenever the trainer logs.

    - ``throughput/rows_per_second``, ``throughput/step_ms``: means over the steps since the last log;
    - ``throughput/data_ms``: between two steps: the batch fetched and moved, and the trainer's loggers and bars. On a
      GPU the time that the device stands still meanwhile;
    - ``throughput/embedding_ms``, ``dense_ms``, ``goal_ms``, ``communication_ms``: the rest, divided as in the last
      step that was profiled; see :func:`~lightning_budget.training.step_split.step_shares`. Backward of each included;
    - ``throughput/<part>_share``: of the step, all five sum to 1.

    Ranks take equal shares of a batch; the parts are rank 0's. The first step of an epoch and the one after a
    validation are left out, as is a profiled step, whose profile on a GPU is the only wait for the device.

    Args:
        every_n_steps: a step to profile every so often; the first is the tenth, or earlier where this is smaller.

    Raises:
        InputError: if ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        if every_n_steps < 1:
            raise InputError(f"callbacks.throughput.every_n_steps={every_n_steps}", "at least 1", "raise it")
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self._pending: deque[_Marks] = deque()
        self._clock: _HostClock | _CudaClock = _HostClock()
        self._before: Any = None
        self._start: Any = None
        self._profile: profile | None = None
        self._sampling = ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Kineto announces every profile on the terminal otherwise.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        self._clock = _CudaClock() if pl_module.device.type == "cuda" else _HostClock()
        self._pending.clear()
        self._before = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: RCTBatch, batch_idx: int
    ) -> None:
        self._start = self._clock.mark()
        due = trainer.global_step % self.every_n_steps == min(WARM_UP_STEPS, self.every_n_steps) - 1
        # One profiler at a time: the user's goes first.
        if due and not _profiler_enabled():
            self._begin_sample(cast("BudgetModule", pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: RCTBatch, batch_idx: int
    ) -> None:
        end = self._clock.mark()
        if self._profile is not None:
            self._end_sample()
            end = self._clock.mark()
        elif self._before is not None:
            self._pending.append(_Marks(self._before, self._start, end, len(batch)))
        self._before = end
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # the trainer's arguments
        if every and trainer.global_step % every == 0:
            self._log(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._profile = None
        self._sampling.close()

    def _begin_sample(self, module: BudgetModule) -> None:
        on_gpu = module.device.type == "cuda"
        self._profile = self._sampling.enter_context(profile(use_device="cuda" if on_gpu else None, use_kineto=True))
        self._sampling.enter_context(record_function(STEP))
        for encoder in module.modules():
            if isinstance(encoder, SparseEncoder):
                self._sampling.callback(_record_forward(encoder, RANGE + "embedding"))
        terms = dict(module.objective_terms)
        self._sampling.callback(module.objective_terms.update, terms)
        module.objective_terms.update({name: _recorded(term, RANGE + "goal") for name, term in terms.items()})

    def _end_sample(self) -> None:
        profiled, self._profile = self._profile, None
        self._sampling.close()
        assert profiled is not None
        self._shares = step_shares(read_events(profiled.kineto_results))

    def _log(self, trainer: L.Trainer) -> None:
        steps: list[_Marks] = []
        while self._pending and self._clock.passed(self._pending[0].end):
            steps.append(self._pending.popleft())
        if not steps:
            return
        step = sum(self._clock.milliseconds(s.before, s.end) for s in steps) / len(steps)
        parts = {"data": sum(self._clock.milliseconds(s.before, s.start) for s in steps) / len(steps)}
        parts |= {part: self._shares[part] * (step - parts["data"]) for part in PARTS if self._shares}
        rows = trainer.world_size * sum(s.rows for s in steps) / len(steps)
        values = {"rows_per_second": 1e3 * rows / step, "step_ms": step}
        values |= {f"{part}_ms": x for part, x in parts.items()} | {f"{p}_share": x / step for p, x in parts.items()}
        self.latest = {f"throughput/{name}": x for name, x in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=trainer.global_step - 1)


def _recorded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with record_function(name):
            return function(*args)

    return call


def _record_forward(module: torch.nn.Module, name: str) -> Callable[[], None]:
    """Record a range around every forward of ``module`` until the result is called."""
    ranges: list[record_function] = []

    def enter(*_: Any) -> None:
        ranges.append(record_function(name).__enter__())

    def leave(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    return lambda: [hook.remove() for hook in hooks].clear()
