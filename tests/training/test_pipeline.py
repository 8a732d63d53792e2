"""Ids go ahead of their batch, and the numbers do not notice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_runs import assert_same_weights, finish, start_ranks
from lightning.fabric.utilities.types import _Stateful
from pipeline_ranks import Rows, attached
from torch import nn
from training_runs import small_data, small_module, small_trainer

from datamodules import CampaignDataModule
from datamodules.batching import BatchLoader, TrainSampler
from lightning_budget.batch import KeyedJaggedTensor, RCTBatch
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.pipeline import pipelined
from lightning_budget.training.strategy import TorchRecStrategy

EPOCH = 8
CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "unsized": {"unsized": None},
    "uneven": {"unsized": [8, 6]},
    "bf16": {"trainer": {"precision": "bf16-mixed"}},
    "second fit": {"then_epochs": 3},
    "cut short": {"trainer": {"limit_train_batches": 5, "val_check_interval": 2}},
}
STEPS = {"second fit": 3 * EPOCH, "cut short": 10, "uneven": 12}
ON_TWO_RANKS = ("plain", "unsized", "uneven")
SAVED = 11

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["one rank", "two ranks"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Results]]:
    """Every case without and with ids sent ahead, by rank; checkpoints lie beside."""
    folder, world = tmp_path_factory.mktemp(f"ranks{request.param}"), request.param
    cases = {k: v for k, v in CASES.items() if (k in ON_TWO_RANKS if world == 2 else k != "uneven")}
    jobs = [{"name": f"{k} {on}", "pipeline": on, **v} for k, v in cases.items() for on in (False, True)]
    cut = str(folder / "inside.ckpt")
    jobs.append({"name": "to cut", "pipeline": True, "save_at": SAVED, "checkpoint": cut})
    jobs += [{"name": f"resumed {on}", "pipeline": on, "resume": cut} for on in (False, True)]
    described = [{"folder": str(folder), "result": str(folder / f"{job['name']}.ckpt"), **job} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(described))
    processes = start_ranks(world, "pipeline_ranks.py", str(folder / "jobs.json"))
    outputs = finish(processes, timeout=120)
    assert [p.returncode for p in processes] == [0] * world, "\n".join(o[-3000:] for o in outputs)
    return folder, [json.loads((folder / f"results.{rank}.json").read_text()) for rank in range(world)]


def test_same_batches_losses_metrics_and_tables(runs: tuple[Path, list[Results]]) -> None:
    folder, ranks = runs
    for case in [k for k in CASES if f"{k} True" in ranks[0]]:
        for results in ranks:
            without, ahead = results[f"{case} False"], results[f"{case} True"]
            assert len(ahead["rows"]) == STEPS.get(case, 2 * EPOCH), case
            for what in ("rows", "losses", "metrics"):
                assert ahead[what] == without[what], (case, what)
            assert without["events"] == []
            assert ahead["attached"] == []
        assert_same_weights(folder / f"{case} True.ckpt", folder / f"{case} False.ckpt", atol=0)


def test_the_ids_of_a_batch_leave_while_the_one_before_computes(runs: tuple[Path, list[Results]]) -> None:
    for results in runs[1]:
        # The first two batches of the first epoch show what the collection takes.
        sent, second_epoch = 2 * EPOCH - 2, EPOCH - 2
        at = {event: i for i, event in enumerate(results["plain True"]["events"])}
        assert len(at) == len(results["plain True"]["events"]) == 3 * sent
        for i in range(1, sent):
            if i == second_epoch:
                assert at[f"take {i - 1}"] < at[f"send {i}"]
            else:
                assert at[f"send {i}"] < at[f"take {i - 1}"] < at[f"follow {i}"] < at[f"take {i}"]
        # One more is asked for at the start, and the last step of each epoch comes after the end was seen.
        takes = [e for e in results["unsized True"]["events"] if e.startswith("take")]
        assert len(takes) == 2 * EPOCH - 3 - 2


def test_resumed_inside_an_epoch_from_what_was_trained_on(runs: tuple[Path, list[Results]]) -> None:
    folder, ranks = runs
    state = torch.load(folder / "inside.ckpt", weights_only=True)["loops"]["fit_loop"]["state_dict"]
    assert state["combined_loader"][0]["position"] == SAVED - EPOCH
    for on in (False, True):
        for results in ranks:
            whole, rest = results["plain False"], results[f"resumed {on}"]
            assert rest["rows"] == whole["rows"][SAVED:]
            assert rest["losses"] == pytest.approx(whole["losses"][SAVED:], rel=1e-6)
        assert_same_weights(folder / f"resumed {on}.ckpt", folder / "plain False.ckpt", atol=1e-6)


class Moody(BudgetModule):
    """Leaves a batch out, looks at the next one before, changes another's ids, and takes the next two times."""

    def on_train_batch_start(self, batch: RCTBatch, batch_idx: int) -> None:
        if batch_idx == 4:
            self.eval()
            with torch.no_grad():
                self(batch)
            self.train()

    def training_step(self, batch: RCTBatch, batch_idx: int) -> Any:
        ids = batch.sparse
        assert ids is not None
        if batch_idx == 3:
            return None
        if batch_idx == 5:
            reversed_ids = KeyedJaggedTensor(ids.keys(), ids.values().flip(0) % 5, lengths=ids.lengths())
            batch = replace(batch, sparse=reversed_ids)
        loss = super().training_step(batch, batch_idx)
        return loss + super().training_step(batch, batch_idx) if batch_idx == 6 else loss


def moody(data: CampaignDataModule) -> BudgetModule:
    return Moody(**{k: v for k, v in small_module(data).hparams.items()})


def fitted(folder: Path, pipeline: bool, make: Any = small_module, **trainer: Any) -> tuple[list[list[int]], nn.Module]:
    data, rows = small_data(), Rows()
    module = make(data)
    strategy = TorchRecStrategy(pipeline=pipeline, process_group_backend=trainer.pop("backend", "gloo"))
    fitting = small_trainer(folder, [rows], strategy=strategy, **trainer)
    fitting.fit(module, data)
    fitting.save_checkpoint(folder / f"{pipeline}.ckpt")
    return rows.rows, module


def test_steps_that_do_not_take_what_was_sent(tmp_path: Path) -> None:
    without, _ = fitted(tmp_path, False, moody)
    ahead, module = fitted(tmp_path, True, moody)
    assert ahead == without
    assert attached(module) == []
    assert_same_weights(tmp_path / "True.ckpt", tmp_path / "False.ckpt", atol=0)


class Torn(BatchLoader):
    """Fails at its fifth batch."""

    def __iter__(self) -> Iterator[RCTBatch]:
        for i, batch in enumerate(super().__iter__()):
            if i == 4:
                raise OSError("the file is torn")
            yield batch


def test_the_loader_s_error_ends_training_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    data, rows = small_data(), Rows()
    module = small_module(data)
    trainer = small_trainer(tmp_path, [rows], strategy=TorchRecStrategy(pipeline=True, process_group_backend="gloo"))
    with pytest.raises(OSError, match="torn"):
        trainer.fit(module, Torn(data.train, TrainSampler(1024, 128)))
    assert len(rows.rows) == 3  # the fourth was at hand, but not every rank would have gone on
    assert attached(module) == []


def test_looks_like_the_loader_inside_and_says_what_was_handed_out() -> None:
    data = small_data()
    inner = BatchLoader(data.train, TrainSampler(1024, 128, seed=1))
    loader = pipelined(inner, nn.Identity(), CPU)
    assert len(loader) == EPOCH
    assert loader.sampler is inner.sampler
    assert loader.even_over_ranks
    assert isinstance(loader, _Stateful)
    assert not isinstance(pipelined([1, 2], nn.Identity(), CPU), _Stateful)
    assert list(pipelined([1, None, 2], nn.Identity(), CPU)) == [1, None, 2]
    inner.sampler.set_epoch(1)
    whole = [b.row.tolist() for b in loader]
    assert len(whole) == EPOCH
    batches = iter(loader)
    seen = [next(batches).row.tolist() for _ in range(3)]
    assert inner.state_dict()["position"] == 4
    assert loader.state_dict()["position"] == 3
    again = pipelined(BatchLoader(data.train, TrainSampler(1024, 128, seed=1)), nn.Identity(), CPU)
    again.load_state_dict(loader.state_dict())
    again.sampler.set_epoch(1)
    assert seen + [b.row.tolist() for b in again] == whole


@pytest.mark.gpu
def test_same_tables_on_a_gpu(tmp_path: Path) -> None:
    settings = {"accelerator": "gpu", "backend": "nccl"}
    without, _ = fitted(tmp_path, False, **settings)
    ahead, module = fitted(tmp_path, True, **settings)
    assert ahead == without
    assert attached(module) == []
    # Atomic additions on a GPU come in any order.
    assert_same_weights(tmp_path / "True.ckpt", tmp_path / "False.ckpt", atol=1e-5)
