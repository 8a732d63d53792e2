"""The arrows between the rooms, as pyproject.toml states them."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ["lightning_budget/allocation", "lightning_budget/estimators", "lightning_budget/metrics/functional"]
ALLOWED = sys.stdlib_module_names | {"torch", "lightning_budget"}


def imported(source: str) -> set[str]:
    """Top-level names of everything that the source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_imported_sees_every_form() -> None:
    source = "import a.b as c, d\nfrom e.f import g\nfrom . import h\ndef i():\n    import j\n"
    assert imported(source) == {"a", "d", "e", "j"}


@pytest.mark.parametrize("room", PLAIN)
def test_room_is_plain_torch(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room} is gone"
    # What is compiled has a twin in plain torch, and is imported where it runs.
    plain = [f for f in files if f.parent.name != "compiled"]
    foreign = {str(f.relative_to(ROOT)): sorted(imported(f.read_text()) - ALLOWED) for f in plain}
    assert {name: found for name, found in foreign.items() if found} == {}


def test_nothing_needs_a_compiler_to_be_imported() -> None:
    code = (
        "import sys; sys.modules['numba'] = None;"
        "import torch, lightning_budget.allocation.constrained, lightning_budget.losses;"
        " v = torch.rand(50_000, 3); c = torch.rand(50_000, 3);"
        "print(lightning_budget.allocate(v, c, float(c.amin(1).sum()) + 5_000).gap)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LIGHTNING_BUDGET_COMPILED": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1


@pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="import-linter comes with `make check`")
def test_import_linter_contracts() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout
