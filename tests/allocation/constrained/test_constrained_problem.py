from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_budget.allocation.constrained import ConstrainedProblem, Constraint, budget, most_users, roi_floor
from lightning_budget.allocation.constrained.rows import Rows
from lightning_budget.errors import InputError
from tests.allocation.constrained.constrained_reference import matrix_of, random_problem


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_the_matrix_built_user_by_user(seed: int) -> None:
    problem = random_problem(seed, 37, 4, 7, dtype=torch.float32 if seed % 2 else torch.float64)
    m, rows = matrix_of(problem), Rows(problem)
    assert rows.names == m.names
    assert rows.limit.tolist() == m.limit.tolist()
    users = torch.tensor([30, 2, 17, 5])
    block = rows.block(users)
    dense = np.zeros((len(m.limit), len(users), 4))
    for usage, index in zip(block.usage, block.index, strict=True):
        for n in range(len(users)):
            dense[int(index[n]), n] += usage[:, n].numpy()
    np.testing.assert_array_equal(dense, m.usage[:, users.numpy()])
    np.testing.assert_array_equal(block.value.T.numpy(), np.where(m.allowed, m.value, -np.inf)[users.numpy()])
    price = torch.rand(len(m.limit), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scores = block.value.T.numpy() - np.einsum("p,pnk->nk", price.numpy(), dense)
    np.testing.assert_allclose(block.scores(price).T.numpy(), scores, rtol=1e-12, atol=1e-12)


V = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
GOOD = ConstrainedProblem(V, V)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"constraints": [budget("a", 1.0), budget("a", 2.0)]}, "'a'.*different names"),
        ({"constraints": [budget("a", float("nan"))]}, "'a'.*finite"),
        ({"constraints": [budget("a", torch.ones(2))]}, "'a' has 2 limits but no users"),
        ({"constraints": [budget("a", torch.ones(2), torch.tensor([0, 1, 2, 0, 1]))]}, "groups from 0 to 2"),
        ({"constraints": [budget("a", torch.ones(2), torch.tensor([0, 1, -2, 0, 1]))]}, "groups from -2 to 1"),
        ({"constraints": [budget("a", 1.0, torch.ones(4, dtype=torch.bool))]}, r"users has shape \[4\]"),
        ({"constraints": [most_users("a", [3], 1.0)]}, "treatment 3.*0 to 2"),
        ({"constraints": [Constraint("a", 1.0, torch.ones(2))]}, r"usage has shape \[2\]"),
        ({"constraints": [Constraint("a", 1.0, torch.tensor([1.0, float("inf"), 0.0]))]}, "usage is not finite"),
        ({"constraints": [roi_floor("a", float("inf"))]}, "'a'.*finite"),
        ({"eligible": torch.ones(5, 2, dtype=torch.bool)}, "eligible has shape"),
        ({"must_treat": torch.ones(5)}, "must_treat has shape"),
        ({"key": torch.ones(5)}, "key has shape"),
        ({"value": V * float("nan")}, "value.* is nan"),
        (
            {"must_treat": torch.arange(5) == 3, "never_treat": torch.arange(5) == 3},
            "user 3 may get no treatment at all",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        replace(GOOD, **change)
    assert "\n" not in str(error.value)


def test_masks_meet() -> None:
    eligible = torch.tensor([[True, True, False]] * 5)
    problem = replace(GOOD, eligible=eligible, must_treat=torch.arange(5) == 0, never_treat=torch.arange(5) == 1)
    allowed = problem.allowed()
    assert allowed is not None
    assert allowed[:3].tolist() == [[False, True, False], [True, False, False], [True, True, False]]
    assert bool(eligible.all(0)[0]), "the caller's mask is left alone"
