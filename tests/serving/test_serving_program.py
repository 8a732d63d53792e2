"""The exported program: any number of users and ids, torch's operators alone, loaded with torch alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_cases import SIZES, assert_equal, batch, case, run_without

from lightning_budget.errors import InputError
from lightning_budget.serving import ServingModel, load_program, save, save_program
from lightning_budget.serving.program import Program
from lightning_budget.training.serving_export import serving_inputs

FOREIGN = (
    "lightning_budget datamodules scripts torchrec fbgemm_gpu lightning pytorch_lightning hydra omegaconf torchmetrics "
    "pyarrow wandb rich tensordict"
)
SERVE = """
import json, torch
extra = {"serving.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
dense, values, offsets = torch.load(sys.argv[2])
about = json.loads(extra["serving.json"])
torch.save(program(dense, values, offsets, torch.tensor(about["multiplier"], dtype=torch.float64)), sys.argv[3])
print(about["schema"]["treatments"][1], about["multiplier"], about["tables"])
"""
MULTIPLIERS = [0.0, 0.7, 3.0, float("inf")]


@pytest.fixture(scope="module", params=["float32", "int8"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ServingModel, Path]:
    """A model with a multiplier and the file of its program."""
    model = case(multiplier=0.7, known_cost=(0.0, None, None))[1]
    model = model if request.param == "float32" else model.int8()
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    save_program(model, path)
    return model, path


@pytest.fixture(scope="module")
def program(exported: tuple[ServingModel, Path]) -> tuple[ServingModel, Program]:
    """The same, loaded."""
    return exported[0], load_program(exported[1])[0]


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("rows", SIZES)
def test_any_number_of_users_and_ids(program: tuple[ServingModel, Program], rows: int, lists: bool) -> None:
    model, run = program
    inputs = serving_inputs(batch(rows, seed=rows, lists=lists))
    for multiplier in MULTIPLIERS:
        price = torch.tensor(multiplier, dtype=torch.float64)
        assert_equal(run(*inputs, price), model(*inputs, price))


def test_one_user_with_any_number_of_ids(program: tuple[ServingModel, Program]) -> None:
    model, run = program
    price = torch.tensor(0.7, dtype=torch.float64)
    for n in (0, 1, 2, 3, 100):
        values = [torch.tensor([7]), torch.arange(n) % 23 - 1]
        inputs = (torch.full((1, 3), 4.0), values, [torch.tensor([0, 1]), torch.tensor([0, n])])
        assert_equal(run(*inputs, price), model(*inputs, price))


@pytest.mark.parametrize("without", ["dense", "sparse"])
def test_one_kind_of_feature(tmp_path: Path, without: str) -> None:
    changes: dict[str, Any] = {without: ()}
    model = case(**changes)[1]
    save_program(model, tmp_path / "model.pt2")
    run, about = load_program(tmp_path / "model.pt2")
    assert about["multiplier"] is None
    for rows in (1, 5):
        dense, values, offsets = serving_inputs(batch(rows))
        inputs = (dense[:, :0], values, offsets) if without == "dense" else (dense, [], [])
        price = torch.tensor(0.7)
        assert_equal(run(*inputs, price.double()), model(*inputs, price))


def test_it_is_made_of_torch_s_own_operators(exported: tuple[ServingModel, Path]) -> None:
    graph = torch.export.load(exported[1]).graph
    targets = {str(node.target).partition(".")[0] for node in graph.nodes if node.op == "call_function"}
    assert targets
    assert targets <= {"aten", "<built-in function add>", "<built-in function sub>", "<built-in function getitem>"}
    assert {node.op for node in graph.nodes} == {"placeholder", "call_function", "output"}


def test_with_torch_alone(exported: tuple[ServingModel, Path], tmp_path: Path) -> None:
    model, path = exported
    inputs = serving_inputs(batch(20))
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [str(path), str(tmp_path / "inputs.pt"), str(tmp_path / "out.pt")]
    assert run_without(FOREIGN, SERVE, *files, cwd=tmp_path) == f"arm_1 0.7 {model.table_kind}\n"
    assert_equal(torch.load(tmp_path / "out.pt"), model(*inputs))


def test_the_description_and_no_path_of_this_machine(exported: tuple[ServingModel, Path]) -> None:
    model, path = exported
    about = load_program(path)[1]
    assert about["schema"] == json.loads(json.dumps(model.schema.to_dict()))
    assert about["statistics"] == json.loads(json.dumps(model.statistics))
    content = path.read_bytes()
    assert str(Path(__file__).resolve().parents[2]).encode() not in content
    assert b".tmp-" not in content


def test_files_that_cannot_be_used(exported: tuple[ServingModel, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    good = exported[1].read_bytes()
    for content in (good[: len(good) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            load_program(path)
    save(exported[0], path)
    with pytest.raises(InputError, match="is no program of this library"):
        load_program(path)
    with pytest.raises(InputError, match="is not a file"):
        load_program(tmp_path / "missing.pt2")
    with pytest.raises(InputError, match=r"a \.pt2 file"):
        save_program(exported[0], tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == [path]
