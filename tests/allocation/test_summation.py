"""Order-free sums against ``math.fsum``."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_budget.allocation.summation import exact_sum


@pytest.mark.parametrize("n", [0, 1, 511, 513, 4097, 300_001])
def test_equals_fsum(n: int) -> None:
    g = torch.Generator().manual_seed(n)
    size = 10 ** (12 * torch.rand(n, generator=g, dtype=torch.float64) - 6)
    x = size * torch.randn(n, generator=g, dtype=torch.float64)
    assert exact_sum(x) == math.fsum(x.tolist())
    assert exact_sum(x.float()) == math.fsum(x.float().tolist())


def test_order_and_cancellation_do_not_matter() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(10_000, generator=g, dtype=torch.float64) * 1e8
    x = torch.cat([x, -x, torch.full((1000,), 0.1, dtype=torch.float64)])
    shuffled = x[torch.randperm(len(x), generator=g)]
    assert exact_sum(shuffled) == exact_sum(x) == math.fsum([0.1] * 1000)
    assert float(shuffled.sum()) != exact_sum(x)
