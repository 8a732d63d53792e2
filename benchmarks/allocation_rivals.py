"""What an allocation is measured against: one read of the predictions, bisection in torch, a general solver."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, eye, kron
from torch import Tensor

PASSES = 60


def read_once(value: NDArray[np.float32], cost: NDArray[np.float32]) -> float:
    """One streaming read of ``[K, N]`` arrays, the least that any solver must do."""
    return float(value.max()) + float(cost.max())


def bisection(value: Tensor, cost: Tensor, budget: float, passes: int = PASSES) -> float:
    """The multiplier of a total budget by bisection over all users, as it is usually written; ``[N, K]``."""
    low, high = 0.0, 64.0
    for _ in range(passes):
        middle = 0.5 * (low + high)
        arm = (value - middle * cost).argmax(1)
        spend = float(cost.gather(1, arm[:, None]).sum(dtype=torch.float64))
        low, high = (middle, high) if spend > budget else (low, middle)
    return high


def interior_point(value: Tensor, cost: Tensor, budget: float) -> tuple[float, float]:
    """Optimum of the linear relaxation by HiGHS's interior point method, with crossover, and its processor seconds."""
    users, arms = value.shape
    start = time.process_time()
    one_each = csr_matrix(kron(eye(users), np.ones((1, arms))))
    v, c = value.double().numpy().ravel(), cost.double().numpy().ravel()
    found = linprog(
        -v,
        A_ub=csr_matrix(c),
        b_ub=[budget],
        A_eq=one_each,
        b_eq=np.ones(users),
        bounds=(0, None),
        method="highs-ipm",
    )
    assert found.status == 0, found.message
    return -found.fun, time.process_time() - start
