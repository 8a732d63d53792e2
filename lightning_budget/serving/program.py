"""A serving model as a ``torch.export`` program: the computation without this library's code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as tracing
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lightning_budget.atomic import atomic_path
from lightning_budget.errors import InputError
from lightning_budget.serving.files import description
from lightning_budget.serving.model import ServingModel

EXTRA = "serving.json"
"""Name under which a program's file holds the schema, the statistics and the multiplier."""

Program = Callable[[Tensor, list[Tensor], list[Tensor], Tensor], tuple[Tensor, Tensor, Tensor]]


class _Plain(nn.Module):
    """The model with a plain tuple as its result, which a program can hold without naming our classes."""

    def __init__(self, model: ServingModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, dense: Tensor, values: list[Tensor], offsets: list[Tensor], multiplier: Tensor
    ) -> tuple[Tensor, ...]:
        value, cost, treatment = self.model(dense, values, offsets, multiplier)
        return value, cost, treatment


def export_program(model: ServingModel) -> ExportedProgram:
    """Trace ``(dense, values, offsets, multiplier) → (value, cost, treatment)``, made of torch's own operators alone.

    Arguments are those of :meth:`ServingModel.forward`, the two sequences as lists and λ as a 0-dim float64 tensor. The
    number of users and the number of ids of every feature are free, none and one included. The program stays on the
    device of the model.
    """
    users, features = Dim("users"), range(len(model.schema.sparse))
    device = model.net.value_mean.device
    dense = torch.zeros(3, len(model.schema.dense), device=device)
    # Numbers of ids that are neither equal nor those of users, 0 or 1: tracing must not take them for constants.
    lengths = [torch.tensor([1, 2, 4 + i], device=device) for i in features]
    values = [torch.zeros(int(n.sum()), dtype=torch.int64, device=device) for n in lengths]
    offsets = [torch.cat([n.new_zeros(1), n.cumsum(0)]) for n in lengths]
    multiplier = torch.ones((), dtype=torch.float64, device=device)
    shapes = ({0: users}, [{0: Dim(f"ids_{i}")} for i in features], [{0: users + 1} for _ in features], None)
    # Otherwise tracing takes it that no size is ever 0 or 1, and the program refuses a single user.
    with torch.no_grad(), tracing.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        program = torch.export.export(_Plain(model), (dense, values, offsets, multiplier), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        # Half the file of a small model, and paths of the machine that exported it.
        node.meta.pop("stack_trace", None)
    return program


def save_program(model: ServingModel, path: str | Path) -> None:
    """Export and write a program with the model's description beside it; ``path`` is whole or untouched.

    Raises:
        InputError: if the name does not end in .pt2, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"{path} as a program", "a .pt2 file", "end its name in .pt2")
    program = export_program(model)
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.export.save(program, file, extra_files={EXTRA: json.dumps(description(model))})
    except OSError as e:
        raise InputError(
            f"{path} cannot be written: {e.strerror or e}", "a writable folder", "create it, or name another one"
        ) from e


def load_program(path: str | Path) -> tuple[Program, dict[str, Any]]:
    """Read a program and its description; with torch alone, ``torch.export.load`` does the same.

    Raises:
        InputError: if the file is missing, damaged, or no program of this library.
    """
    fix = "give a .pt2 file that scripts/export.py wrote"
    if not Path(path).is_file():
        raise InputError(f"program {str(path)!r} is not a file", "a file", fix)
    try:
        # Looked into first: of a file that is no program torch also logs a traceback.
        with zipfile.ZipFile(path) as archive:
            ours = any(name.endswith(f"/extra/{EXTRA}") for name in archive.namelist())
        if not ours:
            raise InputError(f"{str(path)!r} is no program of this library", f"one that holds {EXTRA}", fix)
        extra = {EXTRA: ""}
        program = torch.export.load(path, extra_files=extra).module()
    except (RuntimeError, OSError, zipfile.BadZipFile) as e:
        raise InputError(f"program {str(path)!r} cannot be read ({type(e).__name__})", "a whole file", fix) from e
    return program, json.loads(extra[EXTRA])
