from __future__ import annotations

import re

import pytest
import torch

from lightning_budget.allocation.constrained import (
    ConstrainedProblem,
    Constraint,
    allocate_constrained,
    budget,
    least_users,
    most_users,
)
from lightning_budget.allocation.constrained.infeasible import refuse_infeasible, tighten
from lightning_budget.allocation.constrained.rows import Rows
from lightning_budget.errors import InputError
from tests.allocation.constrained.constrained_reference import (
    best_by_enumeration,
    linear_optimum,
    matrix_of,
    random_problem,
    room_needed,
)

ROOM = (-0.3, -0.15, -0.05, 0.02)


@pytest.mark.parametrize("seed", range(40))
def test_infeasible_exactly_where_highs_says_so(seed: int) -> None:
    problem = random_problem(seed, 30, 4, 5, room=ROOM[seed % 4], grid=seed % 3 == 0)
    m = matrix_of(problem)
    if abs(room_needed(m)) < 1e-7:
        pytest.skip("limits that HiGHS's own tolerance decides")
    if linear_optimum(m) is not None:
        rows = Rows(problem)
        tighten(rows)
        refuse_infeasible(rows)
        return
    with pytest.raises(InputError) as error:
        allocate_constrained(problem)
    named = [n for n in re.findall(r"'(c\d+(?:\[\d\])?)' \(limit|constraint '(c\d+(?:\[\d\])?)'", str(error.value))]
    support = [m.names.index(a or b) for a, b in named]
    assert support, str(error.value)
    if "more cannot hold" not in str(error.value):
        assert linear_optimum(m, only=support) is None


def test_some_of_the_problems_are_infeasible() -> None:
    kinds = [
        linear_optimum(matrix_of(random_problem(s, 30, 4, 5, room=ROOM[s % 4], grid=s % 3 == 0))) for s in range(40)
    ]
    assert 8 <= sum(k is None for k in kinds) <= 32


USERS = 40
COST = torch.tensor([[0.0, 1.0, 2.0]] * USERS, dtype=torch.float64)


def problem(*constraints: Constraint) -> ConstrainedProblem:
    return ConstrainedProblem(2 * COST, COST, constraints)


def test_one_limit_alone_says_what_its_users_need() -> None:
    with pytest.raises(InputError, match=r"'many': limit at least 41; allowed: not above 40, .* lower the limit"):
        allocate_constrained(problem(least_users("many", [1, 2], 41.0)))


def test_two_limits_that_contradict_are_both_named_and_only_they() -> None:
    with pytest.raises(InputError) as error:
        allocate_constrained(
            problem(budget("money", 19.0), least_users("reach", [1, 2], 20.0), most_users("rare", [2], 10.0))
        )
    message = str(error.value)
    assert "'money' (limit at most 19)" in message
    assert "'reach' (limit at least 20)" in message
    assert "rare" not in message
    # 20 users for at least 1 each; or, with 19, at most 19 users.
    assert "not below 20," in message or "not above 19," in message


def test_limits_that_only_just_hold_are_met() -> None:
    found = allocate_constrained(problem(budget("money", 20.0), least_users("reach", [1, 2], 20.0)))
    assert torch.bincount(found.assignment, minlength=3).tolist() == [20, 20, 0]
    assert found.value == 40.0


def test_whole_users_may_miss_what_fractions_meet() -> None:
    odd = Constraint("even", -3.0, torch.tensor([0.0, -2.0, -2.0], dtype=torch.float64))
    with pytest.raises(InputError, match="no allocation of whole users"):
        allocate_constrained(problem(odd, most_users("few", [1, 2], 1.5)))


@pytest.mark.parametrize("seed", range(15))
def test_what_tighten_forbids_is_in_no_allocation(seed: int) -> None:
    """Limits that a known allocation just meets: its treatments must survive rounding."""
    problem = random_problem(seed + 500, 5, 4, 6, room=0.0)
    m = matrix_of(problem)
    rows = Rows(problem)
    tighten(rows)
    if rows.allowed is not None:
        kept = matrix_of(
            ConstrainedProblem(
                problem.value, problem.cost, problem.constraints, rows.allowed, problem.must_treat, problem.never_treat
            )
        )
        assert best_by_enumeration(kept) == best_by_enumeration(m)
