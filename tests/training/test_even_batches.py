"""Ranks with uneven loaders make equal steps, and no row gets lost or counted twice where that matters."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from distributed_runs import finish, start_ranks

Ranks = list[dict[str, Any]]
"""Result of a job on every rank."""
Results = list[Ranks]


def run_ranks(world_size: int, jobs: list[dict[str, Any]], folder: Path) -> Results:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    processes = start_ranks(world_size, "uneven_ranks.py", str(folder / "jobs.json"))
    outputs = finish(processes, timeout=200)
    assert [p.returncode for p in processes] == [0] * world_size, "\n".join(o[-3000:] for o in outputs)
    by_rank = [json.loads((folder / f"results.{rank}.json").read_text()) for rank in range(world_size)]
    return [list(ranks) for ranks in zip(*by_rank, strict=True)]


def job(sizes: list[list[int]], training: bool, kinds: str = "sized", **more: Any) -> dict[str, Any]:
    return {"sizes": sizes, "training": training, "kinds": [kinds] * len(sizes), **more}


def random_jobs(world_size: int) -> list[dict[str, Any]]:
    """Any number of batches of any sizes on every rank; ranks without any, and empty batches, among them."""
    draw = random.Random(world_size)
    jobs = []
    for i in range(48 if world_size == 2 else 24):
        sizes = [[draw.choice([1, 2, 3, 8, 8, 8]) for _ in range(draw.randint(0, 5))] for _ in range(world_size)]
        if i % 3 == 0:
            sizes[draw.randrange(world_size)] = []
        if i % 4 == 1:
            batches = draw.choice(sizes)
            batches.insert(draw.randint(0, len(batches)), 0)
        jobs.append(job(sizes, bool(i // 2 % 2), draw.choice(["sized", "listed"])))
    return jobs


CUT = [[8, 5, 8, 8], [8, 8]]
JOBS: dict[str, dict[str, Any]] = {
    "one length unknown": {"sizes": [[2, 2], [2]], "training": False, "kinds": ["sized", "listed"]},
    "cut": job(CUT, True),
    "cut, lengths unknown": job(CUT, True, "listed"),
    "even": job([[8, 8], [8, 8]], True),
    "filled": job(CUT, False),
    "fails in training": job([[4, 4, 4], [4, -1, 4]], True, "listed"),
    "fails in evaluation": job([[4, 4, 4], [4, -1, 4]], False, "sized"),
    "fails first": job([[-1], []], False),
    "fails on both": job([[-1, 4], [-1, 4]], True),
    "after a failure": job([[4, 4], [4, 4]], True, "listed"),
    "pass inside": job([[8, 8, 7], [8, 4]], True, "listed", inner=job([[3], [3, 2, 1]], False, "listed")),
    "left early": job([[8, 8, 8, 8], [8, 8, 1]], False, "listed", leave_after=1),
    "after one left early": job([[5, 2], [5]], False),
    "repeated": job([[3, 2], [4]], False, "columns"),
    "lent": job([[], [4]], False, "columns"),
    "not cut": job([[3, 2], [4]], True, "columns"),
    "wrapping": {"do": "wrapping"},
    "resumed": {"do": "resumed", "batch_size": 128, "leave_after": 3},
}
LIGHTNING = {
    "do": "lightning",
    "train": [[128, 128, 100, 64], [128, 96, 128]],
    "val": [[200, 100, 12], [200]],
    "test": [[], [300, 212]],
}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All jobs, one after another: importing costs more than running."""
    folder = tmp_path_factory.mktemp("two")
    return run_ranks(2, [*random_jobs(2), *JOBS.values(), {**LIGHTNING, "folder": str(folder)}], folder)


@pytest.fixture(scope="module")
def two(on_two_ranks: Results) -> dict[str, Ranks]:
    """Of the jobs with a name."""
    return dict(zip([*JOBS, "lightning"], on_two_ranks[len(random_jobs(2)) :], strict=True))


@pytest.fixture(scope="module")
def at_random(on_two_ranks: Results, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Results]:
    """Of :func:`random_jobs`, by the number of ranks."""
    return {2: on_two_ranks[: len(random_jobs(2))], 3: run_ranks(3, random_jobs(3), tmp_path_factory.mktemp("three"))}


def rows_of(sizes: list[list[int]]) -> list[list[list[int]]]:
    """Row numbers of every batch of every rank, as the loaders hand them out."""
    start, ranks = 0, []
    for batches in sizes:
        ranks.append([])
        for n in batches:
            ranks[-1].append(list(range(start, start + n)))
            start += n
    return ranks


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_loaders(world_size: int, at_random: dict[int, Results]) -> None:
    jobs = random_jobs(world_size)
    for j, ranks in zip(jobs, at_random[world_size], strict=True):
        sizes, steps = j["sizes"], [r["steps"] for r in ranks]
        assert all(r["error"] is None and r["evened"] for r in ranks)
        assert len({tuple(len(step) for step in rank) for rank in steps}) == 1, j
        if j["training"]:
            count = 0
            while all(len(rank) > count for rank in sizes) and min(rank[count] for rank in sizes) > 0:
                count += 1
            smallest = [min(rank[i] for rank in sizes) for i in range(count)]
            assert steps == [[b[:n] for b, n in zip(rank, smallest, strict=False)] for rank in rows_of(sizes)], j
        else:
            # Every rank sees its own batches, in order and undivided, and nobody else's.
            own = [[[r for r in step if r >= 0] for step in rank] for rank in steps]
            assert [[b for b in rank if b] for rank in own] == [[b for b in rank if b] for rank in rows_of(sizes)], j
            assert len(steps[0]) == max(sum(n > 0 for n in rank) for rank in sizes)
            real = [[n for n in rank if n > 0] for rank in sizes]
            assert [len(s) for s in steps[0]] == [
                max(rank[i] for rank in real if i < len(rank)) for i in range(len(steps[0]))
            ]
        known = (min if j["training"] else max)(len(rank) for rank in sizes)
        assert [r["length"] for r in ranks] == [known if j["kinds"][0] == "sized" else None] * world_size


def test_a_length_known_to_one_rank_only_is_unknown(two: dict[str, Ranks]) -> None:
    ranks = two["one length unknown"]
    assert [r["length"] for r in ranks] == [None, None]
    assert [r["steps"] for r in ranks] == [[[0, 1], [2, 3]], [[4, 5], [-1, -1]]]


def test_what_training_leaves_out_is_told_where_it_is_left(two: dict[str, Ranks]) -> None:
    rest = "in pass 1 over its training data, because other ranks had fewer"
    assert [r["warnings"] for r in two["cut"]] == [
        [f"rank 0 left out 2 batches, and cut 0 rows off others, {rest}"],
        [f"rank 1 left out 0 batches, and cut 3 rows off others, {rest}"],
    ]
    assert [r["warnings"] for r in two["cut, lengths unknown"]] == [
        [f"rank 0 left out at least 1 batches, and cut 0 rows off others, {rest}"],
        [f"rank 1 left out 0 batches, and cut 3 rows off others, {rest}"],
    ]
    assert [r["warnings"] for name in ("even", "filled") for r in two[name]] == [[]] * 4


@pytest.mark.parametrize("stage", ["training", "evaluation"])
def test_a_failing_loader_fails_on_every_rank(stage: str, two: dict[str, Ranks]) -> None:
    ranks = two[f"fails in {stage}"]
    assert [r["error"] for r in ranks] == ["the data loader of rank 1 failed: OSError: row 16 cannot be read"] * 2
    assert [r["cause"] for r in ranks] == ["None", "OSError('row 16 cannot be read')"]
    assert [len(r["steps"]) for r in ranks] == [1, 1]


def test_all_who_fail_are_named_and_the_group_stays_good(two: dict[str, Ranks]) -> None:
    first = "the data loader of rank 0 failed: OSError: row 0 cannot be read"
    assert [r["error"] for r in two["fails first"]] == [first] * 2
    assert [r["error"] for r in two["fails on both"]] == [
        f"{first}; the data loader of rank 1 failed: OSError: row 4 cannot be read"
    ] * 2
    assert [(r["error"], len(r["steps"])) for r in two["after a failure"]] == [(None, 2)] * 2


def test_a_pass_inside_a_pass_and_one_left_early(two: dict[str, Ranks]) -> None:
    """What is agreed on ahead must not be taken for an answer to another loader's question."""
    assert [[len(s) for s in r["steps"]] for r in two["pass inside"]] == [[8, 4]] * 2
    assert [r["inner"]["steps"] for r in two["pass inside"]] == [
        [[0, 1, 2], [-1, -1], [-1]],
        [[3, 4, 5], [6, 7], [8]],
    ]
    assert [len(r["steps"]) for r in two["left early"]] == [1, 1]
    assert [[len(s) for s in r["steps"]] for r in two["after one left early"]] == [[5, 2]] * 2


def test_batches_of_another_class(two: dict[str, Ranks]) -> None:
    assert [r["steps"] for r in two["repeated"]] == [[[0, 1, 2], [3, 4]], [[5, 6, 7, 8], [5, 6, 7, 8]]]
    assert two["repeated"][0]["warnings"] == []
    assert "rank 1 has no more batches and repeats its last one" in two["repeated"][1]["warnings"][0]
    assert [r["steps"] for r in two["lent"]] == [[[0, 1, 2, 3]]] * 2
    assert "rank 0 has no more batches" in two["lent"][0]["warnings"][0]
    # Sizes cannot be told, so they stay.
    assert [r["steps"] for r in two["not cut"]] == [[[0, 1, 2]], [[5, 6, 7, 8]]]


def test_the_state_is_that_of_the_batches_handed_out(two: dict[str, Ranks]) -> None:
    for rank in two["resumed"]:
        assert rank["state"]["position"] == 3
        assert len(rank["whole"]) == 8
        assert rank["steps"] == rank["whole"]
        assert rank["end"]["position"] == 8


def test_sharded_tables_under_the_trainer(two: dict[str, Ranks]) -> None:
    ranks = two["lightning"]
    for rank in ranks:
        assert rank["train"] == [128, 96, 100] * 2
        # One step of the sanity check; a validation after two of three steps, twice; the two of the same table.
        assert rank["validation"] == [1, 3, 3, 3, 1]
        assert rank["predictions_differ_by"] < 1e-5
        assert rank["predictions_vary_by"] > 0.1
        uneven, even = (rank[name] for name in ("uneven", "even"))
        assert "val/prediction_loss" in even
        assert uneven == pytest.approx(even, rel=1e-5)
        assert "val/eom_hajek" in even
    assert ranks[0]["uneven"] == ranks[1]["uneven"]


def test_what_is_wrapped_and_how(two: dict[str, Ranks]) -> None:
    for rank in two["wrapping"]:
        assert rank == {
            "even": "itself",
            "one process": "itself",
            "twice": "once",
            "state": [False, True],
            "samplers": "those of the loader",
            "recording sampler": "hidden",
        }
