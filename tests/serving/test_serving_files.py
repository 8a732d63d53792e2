"""A serving model's file: whole, plain, and read where nothing but torch and this library's plain rooms is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from serving_cases import assert_equal, batch, case, run_without

from lightning_budget.errors import InputError
from lightning_budget.schema import SparseFeature
from lightning_budget.serving import load, save
from lightning_budget.training.serving_export import serving_inputs

FOREIGN = "torchrec fbgemm_gpu lightning pytorch_lightning hydra omegaconf torchmetrics pyarrow wandb rich tensordict"
SERVE = """
import torch
from lightning_budget.serving import load
model = load(sys.argv[1])
dense, values, offsets = torch.load(sys.argv[2])
torch.save(tuple(model(dense, values, offsets)), sys.argv[3])
print(model.schema.treatments[1], model.policy.multiplier)
"""


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_file_gives_the_model_back(tmp_path: Path, kind: str) -> None:
    features = (SparseFeature("user_id", 50), SparseFeature("viewed", 20, True, tuple(f"item {i}" for i in range(19))))
    _, model = case(multiplier=0.7, sparse=features, known_cost=(0.0, None, None))
    model = model.int8() if kind == "int8" else model
    save(model, tmp_path / "model.pt")
    back, inputs = load(tmp_path / "model.pt"), serving_inputs(batch(100))
    assert_equal(back(*inputs), model(*inputs))
    assert back.schema == model.schema
    assert back.statistics == model.statistics
    assert (back.config, back.table_kind, back.multiplier) == (model.config, kind, 0.7)
    assert not any(p.requires_grad for p in back.parameters())
    assert not back.training
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_without_a_multiplier(tmp_path: Path) -> None:
    save(case()[1], tmp_path / "model.pt")
    assert load(tmp_path / "model.pt").policy is None


def test_the_file_is_plain(tmp_path: Path) -> None:
    save(case()[1], tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["format"] == "lightning_budget.serving"
    assert content["schema"]["treatments"] == ["arm_0", "arm_1", "arm_2"]
    assert all(type(x) is torch.Tensor for x in content["state"].values())


def test_a_file_of_version_1(tmp_path: Path) -> None:
    _, model = case(multiplier=0.7)
    save(model, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    about = content.pop("model")
    # There dropout had gone, and with it its places among the layers.
    names = {"net.trunk.3.weight": "trunk.2.weight", "net.trunk.3.bias": "trunk.2.bias"}
    for name in content["state"]:
        names.setdefault(name, name.removeprefix("net.").removeprefix("sparse_arch."))
    content["state"] = {names[name]: tensor for name, tensor in content["state"].items()}
    content["layout"] = {k: about[k] for k in ("embedding_dim", "dense_hidden", "trunk_hidden", "head_hidden")}
    torch.save({**content, "version": 1}, tmp_path / "model.pt")
    inputs = serving_inputs(batch(20))
    assert_equal(load(tmp_path / "model.pt")(*inputs), model(*inputs))


def test_without_torchrec(tmp_path: Path) -> None:
    _, model = case(multiplier=0.7)
    save(model, tmp_path / "model.pt")
    inputs = serving_inputs(batch(20))
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [str(tmp_path / name) for name in ("model.pt", "inputs.pt", "out.pt")]
    assert run_without(FOREIGN, SERVE, *files, cwd=tmp_path) == "arm_1 0.7\n"
    assert_equal(torch.load(tmp_path / "out.pt"), model(*inputs))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save(case()[1], path)
    good = path.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            load(path)
        assert "\n" not in str(caught.value)

    for content in (good[: len(good) // 2], b"", b"no archive"):
        path.write_bytes(content)
        refused("cannot be read")
    torch.save({"weights": torch.zeros(2)}, path)
    refused("is no serving model")
    path.write_bytes(good)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": 3}, path)
    refused("has version 3 and float32 tables")
    torch.save({**content, "tables": "int4"}, path)
    refused("int4 tables")
    state = dict(content["state"])
    state["net.sparse_arch.tables.0.weight"] = torch.zeros(3, 4)
    torch.save({**content, "state": state}, path)
    refused("does not fit its own description")
    path.unlink()
    refused("is not a file")
    with pytest.raises(InputError, match="cannot be written"):
        save(case()[1], tmp_path / "nowhere" / "model.pt")
