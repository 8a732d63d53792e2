"""One cell: its trials, the one that is best on validation, and that one on test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from lightning_budget.benchmark.classical import LEARNERS, fitter, predict_effects
from lightning_budget.benchmark.files import file_of, why_absent
from lightning_budget.benchmark.judge import judge
from lightning_budget.benchmark.search import draw
from lightning_budget.benchmark.store import Store
from lightning_budget.benchmark.suite import Cell, Suite
from lightning_budget.benchmark.trial import Fitter, Predictor, fit_network, predict_network, validation_score
from lightning_budget.cli.build import build
from lightning_budget.cli.composed import Config, compose_config, fingerprint, plain, with_values
from lightning_budget.errors import InputError
from lightning_budget.training.data import TrialData

FITS: dict[str, tuple[Fitter, Predictor]] = {
    "network": (fit_network, predict_network),
    **{name: (fitter(learner), predict_effects) for name, (_, learner) in LEARNERS.items()},
}
"""Ways to train, by ``benchmark.fit`` of a method's config."""

SILENT = (
    "~logger",
    "baseline=false",
    "callbacks.progress=null",
    "callbacks.epoch_lines=null",
    "callbacks.throughput=null",
    "callbacks.learning_rate=null",
    "trainer.enable_progress_bar=false",
)
"""Overrides of a training that nobody watches."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: which.
        state: ``done``, ``skipped`` (nothing to run here), ``busy`` (another process is at it) or ``failed``.
        why: of the last three.
        trained: trials that were trained for it.
        score: validation EOM of the selected trial.
    """

    cell: Cell
    state: str
    why: str = ""
    trained: int = 0
    score: float | None = None


class Data:
    """The data set of the cell before, kept for the next one with the same rows."""

    def __init__(self) -> None:
        self._kept: tuple[str, TrialData] | None = None

    def load(self, config: Config) -> TrialData:
        """Set up; the same object for an equal config."""
        mark = fingerprint(config)
        if self._kept is None or self._kept[0] != mark:
            # The one before goes first: two may be more than there is room for.
            self._kept = None
            datamodule = build(config)
            datamodule.setup()
            self._kept = mark, datamodule
        return self._kept[1]


def base_config(suite: Suite, cell: Cell) -> Config:
    """The training's config of a cell, before anything is drawn.

    Raises:
        InputError: if the method, the data set or an override does not compose.
    """
    data = suite.datasets[cell.dataset]
    overrides = [*data.overrides, f"method={cell.method}", *SILENT, *suite.overrides, f"seed={cell.seed}"]
    if (path := file_of(data, suite.data_root, suite.folder / "data", cell.seed)) is not None:
        overrides.append(f"data.path={path}")
    config = compose_config("train", overrides)
    # Files have no population to draw: another seed is another split of them, and another order of batches.
    varied = {key: cell.seed for key in ("data.split_seed", "data.seed") if key.partition(".")[2] in config.data}
    return with_values(config, varied | {"budgets": list(suite.fractions)})


def run_cell(suite: Suite, cell: Cell, data: Data) -> Outcome:
    """Bring a cell to its end, with as few trainings as that takes.

    Raises:
        InputError: as the training raises it; anything else that goes wrong in it.
    """
    store = Store(suite.folder)
    with store.claim(cell) as ours:
        if not ours:
            return Outcome(cell, "busy", "another process is at it")
        store.tell(cell, None)
        if (why := why_absent(suite.datasets[cell.dataset], suite.data_root)) is None:
            config = base_config(suite, cell)
            about: Mapping[str, Any] = plain(config.benchmark) or {}
            run = _Run(suite, cell, store, config, about, lambda: data.load(config.data))
            if (why := run.why_not()) is None:
                return run.finish()
        store.tell(cell, "skipped", why)
        return Outcome(cell, "skipped", why)


@dataclass(frozen=True)
class _Run:
    suite: Suite
    cell: Cell
    store: Store
    config: Config
    about: Mapping[str, Any]
    load: Callable[[], TrialData]

    def why_not(self) -> str | None:
        """Why the method is not for this data set."""
        needs = self.about.get("needs")
        return unsuited(needs, self.load()) if needs else None

    def finish(self) -> Outcome:
        """Train what is missing, select, and judge on test unless that is done."""
        trials = self._trials()
        trained, results = 0, []
        for number, (drawn, config, mark) in enumerate(trials):
            found = self.store.read(self.store.trial_file(self.cell, number))
            if found is None or found["settings"] != mark:
                found = self._train(number, drawn, config, mark)
                trained += 1
            results.append(found)
        best = selected(results)
        if best is None:
            raise InputError(
                f"no trial of {self.cell} came to its end: {results[0]['failed']}", "one that does", "mend the method"
            )
        if not self._judged(best, [mark for _, _, mark in trials]):
            trained += self._restore(best, *trials[best])
            self._judge(best, results)
        self.store.drop_checkpoints(self.cell, best, len(trials))
        return Outcome(self.cell, "done", trained=trained, score=results[best]["validation"])

    def _trials(self) -> list[tuple[dict[str, Any], Config, str]]:
        own = self.about.get("search") or {}
        space = {**(self.suite.search if self.about.get("shared_search", True) else {}), **own}
        cell, trials = self.cell, []
        for number in range(self.suite.trials):
            drawn = draw(space, cell.dataset, cell.method, cell.seed, number)
            config = with_values(self.config, drawn)
            trials.append((drawn, config, _mark(config)))
        return trials

    def _train(self, number: int, drawn: dict[str, Any], config: Config, mark: str) -> dict[str, Any]:
        """Train and score a trial; one that leaves the finite numbers counts as tried, and cannot be selected."""
        fit, predict = self._way()
        datamodule, folder = self.load(), self.store.trial_folder(self.cell, number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found: dict[str, Any] = {"settings": mark, "drawn": drawn}
        try:
            took = fit(config, datamodule, folder)
        except InputError as e:
            if "finite" not in str(e):
                raise
            found |= {"validation": None, "failed": str(e)}
        else:
            prediction = predict(datamodule, datamodule.val, folder)
            found |= {"validation": validation_score(datamodule, prediction, self.suite.fractions), **asdict(took)}
        self.store.write(self.store.trial_file(self.cell, number), found)
        return found

    def _way(self) -> tuple[Fitter, Predictor]:
        name = self.about.get("fit", "network")
        if name not in FITS:
            raise InputError(f"benchmark.fit={name!r} of {self.cell.method}", ", ".join(FITS), "mend its config")
        return FITS[name]

    def _judged(self, best: int, marks: Sequence[str]) -> bool:
        """Whether test has had its turn with this trial, selected among trials with these settings."""
        found = self.store.read(self.store.cell_file(self.cell))
        return (
            found is not None
            and found["settings"] == list(marks)
            and found["trial"] == best
            and found["resamples"] == self.suite.resamples
            and found["fractions"] == list(self.suite.fractions)
        )

    def _restore(self, best: int, drawn: dict[str, Any], config: Config, mark: str) -> int:
        """Train the selected trial again where its checkpoint is gone; how often."""
        if any(self.store.trial_folder(self.cell, best).glob("best.*")):
            return 0
        self._train(best, drawn, config, mark)
        return 1

    def _judge(self, best: int, results: Sequence[Mapping[str, Any]]) -> None:
        datamodule, store, cell = self.load(), self.store, self.cell
        _, predict = self._way()
        test = datamodule.split("test")
        prediction = predict(datamodule, test, store.trial_folder(cell, best))
        if not store.rows_file(cell.dataset, cell.seed).exists():
            store.write_rows(cell.dataset, cell.seed, test)
        store.write_predictions(cell, prediction)
        chosen = results[best]
        found = {
            **asdict(cell),
            "kind": self.about.get("kind", "two_stage"),
            "settings": [r["settings"] for r in results],
            "trial": best,
            "drawn": chosen["drawn"],
            "validation": chosen["validation"],
            "validations": [r["validation"] for r in results],
            **{key: chosen[key] for key in ("epochs", "parameters", "seconds", "cpu_seconds")},
            "seconds_of_all": sum(r.get("seconds", 0.0) for r in results),
            "train_rows": len(datamodule.split("train")),
            "val_rows": len(datamodule.split("val")),
            "test_rows": len(test),
            **judge(test, datamodule.schema, prediction, self.suite.fractions, self.suite.resamples),
        }
        store.write(store.cell_file(cell), found)


def _mark(config: Config) -> str:
    """Of what a trial depends on; one with settings of its own reads data and seed besides, and no network's keys."""
    about: Mapping[str, Any] = plain(config.benchmark) or {}
    if "settings" not in about:
        return fingerprint(config, ("run_dir", "ckpt_path", "benchmark", "resamples"))
    read = config.copy()
    read.benchmark = {key: about[key] for key in ("fit", "settings")}
    return fingerprint(read, [str(key) for key in read if key not in ("data", "seed", "budgets", "benchmark")])


def unsuited(needs: Mapping[str, Any], datamodule: TrialData) -> str | None:
    """Why a method is not for a data set: ``arms``, ``value_kind``, ``doses`` (arms whose cost rises), ``user_ids``.

    Raises:
        InputError: for another need.
    """
    schema, costs = datamodule.schema, datamodule.statistics.cost_mean
    has = {
        "arms": schema.num_treatments,
        "value_kind": schema.value_kind,
        "doses": all(a < b for a, b in pairwise(costs)),
        "user_ids": any(f.name == "user_id" for f in schema.sparse),
    }
    for need, wanted in needs.items():
        if need not in has:
            raise InputError(f"benchmark.needs.{need}", ", ".join(has), "mend the method's config")
        if has[need] != wanted:
            return f"needs {need}={wanted}, here it is {has[need]}"
    return None


def selected(results: Sequence[Mapping[str, Any]]) -> int | None:
    """The trial with the best validation EOM, the first of equal ones; ``None`` where no trial has one."""
    scored = [(r["validation"], -i) for i, r in enumerate(results) if r["validation"] is not None]
    return -max(scored)[1] if scored else None
