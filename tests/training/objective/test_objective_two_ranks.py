"""Two processes have the goal of one with the same global batches, and end together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distributed_runs import finish, start_ranks
from objective_ranks import CASES, RANDOM, run
from objective_runs import EPOCH

Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, list[int], list[str]]:
    """Folder, what both ranks found in every case, and how the run that came to harm ended: codes and outputs."""
    folder = tmp_path_factory.mktemp("two")
    processes = start_ranks(2, "objective/objective_ranks.py", str(folder))
    outputs = finish(processes, timeout=180)
    results = {}
    for name in (*CASES, RANDOM):
        paths = [folder / f"{name}.{rank}.json" for rank in (0, 1)]
        assert all(p.exists() for p in paths), "\n".join(o[-3000:] for o in outputs)
        results[name] = [json.loads(p.read_text()) for p in paths]
    return folder, results, [p.returncode for p in processes], outputs


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one(two: tuple[Path, Results, list[int], list[str]], tmp_path: Path, case: str) -> None:
    one, (first, second) = run(tmp_path, case), two[1][case]
    assert first["rows"] == [n // 2 for n in one["rows"]]
    for mine in (first, second):
        assert mine["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert len(mine["multipliers"]) == len(one["multipliers"]) == 2 * EPOCH
        for a, b in zip(mine["multipliers"], one["multipliers"], strict=True):
            assert a == pytest.approx(b, rel=1e-5)
        for name, rows in one["state"].items():
            for a, b in zip(mine["state"][name], rows, strict=True):
                assert a == pytest.approx(b, rel=1e-4, abs=1e-5), name
    # Loggers are rank 0's; a user on the verge may change sides.
    assert first["numbers"].keys() == one["numbers"].keys()
    for key, x in one["numbers"].items():
        slack = 2 / 128 if key.startswith("changed") else 1e-5
        assert first["numbers"][key] == pytest.approx(x, rel=1e-4, abs=slack), key
    assert second["metrics"] == first["metrics"]
    assert second["metrics"].keys() == one["metrics"].keys()


def test_random_estimators_measure_one_state_on_all_ranks(two: tuple[Path, Results, list[int], list[str]]) -> None:
    first, second = two[1][RANDOM]
    assert first["state"] == second["state"]
    assert first["metrics"] == second["metrics"]


def test_a_budget_that_does_not_bind_is_told_by_one_rank(two: tuple[Path, Results, list[int], list[str]]) -> None:
    told = [line for o in two[3] for line in o.splitlines() if "their multiplier is 0" in line]
    assert len(told) == 1
    assert "their multiplier is 0" in two[3][0]


def test_harm_to_one_rank_ends_both_and_is_said_once(two: tuple[Path, Results, list[int], list[str]]) -> None:
    folder, _, codes, outputs = two
    assert codes == [2, 2]
    assert codes == [2, 2]
    assert not list(folder.glob("went on*"))
    said = [o.partition("harm\n")[2] for o in outputs]
    lines = [line for o in said for line in o.splitlines() if "prediction_loss is nan at step 11" in line]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: rank 1: ")
    assert "Traceback" not in "".join(said)
