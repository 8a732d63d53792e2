"""A tiny benchmark from the command line to the table, in this process; what is finished is not done again."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from lightning_budget.batch import ResponsePrediction
from lightning_budget.benchmark import cell as cells_room
from lightning_budget.benchmark.cell import FITS, Outcome, selected
from lightning_budget.benchmark.pool import run_here, run_processes
from lightning_budget.benchmark.request import suite_of
from lightning_budget.benchmark.store import Store
from lightning_budget.benchmark.suite import Cell, DataSet, Suite
from lightning_budget.benchmark.trial import Fit
from lightning_budget.cli.composed import compose_config, plain
from lightning_budget.errors import InputError
from scripts.benchmark import main, methods_there_are

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = ["data.train_rows=900", "data.val_rows=600", "data.test_rows=500", "data.users=100", "data.batch_size=300"]
OVERRIDES = [*SIZES, "trainer.max_epochs=2", "objective.warm_start_epochs=1"]
TINY = [
    "preset=quick",
    "methods=[two_stage,default]",
    "datasets=[campaign]",
    "seeds=[3]",
    "resamples=20",
    f"overrides={OVERRIDES}".replace(" ", ""),
    "workers=0",
]


def benchmark(folder: Path, *more: str) -> int:
    """Run the command in this process; its exit code."""
    before = sys.argv
    sys.argv = ["benchmark.py", *TINY, f"folder={folder}", *more]
    try:
        main()
    except SystemExit as e:
        return int(e.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for reading."""
    folder = tmp_path_factory.mktemp("benchmark") / "run"
    assert benchmark(folder) == 0
    return folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, for changing."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of the trials that train while the test runs."""
    seen: list[Path] = []
    fit, predict = FITS["network"]

    def counted(config: Any, datamodule: Any, folder: Path) -> Any:
        seen.append(folder)
        return fit(config, datamodule, folder)

    monkeypatch.setitem(FITS, "network", (counted, predict))
    return seen


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """As ``trained``, with trainings that take no time and predict noise."""
    seen: list[Path] = []

    def fit(config: Any, datamodule: Any, folder: Path) -> Fit:
        seen.append(folder)
        (folder / "best.ckpt").touch()
        return Fit(1, 0.0, 0.0, 0)

    def predict(datamodule: Any, table: Any, folder: Path) -> ResponsePrediction:
        return ResponsePrediction(*(torch.rand(table.true_value.shape) for _ in range(2)))

    monkeypatch.setitem(FITS, "network", (fit, predict))
    return seen


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest."""
    monkeypatch.setattr("lightning_budget.benchmark.report.save_figure", lambda figure, stem: [])


def suite(folder: Path, **changes: Any) -> Suite:
    config = plain(compose_config("benchmark", [*TINY, f"folder={folder}"]))
    return replace(suite_of(config, methods_there_are()), **changes)


def numbers(folder: Path) -> dict[str, Any]:
    """Every JSON there, by its path, but for times."""
    read = {str(p.relative_to(folder)): json.loads(p.read_text()) for p in folder.rglob("*.json")}
    return {k: {n: x for n, x in v.items() if "seconds" not in n} for k, v in read.items() if "done" not in k}


def test_everything_is_there_and_trials_are_equal_in_number(whole: Path) -> None:
    for method in ("two_stage", "default"):
        found = json.loads((whole / "cells" / "campaign" / method / "3.json").read_text())
        trials = [json.loads((whole / "trials/campaign" / method / f"3/{t}.json").read_text()) for t in range(2)]
        assert found["settings"] == [t["settings"] for t in trials]
        assert len(set(found["settings"])) == 2
        assert found["validations"] == [t["validation"] for t in trials]
        assert found["validation"] == max(found["validations"])
        assert found["drawn"] == trials[found["trial"]]["drawn"]
        assert trials[0]["drawn"] == {}
        assert trials[1]["drawn"]
        assert not list((whole / "trials" / "campaign" / method).glob(f"3/{1 - found['trial']}/*"))
    table = pyarrow.parquet.read_table(whole / "results.parquet").to_pylist()
    assert len(table) == 2 * 5
    assert all(row["state"] == "done" and row["true_value"] is not None and row["regret"] >= 0 for row in table)
    text = (whole / "benchmark.md").read_text()
    assert "| **two_stage** | two_stage | 1 of 1 |" in text
    assert "900 training rows" in text
    assert (whole / "benchmark.png").stat().st_size > 1000


def test_stored_predictions_give_the_same_figures_again(whole: Path) -> None:
    from lightning_budget.metrics.functional import policy_curve

    store, cell = Store(whole), Cell("campaign", "default", 3)
    rows, prediction, found = store.rows("campaign", 3), store.predictions(cell), store.read(store.cell_file(cell))
    assert found is not None
    assert prediction.value.dtype == torch.float32
    curve = policy_curve(prediction.value, prediction.cost, rows.true_value, rows.true_cost)  # type: ignore[arg-type]
    again = curve.at_budget(found["budgets"]).value
    assert again.tolist() == pytest.approx(found["policies"]["method"]["true"], rel=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_a_second_run_trains_nothing_and_a_lost_trial_trains_alone(
    finished: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before, asked = numbers(finished), suite(finished)
    lost = finished / "trials" / "campaign" / "default" / "3" / "1.json"
    lost.unlink()
    assert [o.trained for o in run_here(asked, list(asked.cells()))] == [0, 1]
    assert trained == [lost.with_suffix("")]
    assert numbers(finished) == before
    (finished / "benchmark.md").unlink()
    assert benchmark(finished, "report_only=true", "trials=9") == 0
    assert (finished / "benchmark.md").is_file()
    assert len(trained) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(("holds", "falls short: "))


def test_another_setting_trains_what_it_changes(finished: Path, stubbed: list[Path]) -> None:
    asked = suite(finished, search={}, methods=("two_stage",))
    (outcome,) = run_here(asked, list(asked.cells()))
    assert (outcome.state, outcome.trained, len(stubbed)) == ("done", 1, 1), "trial 0 draws nothing"


def test_selection_and_trials_never_look_at_test(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = cells_room.build

    def poisoned(config: Any) -> Any:
        datamodule = build(config)
        load = datamodule.load

        def with_poison() -> Any:
            tables, schema = load()
            test = tables["test"]
            nan = {n: torch.full_like(getattr(test, n), torch.nan) for n in ("dense", "value", "cost", "propensity")}
            nan |= {n: torch.full_like(getattr(test, n), torch.nan) for n in ("true_value", "true_cost")}
            return {**tables, "test": replace(test, **nan)}, schema

        datamodule.load = with_poison
        return datamodule

    monkeypatch.setattr(cells_room, "build", poisoned)
    asked = suite(tmp_path, methods=("default",), seeds=(3,))
    # Another process of the same data would find the module kept.
    monkeypatch.setattr("lightning_budget.benchmark.pool._data", cells_room.Data())
    (outcome,) = run_here(asked, list(asked.cells()))
    assert outcome.state == "failed", "test is judged in the end, and is poison"
    clean, poison = (numbers(folder / "trials/campaign/default") for folder in (whole, tmp_path))
    assert clean == poison
    assert Store(tmp_path).note(outcome.cell) is not None


@pytest.mark.usefixtures("undrawn")
def test_a_failed_cell_is_told_and_stops_no_other(
    tmp_path: Path, stubbed: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, predict = FITS["network"]

    def failing(config: Any, datamodule: Any, folder: Path) -> Any:
        if config.objective.enabled:
            raise RuntimeError("no such luck")
        return fit(config, datamodule, folder)

    monkeypatch.setitem(FITS, "network", (failing, predict))
    assert benchmark(tmp_path, "trials=1", "methods=[default,two_stage]") == 1
    told = capsys.readouterr()
    assert "1 cells failed" in told.err
    assert "no such luck" in (tmp_path / "failed" / "campaign" / "default" / "3.txt").read_text()
    assert "failed: RuntimeError: no such luck" in (tmp_path / "benchmark.md").read_text()
    rows = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert [r["state"] for r in rows] == ["failed", *["done"] * 5]
    assert rows[0]["true_value"] is None
    assert told.out.strip().splitlines()[-1] == "undecided: campaign: no cell of default"


def test_a_trial_that_diverges_counts_and_cannot_be_selected(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(config: Any, datamodule: Any, folder: Path) -> Any:
        raise InputError("loss is nan at step 3", "finite losses", "lower the rate")

    monkeypatch.setitem(FITS, "network", (diverging, FITS["network"][1]))
    cell = Cell("campaign", "two_stage", 3)
    best = json.loads((finished / "cells/campaign/two_stage/3.json").read_text())["trial"]
    other = Store(finished).trial_file(cell, 1 - best)
    other.unlink()
    (outcome,) = run_here(suite(finished), [cell])
    assert outcome.state == "done"
    assert json.loads(other.read_text())["validation"] is None
    assert selected([{"validation": None}, {"validation": 1.0}, {"validation": 1.0}]) == 1
    assert selected([{"validation": None}]) is None


def test_busy_absent_and_unsuited_cells_are_left_alone(finished: Path, trained: list[Path]) -> None:
    asked = suite(finished, methods=("two_stage", "drp"))
    cell = Cell("campaign", "two_stage", 3)
    with Store(finished).claim(cell) as ours:
        assert ours
        busy, unsuited = run_here(asked, list(asked.cells()))
    assert busy.state == "busy"
    assert (unsuited.state, unsuited.why) == ("skipped", "needs arms=2, here it is 5")
    absent = replace(asked, datasets={"criteo": DataSet("criteo", ("data=criteo",), file="criteo.parquet")})
    (outcome,) = run_here(replace(absent, methods=("two_stage",), data_root=finished), [Cell("criteo", "two_stage", 0)])
    assert (outcome.state, outcome.why) == ("skipped", f"no criteo.parquet in {finished}")
    assert trained == []


class Pool:
    """Stands in for processes; ``deadly`` cells kill theirs, and the pool with it."""

    def __init__(self, deadly: set[str]) -> None:
        self.deadly = deadly

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Callable[..., Outcome], asked: Suite, cell: Cell) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        if cell.method in self.deadly:
            future.set_exception(BrokenProcessPool("killed"))
        else:
            future.set_result(Outcome(cell, "done"))
        return future


def test_a_killed_process_costs_one_cell(tmp_path: Path) -> None:
    asked = Suite(tmp_path, tmp_path, {"d": DataSet("d", ())}, ("a", "kills", "b", "c"), (0,), 1)
    pools = []

    def pool(workers: int) -> Any:
        pools.append(Pool({"kills"}))
        return pools[-1]

    found = {o.cell.method: o.state for o in run_processes(asked, list(asked.cells()), 1, pool=pool)}
    assert found == {"a": "done", "b": "done", "c": "done", "kills": "failed"}
    assert len(pools) == 3, "it is begun twice"


@pytest.mark.parametrize(
    ("key", "bad"),
    [("methods", ["deafult"]), ("datasets", ["campain"]), ("preset", "fast"), ("seeds", [0, 0]), ("trials", 0)],
)
def test_names_and_numbers_are_checked(key: str, bad: Any, tmp_path: Path) -> None:
    config = plain(compose_config("benchmark", [f"folder={tmp_path}"])) if not _CONFIG else dict(_CONFIG)
    _CONFIG.update(config)
    with pytest.raises(InputError, match=key):
        suite_of({**config, key: bad}, methods_there_are())


def test_small_files_have_seeds_of_their_own_unless_seeds_are_named(tmp_path: Path) -> None:
    config = plain(compose_config("benchmark", [f"folder={tmp_path}", "datasets=[campaign,karlan_list]"]))
    methods = methods_there_are()
    full = suite_of(config, methods)
    assert full.seeds_of("campaign") == full.seeds == tuple(range(500, 505))
    assert full.seeds_of("karlan_list") == tuple(range(500, 520))
    asked = {(c.dataset, c.seed) for c in full.cells()}
    assert len(asked) == 25
    for other in ({"preset": "quick"}, {"seeds": [3]}):
        named = suite_of({**config, **other}, methods)
        assert named.seeds_of("karlan_list") == named.seeds_of("campaign") == named.seeds
    for bad in ([7, 7], 20, [], ["one"]):
        config["catalogue"]["karlan_list"]["seeds"] = bad
        with pytest.raises(InputError, match=r"catalogue\.karlan_list\.seeds"):
            suite_of(config, methods)


_CONFIG: dict[str, Any] = {}
