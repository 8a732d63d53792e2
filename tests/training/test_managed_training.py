"""Training gives rows to ids and takes them back, the same on any number of ranks and across checkpoints."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from distributed_runs import assert_same_weights, finish, start_ranks
from managed_ranks import ROWS, every_third_batch, managed_data
from rank_worker import SaveAt
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan
from training_runs import small_data, small_module, small_trainer, weights

from datamodules import CampaignDataModule
from lightning_budget.batch import KeyedJaggedTensor
from lightning_budget.errors import InputError
from lightning_budget.models import embeddings
from lightning_budget.schema import UNKNOWN
from lightning_budget.training.export import load_model
from lightning_budget.training.fit_check import check_same_model
from lightning_budget.training.given_rows import refuse_cached_tables
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.resize import resize_checkpoint
from lightning_budget.training.serving_export import to_serving

SAVED = 10


Trained = tuple[CampaignDataModule, BudgetModule, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Trained in this process, rows given every third batch as in all tests here; with what was logged."""
    folder, data = tmp_path_factory.mktemp("managed"), managed_data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "admission_interval", embeddings.admission_interval)
        every_third_batch()
        module, trainer = small_module(data), small_trainer(folder, [SaveAt(SAVED, str(folder / "cut.ckpt"))])
        trainer.fit(module, data)
        assert trainer.global_step == SAVED + 1
        module, trainer = small_module(data), small_trainer(folder)
        trainer.fit(module, data)
        trainer.save_checkpoint(folder / "whole.ckpt")
        yield data, module, folder, trainer.callback_metrics


def test_a_checkpoint_predicts_as_the_model_did(trained: Trained, tmp_path: Path) -> None:
    data, module, folder, logged = trained
    path = folder / "whole.ckpt"
    batch = data.test.batch(torch.arange(len(data.test)))
    parts: Any = small_trainer(tmp_path).predict(module, dataloaders=data.table_dataloader(data.test))
    again = BudgetModule.load_from_checkpoint(path, map_location="cpu").eval()
    with torch.no_grad():
        expected = load_model(path)(batch.dense, batch.sparse).value
        assert torch.equal(again(batch).value, expected)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), expected, rtol=1e-6, atol=1e-6)
    # A hundred users for 39 rows.
    assert logged["train/ids/user_id/occupied"] == 1
    assert 0.1 < logged["train/ids/user_id/unknown"] < 0.9


def test_ids_never_seen_share_the_row_of_the_unknown(
    trained: Trained,
) -> None:
    data, _, folder, _ = trained
    model = load_model(folder / "whole.ckpt")
    batch = data.train.batch(torch.arange(3))
    assert batch.sparse is not None
    assert model.sparse_arch is not None
    ids = batch.sparse.values().clone()
    ids[:3] = torch.tensor([2**62 + 5, UNKNOWN, 2**61 + 7])
    strange = KeyedJaggedTensor(batch.sparse.keys(), ids, lengths=batch.sparse.lengths())
    width = model.sparse_arch.width // len(batch.sparse.keys())
    with torch.no_grad():
        pooled = model.sparse_arch(strange)[:, :width]
    unknown: Any = model.sparse_arch.tables.embedding_bags["user_id"].weight[UNKNOWN]
    torch.testing.assert_close(pooled, unknown.detach().expand(3, -1))


def test_what_managed_ids_cannot_do_is_refused(trained: Trained, tmp_path: Path) -> None:
    data, _, folder, _ = trained
    path = folder / "whole.ckpt"
    with pytest.raises(InputError, match=r"managed feature 'user_id'.*data.hashed"):
        to_serving(load_model(path), data.schema, data.statistics.to_dict())
    for kernel in ("fused_uvm", "fused_uvm_caching"):
        tables = EmbeddingModuleShardingPlan({"user_id": ParameterSharding("row_wise", kernel, [0])})
        plan = ShardingPlan({"sparse_arch.tables": tables})
        with nullcontext() if kernel == "fused_uvm" else pytest.raises(InputError, match="'user_id' of managed ids in"):
            refuse_cached_tables(load_model(path), plan)
    for change in ({"num_embeddings": ROWS + 1}, {"ids": "hashed"}, {"eviction": "lru"}):
        other = replace(data.schema, sparse=(replace(data.schema.sparse[0], **change), *data.schema.sparse[1:]))
        with pytest.raises(InputError, match="'user_id' is managed with 40 rows"):
            resize_checkpoint(path, tmp_path / "b.ckpt", other, data.statistics)


class Given(L.Callback):
    """Looks at the tables between the giving of rows and the lookup."""

    def __init__(self) -> None:
        self.given = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        encoder: Any = pl_module.net.sparse_arch  # type: ignore[union-attr]
        observe, changed = encoder.managed.observe, {}

        def observed(sparse: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
            changed.clear()
            changed.update(observe(sparse))
            return changed

        def look(*_: Any) -> None:
            weights = encoder.tables.state_dict()
            states = encoder.tables.fused_optimizer.state_dict()["state"]
            for name, rows in changed.items():
                (weight,) = weights[f"embedding_bags.{name}.weight"].local_shards()
                (state,) = states[f"embedding_bags.{name}.weight"].values()
                (momentum,) = state.local_shards()
                assert not weight.tensor[rows].any()
                assert not momentum.tensor[rows].any()
                assert weight.tensor.any()
                assert momentum.tensor.any() or trainer.global_step < 3
                self.given += len(rows) * (trainer.global_step > 3)

        encoder.managed.observe = observed
        encoder.tables.register_forward_pre_hook(look)


def test_ids_start_at_zero_in_sharded_tables_too(trained: Trained, tmp_path: Path) -> None:
    given = Given()
    small_trainer(tmp_path, [given], max_epochs=1).fit(small_module(trained[0]), trained[0])
    assert given.given > 10


def test_a_checkpoint_from_before_there_were_kinds_of_ids_can_be_resumed(tmp_path: Path) -> None:
    module = small_module(small_data())
    hyper = copy.deepcopy(dict(module.hparams))
    for feature in hyper["schema"]["sparse"]:
        del feature["ids"], feature["eviction"]
    torch.save({"hyper_parameters": hyper, "state_dict": {}}, tmp_path / "old.ckpt")
    check_same_model(tmp_path / "old.ckpt", module)
    data = small_data()
    data.schema = replace(data.schema, sparse=tuple(replace(f, ids="hashed") for f in data.schema.sparse))
    with pytest.raises(InputError, match=r"schema\.sparse"):
        check_same_model(tmp_path / "old.ckpt", small_module(data))


def test_a_run_cut_between_two_admissions_goes_on_to_the_same_end(trained: Trained) -> None:
    data, _, folder, _ = trained
    trainer = small_trainer(folder)
    trainer.fit(small_module(data), data, ckpt_path=str(folder / "cut.ckpt"), weights_only=True)
    trainer.save_checkpoint(folder / "resumed.ckpt")
    assert_same_weights(folder / "resumed.ckpt", folder / "whole.ckpt")
    assert torch.load(folder / "cut.ckpt", weights_only=True)["managed_ids"][0]["ids"].numel() > 0


def test_two_ranks_hold_the_map_of_one(trained: Trained, tmp_path: Path) -> None:
    """In two layouts, and across a checkpoint of shards."""
    cut = str(tmp_path / "shards")
    jobs = [
        {"name": "cut", "types": ["row_wise"], "save_at": SAVED, "checkpoint": cut, "format": "sharded"},
        {"name": "resumed", "types": ["table_wise"], "resume": cut, "result": str(tmp_path / "two.ckpt")},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps([{"folder": str(tmp_path), **job} for job in jobs]))
    processes = start_ranks(2, "managed_ranks.py", str(tmp_path / "jobs.json"))
    outputs = finish(processes)
    assert [p.returncode for p in processes] == [0, 0], "\n".join(o[-3000:] for o in outputs)
    assert_same_weights(tmp_path / "two.ckpt", trained[2] / "whole.ckpt")
    maps = [k for k in weights(tmp_path / "two.ckpt") if k.endswith("_mch_sorted_raw_ids")]
    assert len(maps) == len(trained[0].schema.sparse)
