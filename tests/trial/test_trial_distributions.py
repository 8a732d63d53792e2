"""Tail probabilities against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_budget.trial.distributions import bonferroni, chi_square_p, two_sided_p


@given(st.floats(0, 2000), st.floats(0.1, 1500))
def test_chi_square_tail_is_scipys(x: float, df: float) -> None:
    assert float(chi_square_p(torch.tensor(x, dtype=torch.float64), df)) == pytest.approx(
        stats.chi2.sf(x, df), rel=1e-9, abs=1e-200
    )


def test_chi_square_closed_forms() -> None:
    x = torch.tensor([0.0, 1.0, 7.5, 200.0], dtype=torch.float64)
    torch.testing.assert_close(chi_square_p(x, 2.0), torch.exp(-x / 2), rtol=1e-12, atol=0)
    assert chi_square_p(x, 0.0).tolist() == [1.0] * 4
    df = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    np.testing.assert_allclose(chi_square_p(x, df).numpy(), stats.chi2.sf(x.numpy(), df.numpy()), rtol=1e-10)


def test_normal_tails() -> None:
    z = torch.tensor([0.0, -1.96, 5.0, -30.0], dtype=torch.float64)
    np.testing.assert_allclose(two_sided_p(z).numpy(), 2 * stats.norm.sf(np.abs(z.numpy())), rtol=1e-10)


def test_bonferroni() -> None:
    assert bonferroni(torch.tensor([0.01, 0.3]), 5).tolist() == pytest.approx([0.05, 1.0])
