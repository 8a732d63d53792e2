"""The parts of a model against plain torch."""

from __future__ import annotations

import pytest
import torch
from random_trials import id_lists, random_batch, random_schema, random_table
from torch import nn

from lightning_budget.models.backbones import mlp
from lightning_budget.models.embeddings import SparseEncoder
from lightning_budget.models.heads import TreatmentHeads
from lightning_budget.models.links import LINKS, cost_with_known, unknown_if_none


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "every list empty"])
@pytest.mark.parametrize("seed", range(3))
def test_lookup_equals_plain_embedding_bags(seed: int, lists: bool) -> None:
    torch.manual_seed(seed)
    encoder = SparseEncoder(random_schema().sparse, embedding_dim=4)
    batch = random_table(30, seed=seed, lists=lists).batch(torch.arange(30))
    assert batch.sparse is not None
    expected = []
    for key, users in id_lists(batch).items():
        bag = nn.EmbeddingBag.from_pretrained(encoder.tables.embedding_bags[key].weight.detach(), mode="mean")
        offsets = torch.tensor([0, *[len(user) for user in users]]).cumsum(0)[:-1]
        expected.append(bag(torch.tensor([i for user in users for i in user], dtype=torch.long), offsets))
    torch.testing.assert_close(encoder(batch.sparse).detach(), torch.cat(expected, 1))
    assert encoder.width == 8


def test_rows_start_small_in_large_tables() -> None:
    torch.manual_seed(0)
    encoder = SparseEncoder(random_schema().sparse, embedding_dim=8)
    for feature in random_schema().sparse:
        weight = encoder.tables.embedding_bags[feature.name].weight.detach()
        assert weight.shape == (feature.num_embeddings, 8)
        bound = feature.num_embeddings**-0.5
        assert 0.9 * bound < float(weight.abs().max()) <= bound


@pytest.mark.parametrize("treatments", [2, 5])
def test_heads_equal_separate_networks(treatments: int) -> None:
    torch.manual_seed(0)
    heads = TreatmentHeads(6, treatments, hidden=4)
    assert not heads(torch.randn(3, 6)).any()
    nn.init.normal_(heads.out)
    nn.init.normal_(heads.bias)
    x = torch.randn(7, 6)
    for j in range(treatments):
        rows = slice(4 * j, 4 * j + 4)
        h = torch.nn.functional.silu(x @ heads.hidden.weight[rows].T + heads.hidden.bias[rows])
        torch.testing.assert_close(heads(x)[:, j, 0], h @ heads.out[j] + heads.bias[j])


def test_heads_of_other_arms_are_left_alone() -> None:
    torch.manual_seed(0)
    heads = TreatmentHeads(6, 3, hidden=4)
    nn.init.normal_(heads.out)
    heads(torch.randn(7, 6))[:, 1].sum().backward()
    gradient = heads.hidden.weight.grad
    assert gradient is not None
    assert gradient[4:8].any()
    assert not gradient[:4].any()
    assert not gradient[8:].any()


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_links_start_at_the_mean_and_increase(link: str, scale: float) -> None:
    scale = 1.0 if link == "probability" else scale
    mean = scale * torch.tensor([0.01, 0.2, 0.5, 0.9])
    zero = LINKS[link](torch.zeros(3, 4), mean, scale)
    torch.testing.assert_close(zero, mean.expand(3, -1), rtol=1e-5, atol=1e-6 * scale)
    steps = LINKS[link](torch.linspace(-3, 3, 9)[:, None].expand(-1, 4), mean, scale)
    assert (steps.diff(dim=0) > 0).all()


@pytest.mark.parametrize("link", ["positive", "probability"])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1000.0])
def test_links_stay_in_range_and_differentiable_far_out(link: str, mean: float) -> None:
    raw = torch.tensor([-80.0, -10.0, 0.0, 10.0, 80.0], requires_grad=True)
    out = LINKS[link](raw, torch.tensor(mean if link == "positive" else min(mean, 1.0)), 1.0)
    assert (out >= 0).all()
    if link == "probability":
        assert (out <= 1).all()
    out.sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_known_costs_replace_columns() -> None:
    known = unknown_if_none((0.0, None, 2.5))
    learned = torch.rand(4, 3, requires_grad=True)
    cost = cost_with_known(learned, known)
    assert torch.equal(cost[:, 0], torch.zeros(4))
    assert torch.equal(cost[:, 1], learned[:, 1])
    assert torch.equal(cost[:, 2], torch.full((4,), 2.5))
    cost.sum().backward()
    assert torch.equal(learned.grad, torch.tensor([0.0, 1.0, 0.0]).expand(4, -1))  # type: ignore[arg-type]


def test_mlp_widths() -> None:
    net = mlp(3, [5, 4], dropout=0.1)
    assert [type(layer).__name__ for layer in net] == ["Linear", "SiLU", "Dropout"] * 2
    assert net(torch.rand(2, 3)).shape == (2, 4)
    assert len(mlp(3, [5])) == 2
    assert torch.equal(mlp(3, [])(torch.ones(2, 3)), torch.ones(2, 3))


def test_lookup_of_a_slice_is_a_slice_of_the_lookup() -> None:
    torch.manual_seed(0)
    encoder, batch = SparseEncoder(random_schema().sparse, embedding_dim=4), random_batch(9)
    whole = encoder(batch.sparse)
    for cut in (slice(2, 6), slice(8, None)):
        torch.testing.assert_close(encoder(batch[cut].sparse), whole[cut])
