"""Tables in eight bits: how far off they may be, what they take, and that pooling is that of their rows."""

from __future__ import annotations

import pytest
import torch
from serving_cases import SIZES, batch, case
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.serving import FloatTable, Int8Table, tables
from lightning_budget.training.serving_export import serving_inputs


def table_of(weight: Tensor) -> FloatTable:
    table = FloatTable(*weight.shape)
    table.weight.copy_(weight)
    return table


@pytest.mark.parametrize("magnitude", [1e-40, 1e-20, 1e-5, 1.0, 1e6, 3e38])
@pytest.mark.parametrize("width", [1, 4, 33])
def test_every_entry_is_within_half_a_step(magnitude: float, width: int) -> None:
    g = torch.Generator().manual_seed(width)
    weight = (torch.rand(500, width, generator=g) * 2 - 1) * magnitude
    weight[7] = 0
    table = Int8Table.from_float(table_of(weight))
    scale, codes = table.scale.double(), table.codes.double()
    error = (codes * scale[:, None] - weight.double()).abs()
    assert (error <= scale[:, None] / 2 * (1 + 1e-12)).all()
    assert codes.abs().max() <= 127
    # No coarser than needed: bfloat16 keeps eight bits (below its normal range, fewer).
    needed = weight.double().abs().amax(1) / 127
    assert (scale >= needed).all()
    assert (scale <= needed * (1 + 2**-7) + 1e-40).all()
    assert torch.equal(table.dequantised(torch.tensor([7])), torch.zeros(1, width))


def test_dequantising_is_exact_in_float32() -> None:
    table = Int8Table.from_float(table_of(torch.randn(200, 8, generator=torch.Generator().manual_seed(0))))
    exact = table.codes.double() * table.scale.double()[:, None]
    assert torch.equal(table.dequantised(torch.arange(200)).double(), exact)


def test_a_quantised_table_quantises_to_itself() -> None:
    once = Int8Table.from_float(table_of(torch.randn(200, 8, generator=torch.Generator().manual_seed(0))))
    weight = once.dequantised(torch.arange(200))
    twice = Int8Table.from_float(table_of(weight))
    # Where a row's largest code is 127 its scale is found again; the rounded-up scale may leave it at 126.
    again = twice.dequantised(torch.arange(200))
    full = once.codes.abs().amax(1) == 127
    assert full.double().mean() > 0.5
    assert torch.equal(again[full], weight[full])


def test_rows_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)))
    whole = Int8Table.from_float(table)
    monkeypatch.setattr(tables, "CHUNK_ROWS", 7)
    pieces = Int8Table.from_float(table)
    assert torch.equal(pieces.codes, whole.codes)
    assert torch.equal(pieces.scale, whole.scale)


@pytest.mark.parametrize("rows", SIZES)
def test_pooling_is_that_of_the_dequantised_table(rows: int) -> None:
    quantised = Int8Table.from_float(table_of(torch.randn(20, 4, generator=torch.Generator().manual_seed(0))))
    plain = table_of(quantised.dequantised(torch.arange(20)))
    _, values, offsets = serving_inputs(batch(rows, seed=rows))
    torch.testing.assert_close(quantised(values[1], offsets[1]), plain(values[1], offsets[1]))


def test_the_model_in_eight_bits() -> None:
    _, serving = case(multiplier=0.7)
    small = serving.int8()
    inputs = serving_inputs(batch(300))
    exact, near = serving(*inputs), small(*inputs)
    difference = (near.value - exact.value).abs().max()
    assert 0 < difference < 0.05 * exact.value.std()
    assert small.multiplier == 0.7
    assert (near.treatment == exact.treatment).double().mean() > 0.97
    assert serving.table_bytes == (50 + 20) * 4 * 4
    assert small.table_bytes == (50 + 20) * (4 + 2)
    assert small.net.trunk[0].weight.data_ptr() == serving.net.trunk[0].weight.data_ptr()  # type: ignore[union-attr]
    assert serving.table_kind == "float32"


def test_what_cannot_be_quantised() -> None:
    _, serving = case()
    with pytest.raises(InputError, match="int8"):
        serving.int8().int8()
    for bad in (float("nan"), float("inf")):
        weight = torch.zeros(3, 4)
        weight[1, 2] = bad
        with pytest.raises(InputError, match="not finite"):
            Int8Table.from_float(table_of(weight))
