"""Rows of a table start as a function of (seed, table, row), whoever owns them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from lightning_budget.training import sharding
from lightning_budget.training.sharding import init_rows_

DIM = 6
uniform = partial(torch.nn.init.uniform_, a=-1.0, b=1.0)


def init(rows: int, cuts: list[int], name: str = "city", seed: int = 0, columns: tuple[int, ...] = (0, DIM)) -> Tensor:
    """A table put together from shards between the cuts, each initialised by a rank of its own."""
    config = EmbeddingBagConfig(num_embeddings=rows, embedding_dim=DIM, name=name, init_fn=uniform)
    table = torch.full((rows, DIM), torch.nan)
    for a, b in zip([0, *cuts], [*cuts, rows], strict=True):
        for c, d in pairwise(columns):
            local = torch.full((b - a, d - c), torch.nan)
            torch.manual_seed(17)  # equal on all ranks, and of no influence
            init_rows_(local, config, seed, a, c)
            table[a:b, c:d] = local
    return table


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 300), cuts=st.lists(st.integers(0, 300), max_size=4))
def test_any_cut_gives_the_same_table(rows: int, cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "INIT_CHUNK_ROWS", 64)  # so that small tables span several chunks
        whole = init(rows, [])
        parts = init(rows, sorted(min(c, rows) for c in cuts))
        assert torch.equal(whole, parts)
        assert torch.equal(whole, init(rows, [], columns=(0, 2, DIM)))
        assert not whole.isnan().any()


def test_chunks_shards_tables_and_seeds_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "INIT_CHUNK_ROWS", 64)
    table = init(128, [64])
    assert not torch.equal(table[:64], table[64:])
    assert len(table.unique(dim=0)) == 128
    assert not torch.equal(table, init(128, [64], name="tier"))
    assert not torch.equal(table, init(128, [64], seed=1))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    config = EmbeddingBagConfig(num_embeddings=4, embedding_dim=DIM, name="city", init_fn=uniform)
    init_rows_(torch.empty(4, DIM), config, 0)
    assert torch.equal(torch.rand(3), expected)
