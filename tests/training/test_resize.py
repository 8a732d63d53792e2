"""A checkpoint adapted to other tables and treatments keeps what it knows and goes on training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import small_data, small_module, small_trainer

from datamodules import CampaignDataModule
from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.schema import SparseFeature
from lightning_budget.training.export import load_model, read_checkpoint
from lightning_budget.training.fit_check import check_same_model
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.resize import _kept, _old_rows, resize_checkpoint

FACES = (0.0, 2.0, 4.0, 7.0, 11.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignDataModule, Path]:
    folder, data = tmp_path_factory.mktemp("trained"), small_data(face_values=FACES)
    trainer = small_trainer(folder)
    trainer.fit(small_module(data), data)
    trainer.save_checkpoint(folder / "a.ckpt")
    return data, folder / "a.ckpt"


def predict(path: Path, data: CampaignDataModule) -> ResponsePrediction:
    batch = data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        return load_model(path)(batch.dense, batch.sparse)


def resized(trained: tuple[CampaignDataModule, Path], output: Path, **changes: Any) -> CampaignDataModule:
    data = small_data(**{"face_values": FACES, **changes})
    resize_checkpoint(trained[1], output, data.schema, data.statistics)
    return data


def test_treatments_by_name(trained: tuple[CampaignDataModule, Path], tmp_path: Path) -> None:
    data, path = trained
    other = resized(trained, tmp_path / "b.ckpt", face_values=(0.0, 7.0, 5.0, 2.0))
    before, after = predict(path, data), predict(tmp_path / "b.ckpt", data)
    for now, was in ((0, 0), (1, 3), (3, 1)):
        torch.testing.assert_close(after.value[:, now], before.value[:, was])
        torch.testing.assert_close(after.cost[:, now], before.cost[:, was])
    # A new treatment starts at its arm's mean.
    torch.testing.assert_close(after.value[:, 2], torch.full((len(data.test),), other.statistics.value_mean[2]))


@pytest.mark.parametrize("users", [60, 150])
def test_tables_by_row(trained: tuple[CampaignDataModule, Path], tmp_path: Path, users: int) -> None:
    data, path = trained
    resized(trained, tmp_path / "b.ckpt", users=users)
    before, after = read_checkpoint(path), read_checkpoint(tmp_path / "b.ckpt")
    name = "net.sparse_arch.tables.embedding_bags.user_id.weight"
    common = min(users, 100) + 1
    assert len(after["state_dict"][name]) == users + 1
    assert torch.equal(after["state_dict"][name][:common], before["state_dict"][name][:common])
    states = [next(v for k, v in c["torchrec_fused_optimizer"].items() if k.startswith(name)) for c in (before, after)]
    assert torch.equal(states[1][:common], states[0][:common])
    assert states[1].shape == (users + 1,)
    if users > 100:
        assert float(states[1][common:].abs().sum()) == 0
        assert float(after["state_dict"][name][common:].abs().min()) > 0
    batch = data.test.batch(torch.arange(len(data.test)))
    seen = (data.test.ids["user_id"] < common).nonzero().flatten()
    assert len(seen) > 0
    predictions = [load_model(p)(batch.dense, data_cut(batch.sparse, users)) for p in (path, tmp_path / "b.ckpt")]
    torch.testing.assert_close(predictions[1].value[seen], predictions[0].value[seen])


def data_cut(sparse: Any, users: int) -> Any:
    """Ids that both tables have; the others become unknown."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    n = int(sparse.length_per_key()[0])
    values = sparse.values().clone()
    values[:n] = torch.where(values[:n] <= min(users, 100), values[:n], 0)
    return KeyedJaggedTensor.from_lengths_sync(sparse.keys(), values, sparse.lengths())


def test_training_goes_on(trained: tuple[CampaignDataModule, Path], tmp_path: Path) -> None:
    data = resized(trained, tmp_path / "b.ckpt", face_values=(0.0, 7.0, 5.0, 2.0), users=150)
    module = small_module(data)
    trainer = small_trainer(tmp_path, max_epochs=3)
    trainer.fit(module, data, ckpt_path=str(tmp_path / "b.ckpt"))
    assert trainer.global_step == 24


def test_rows_follow_their_labels() -> None:
    old = SparseFeature("city", 4, vocabulary=("a", "b", "c"))
    new = SparseFeature("city", 4, vocabulary=("b", "d", "a"))
    assert _old_rows(old, new) == [0, 2, None, 1]
    assert [x.tolist() for x in _kept([0, 2, None, 1])] == [[0, 1, 3], [0, 2, 1]]


def test_refuses_other_features(trained: tuple[CampaignDataModule, Path], tmp_path: Path) -> None:
    data, path = trained
    for schema in (
        replace(data.schema, dense=data.schema.dense[1:]),
        replace(data.schema, sparse=data.schema.sparse[1:]),
    ):
        with pytest.raises(InputError, match="fix: train anew"):
            resize_checkpoint(path, tmp_path / "c.ckpt", schema, data.statistics)
    assert not (tmp_path / "c.ckpt").exists()


HISTORY = {"name": "described_tarnet", "embedding_dim": 4, "dense_hidden": [8], "trunk_hidden": [8], "head_hidden": 4}
HISTORY |= {"value_head": "funnel", "user_history": True}


@pytest.mark.parametrize("faces", [FACES, FACES[:4]])
def test_histories_go_with_their_users_and_slopes_with_their_doses(tmp_path: Path, faces: tuple[float, ...]) -> None:
    data, trainer = small_data(face_values=FACES), small_trainer(tmp_path, max_steps=11)
    trainer.fit(small_module(data, model=HISTORY, weight_decay=0.1), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    more = small_data(users=150, face_values=faces)
    resize_checkpoint(tmp_path / "a.ckpt", tmp_path / "b.ckpt", more.schema, more.statistics)
    before, after = read_checkpoint(tmp_path / "a.ckpt"), read_checkpoint(tmp_path / "b.ckpt")
    for name in ("net.user_history.counts", "net.user_history.effects"):
        old, new = before["state_dict"][name], after["state_dict"][name]
        assert old.any()
        assert len(old) < len(new) == 151
        kept = faces == FACES or "counts" in name
        assert torch.equal(new[: len(old)], old if kept else torch.zeros_like(old))
        assert not new[len(old) :].any()
    assert "observed" in before
    assert "observed" not in after
    longer = small_trainer(tmp_path, max_epochs=4)
    longer.fit(small_module(more, model=HISTORY, weight_decay=0.1), more, ckpt_path=str(tmp_path / "b.ckpt"))
    assert longer.current_epoch == 4


def test_heads_that_the_data_chose_stay(tmp_path: Path) -> None:
    data, trainer = small_data(face_values=FACES), small_trainer(tmp_path)
    model = {**HISTORY, "value_head": "auto", "cost_head": "auto"}
    trainer.fit(small_module(data, model=model), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]["model"]["cost_head"] == "on_conversion"
    more = small_data(face_values=(*FACES[:4], 9.0))
    stray = replace(more.statistics, unconverted_cost=(0.0, 0.0, 0.0, 0.0, 0.02))
    resize_checkpoint(tmp_path / "a.ckpt", tmp_path / "b.ckpt", more.schema, stray)
    stray = replace(more.statistics, unconverted_cost=(0.0, 0.0, 0.0, 0.0, 0.2))
    with pytest.raises(InputError, match=r"have 20\.0% of an arm's cost"):
        resize_checkpoint(tmp_path / "a.ckpt", tmp_path / "c.ckpt", more.schema, stray)
    before, after = predict(tmp_path / "a.ckpt", data), predict(tmp_path / "b.ckpt", data)
    torch.testing.assert_close(after.cost[:, :4], before.cost[:, :4])
    other = BudgetModule(data.schema.to_dict(), replace(data.statistics, unconverted_cost=(0.2,) * 5).to_dict(), model)
    with pytest.raises(InputError, match=r"its model\.cost_head is 'on_conversion', this run's 'funnel'"):
        check_same_model(tmp_path / "a.ckpt", other)
    # As those are whose statistics did not say it.
    old = torch.load(tmp_path / "a.ckpt", weights_only=True)
    old["hyper_parameters"]["model"]["cost_head"] = "auto"
    del old["hyper_parameters"]["statistics"]["unconverted_cost"]
    torch.save(old, tmp_path / "old.ckpt")
    with pytest.raises(InputError, match=r"its model\.cost_head is 'funnel', this run's 'on_conversion'"):
        check_same_model(tmp_path / "old.ckpt", small_module(data, model=model))


def test_an_earlier_history_has_no_effects_on_payment(tmp_path: Path) -> None:
    data, trainer = small_data(face_values=FACES), small_trainer(tmp_path)
    trainer.fit(small_module(data, model=HISTORY), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    old = torch.load(tmp_path / "a.ckpt", weights_only=True)
    name = "net.user_history.effects"
    old["state_dict"][name] = old["state_dict"][name][:, :2].clone()
    torch.save(old, tmp_path / "old.ckpt")
    more = small_data(users=150, face_values=FACES)
    resize_checkpoint(tmp_path / "old.ckpt", tmp_path / "b.ckpt", more.schema, more.statistics)
    effects = read_checkpoint(tmp_path / "b.ckpt")["state_dict"][name]
    assert torch.equal(effects[: len(old["state_dict"][name]), :2], old["state_dict"][name])
    assert effects.shape == (151, 3)
    assert not effects[:, 2].any()
    predict(tmp_path / "old.ckpt", data)


def test_an_optimizer_of_other_groups_is_refused(tmp_path: Path) -> None:
    data, trainer = small_data(), small_trainer(tmp_path)
    trainer.fit(small_module(data), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["weight_decay"] = 0.1
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(InputError, match="1 groups of parameters"):
        resize_checkpoint(tmp_path / "b.ckpt", tmp_path / "c.ckpt", data.schema, data.statistics)
